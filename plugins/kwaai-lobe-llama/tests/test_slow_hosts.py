"""A host whose answers come late, and a router that has nothing better at first."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import trio

from kwaai_core.span.hop import Blame, Place, Trouble
from kwaai_core.span.roles import LOCAL, SpanHost
from kwaai_core.testing.network.channels import _pair

from .test_spans import FIRST, REST, Swarm, swarm
from .test_spans import gates as gates  # a fixture


class Late:
    """A link whose host's bytes arrive ``seconds`` late."""

    def __init__(self) -> None:
        self.seconds = 0.0

    async def link(self, nodes: Swarm, host: SpanHost) -> int:
        ours, theirs = _pair(first_is_client=True)
        near, far = socket.socketpair()
        ends = [trio.SocketStream(trio.socket.from_stdlib_socket(s)) for s in (far, ours.socket)]
        nodes._nursery.start_soon(self._carry, *ends)
        nodes._nursery.start_soon(host.serve, "owner", theirs)
        link = nodes.head.link("host", replace(ours, socket=near))
        return await nodes._stack.enter_async_context(link)

    async def _carry(self, owner: trio.SocketStream, host: trio.SocketStream) -> None:
        waiting, due = trio.open_memory_channel[tuple[float, bytes]](1000)

        async def down() -> None:
            async for data in owner:
                await host.send_all(data)
            await host.aclose()

        async def keep() -> None:
            with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
                async for data in host:
                    await waiting.send((trio.current_time() + self.seconds, data))
            waiting.close()

        async with owner, host, trio.open_nursery() as nursery:
            nursery.start_soon(down)
            nursery.start_soon(keep)
            with suppress(trio.BrokenResourceError):
                async for at, data in due:
                    await trio.sleep_until(at)
                    await owner.send_all(data)
            nursery.cancel_scope.cancel()


async def test_a_router_is_asked_again_about_a_slow_host_for_which_it_had_no_other(
    qwen2: Path, gates: Path
) -> None:
    async with swarm(qwen2, gates, [FIRST], [REST], [REST]) as nodes:
        late = Late()
        first = await late.link(nodes, nodes.hosts[1])
        ways = [[Place(LOCAL, FIRST), Place(link, REST)] for link in (first, nodes.links[2])]
        asked: list[list[Blame]] = []

        async def routing(
            tokens: int, route: Sequence[Place], trouble: Sequence[Trouble]
        ) -> Sequence[Place]:
            asked.append([one.blame for one in trouble])
            return ways[0] if len(asked) < 3 else ways[1]

        def slow_down() -> None:
            late.seconds = 0.3

        answer = await nodes.ask(routing, tokens=60, in_the_middle=slow_down)
        assert answer.text == await nodes.whole(tokens=60)
        assert asked == [[], [Blame.SLOW], [Blame.SLOW]]
        assert answer.report is not None
        assert answer.report.timings[1].hop.peer == str(nodes.links[2])
