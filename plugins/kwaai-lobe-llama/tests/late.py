"""A link that acts at a chosen moment: what a host sends waits here until that is over.

A worker answers faster than a test that reads its answer is told of it; so what has to happen in
the middle of an answer is done where the answer has to pass.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import trio

from kwaai_core.span.roles import SpanHost
from kwaai_core.testing.network.channels import _pair

if TYPE_CHECKING:
    from .test_spans import Swarm

MIDDLE = 24
"""Pieces of a host's bytes that come before what happens: a piece is one step, or a few."""


@dataclass
class Late:
    """A link whose host's bytes arrive ``seconds`` late; ``act`` is done once, in the middle."""

    act: Callable[[], None] = lambda: None
    seconds: float = 0.0
    middle: int = MIDDLE
    passed: int = field(default=0, init=False)

    async def link(self, nodes: Swarm, host: SpanHost) -> int:
        ours, theirs = _pair(first_is_client=True)
        near, far = socket.socketpair()
        ends = [trio.SocketStream(trio.socket.from_stdlib_socket(s)) for s in (far, ours.socket)]
        nodes._nursery.start_soon(self._carry, *ends)
        nodes._nursery.start_soon(host.serve, "owner", theirs)
        link = nodes.head.link(
            "host", replace(ours, socket=near), replay_rows=host.facts.replay_rows
        )
        return await nodes._stack.enter_async_context(link)

    async def _carry(self, owner: trio.SocketStream, host: trio.SocketStream) -> None:
        waiting, due = trio.open_memory_channel[tuple[float, bytes]](1000)

        async def down() -> None:
            with suppress(trio.BrokenResourceError):
                async for data in owner:
                    await host.send_all(data)
            await host.aclose()

        async def keep() -> None:
            with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
                async for data in host:
                    self.passed += 1
                    if self.passed == self.middle:
                        self.act()
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
