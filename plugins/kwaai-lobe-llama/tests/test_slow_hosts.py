"""A host whose answers come late, and a router that has nothing better at first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kwaai_core.span.hop import Blame, Place, Trouble
from kwaai_core.span.roles import LOCAL

from .late import Late
from .test_spans import FIRST, REST, swarm
from .test_spans import gates as gates  # a fixture


async def test_a_router_is_asked_again_about_a_slow_host_for_which_it_had_no_other(
    qwen2: Path, gates: Path
) -> None:
    async with swarm(qwen2, gates, [FIRST], [REST], [REST]) as nodes:

        def slow_down() -> None:
            late.seconds = 0.45  # with the wait for a heartbeat much less than a second of silence

        late = Late(slow_down)
        first = await late.link(nodes, nodes.hosts[1])
        ways = [[Place(LOCAL, FIRST), Place(link, REST)] for link in (first, nodes.links[2])]
        asked: list[list[Blame]] = []
        took: list[float] = []

        async def routing(
            tokens: int, route: Sequence[Place], trouble: Sequence[Trouble]
        ) -> Sequence[Place]:
            asked.append([one.blame for one in trouble])
            took.extend(one.took for one in trouble)
            return ways[0] if len(asked) < 3 else ways[1]

        answer = await nodes.ask(routing, tokens=60)
        assert answer.text == await nodes.whole(tokens=60)
        assert asked == [[], [Blame.SLOW], [Blame.SLOW]]
        assert all(0.25 < seconds < 1.0 for seconds in took)
        assert answer.report is not None
        assert answer.report.timings[1].hop.peer == str(nodes.links[2])
