"""What every transport must do."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import trio

from kwaai_core.testing.conformance.rules import SECONDS, hold, require
from kwaai_core.testing.conformance.swarm import (
    PROTOCOL,
    Lie,
    OpenTransport,
    Swarm,
    echo,
    opens,
)
from kwaai_core.testing.conformance.transport.channel import a_data_channel_is_of_its_two_ends
from kwaai_core.testing.conformance.transport.directory import DIRECTORY_RULES
from kwaai_core.testing.conformance.transport.door import DOOR_RULES
from kwaai_core.testing.conformance.transport.links import LINK_RULES
from kwaai_core.testing.conformance.transport.streams import STREAM_RULES
from kwaai_core.testing.conformance.transport.topics import TOPIC_RULES

Rule = Callable[[Swarm], Awaitable[None]]


async def leaving_leaves_nothing_behind(swarm: Swarm) -> None:
    """Neither tasks nor files, however many streams there were; the second time as the first."""

    async def live() -> None:
        async with swarm.nodes("one", "two") as (one, two), two.transport.serve(PROTOCOL, echo):
            for _ in range(300):
                await opens(one, two)
            await one.transport.publish("name", b"body", seconds=swarm.patience)

    await live()
    before = _held()
    await live()
    for what, count in _held().items():
        require(count <= before[what], f"{what} grew from {before[what]} to {count}")


def _held() -> dict[str, int]:
    tasks = trio.lowlevel.current_statistics().tasks_living
    return {"tasks": tasks, "open files": len(os.listdir("/proc/self/fd"))}


TRANSPORT_RULES: tuple[Rule, ...] = (
    *LINK_RULES,
    *DOOR_RULES,
    *STREAM_RULES,
    *DIRECTORY_RULES,
    *TOPIC_RULES,
    a_data_channel_is_of_its_two_ends,
    leaving_leaves_nothing_behind,
)


async def check_transport(
    open_transport: OpenTransport,
    *,
    now: Callable[[], float] = time.time,
    lie: Lie | None = None,
    pace: float = 0.2,
    patience: float = 5.0,
    lifetime: float = 2.0,
    seconds: float = SECONDS,
    rules: Sequence[Rule] = TRANSPORT_RULES,
) -> None:
    """Check every rule of :class:`kwaai_core.Transport` and :class:`kwaai_core.Stream`.

    ``open_transport`` is the ``open`` of an offer. It is opened on up to four hosts at once, with a
    fake identity each and nothing else, in folders that are removed at the end; the nodes have to
    be able to dial one another. ``now`` is their clock. ``lie``, where there is one, makes a
    transport hold a forged record; without it, whether liars are believed is not checked.

    All in seconds: ``pace`` is how long a rule waits for what must not happen, ``patience`` how
    long what must happen may take, ``lifetime`` that of records which are to expire, ``seconds``
    how long one rule may take. ``rules`` are all, or those that a test is about.

    Errors: :class:`Nonconformance`.
    """
    with tempfile.TemporaryDirectory() as folder:
        for rule in rules:
            place = Path(folder) / rule.__name__
            swarm = Swarm(open_transport, place, now, pace, patience, lifetime, lie)
            await hold(partial(rule, swarm), rule.__name__, seconds)
