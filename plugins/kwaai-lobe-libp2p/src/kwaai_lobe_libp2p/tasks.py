"""Tasks and times that end with the block that they belong to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from kwaai_core import DeadlinePassed


@asynccontextmanager
async def background() -> AsyncIterator[trio.Nursery]:
    """A nursery that is cancelled at the end of its block, whose own error is not wrapped."""
    raised: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as error:  # noqa: BLE001 - raised again below, outside of the nursery
            raised = error
        finally:
            nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """Errors: :class:`DeadlinePassed`, which says what took so long."""
    with trio.move_on_after(max(0.0, seconds)) as scope:
        yield
    if scope.cancelled_caught:
        raise DeadlinePassed(f"{what} took more than {seconds:g} s")
