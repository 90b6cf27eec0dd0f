"""Tasks that end with the block that they belong to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def tasks() -> AsyncIterator[trio.Nursery]:
    """A nursery that is cancelled at the end of the block, whose error comes out as it is."""
    raised: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as error:  # noqa: BLE001  # raised again below, outside the nursery
            raised = error
        finally:
            nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised
