"""When an answer moves away from a slow host: only where that is sooner, its replay included."""

from __future__ import annotations

import pytest

from kwaai_core import Hop, Span
from kwaai_core.span.hop import Place
from kwaai_lobe_router.progress import Progress
from kwaai_lobe_router.swarm import Candidate, Plan, Unit

MS = 1_000_000
HALVES = Span(0, 6), Span(6, 12)


def progress(prompt: int, tokens: int, each: float, most: int = 4096) -> Progress:
    one = Progress(0.0)
    one.prompt, one.most = prompt, most
    for number in range(1, tokens + 1):
        one.came(1, number * each)
    return one


def plan(latency: int) -> Plan:
    return Plan((Hop("kept", HALVES[0]), Hop("new", HALVES[1])), latency, latency, True)


CANDIDATES = (
    Candidate("kept", (Unit(HALVES[0], 7 * MS, 7 * MS),), link=MS),
    Candidate("new", (Unit(Span(6, 9), MS, MS), Unit(Span(9, 12), MS, MS)), link=MS, queue=MS),
)


def test_only_who_is_new_replays() -> None:
    one = progress(100, 40, 0.05)
    replay = one.replay(plan(10 * MS), [Place(1, HALVES[0])], CANDIDATES, rows=8)
    assert replay == (2 + 100 * 2 + 40 * 2) * MS
    both = one.replay(plan(10 * MS), [], CANDIDATES, rows=8)
    assert both == replay + (1 + 140 * 7) * MS


@pytest.mark.parametrize(
    ("tokens", "most", "replay", "moves"),
    [
        (40, 4096, 1000, True),  # 40 more: 4 s here, 1.4 s there
        (40, 4096, 4000, False),  # the replay takes as long as the rest
        (40, 145, 1000, True),  # 105 more may come, 40 are expected
        (40, 41, 1000, False),  # the last token
        (2, 4096, 1000, True),  # one that has begun is expected to go on for a while
        (2, 4096, 2000, False),
    ],
)
def test_the_replay_counts(tokens: int, most: int, replay: int, moves: bool) -> None:
    one = progress(1, tokens, 0.1, most)
    assert one.sooner(plan(10 * MS), replay * MS, 0) is moves


def test_the_step_under_way_tells_how_slow_it_is() -> None:
    one = progress(1, 20, 0.01)
    assert not one.sooner(plan(9 * MS), 100 * MS, 13 * MS)
    assert one.sooner(plan(9 * MS), 100 * MS, 15 * MS)
    nothing_yet = progress(100, 0, 0.0)
    assert nothing_yet.sooner(plan(9 * MS), 1000 * MS, 100 * MS)
    assert not nothing_yet.sooner(plan(9 * MS), 1000 * MS, 70 * MS)


def test_where_it_is_going_is_not_faster_it_stays() -> None:
    one = progress(1, 20, 0.01)
    assert not one.sooner(plan(11 * MS), 0, 0)
