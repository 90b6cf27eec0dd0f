"""A lobe's offer in a task of its own: opened, watched, opened again, closed.

Whoever needs the role holds one stable object all the while. It forwards to what is open now, and
raises :class:`LobeFailed` at once when nothing is.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import trio

from kwaai_core.errors import KwaaiError, LobeFailed
from kwaai_core.roles import Host, Offer

log = logging.getLogger(__name__)

OPEN_SECONDS = 60.0
"""How long an offer may take to open."""

GRACE_SECONDS = 10.0
"""How long it may take to close before it is cancelled."""

FIRST_DELAY, LONGEST_DELAY = 0.5, 60.0
_STEADY_SECONDS = 60.0  # one that was open for so long starts again with the first delay

State = Literal["opening", "ready", "waiting", "failed"]


class Supervised:
    """One offer, supervised. ``role`` is the stable object for its callers."""

    def __init__(self, lobe: str, offer: Offer[Any]) -> None:
        self.lobe = lobe
        self.offer = offer
        self.state: State = "opening"
        self.cause = ""
        self.current: Any = None
        self.role: Any = _Forward(self)
        self._closing = trio.Event()
        self._retry_at = 0.0

    def get(self) -> Any:
        """What is open now; raises :class:`LobeFailed`."""
        if self.state == "ready":
            return self.current
        wait = max(1.0, self._retry_at - trio.current_time())
        raise LobeFailed(self.lobe, self.cause or "it is still opening", retry_after=wait)

    @asynccontextmanager
    async def supervised(self, host: Host) -> AsyncIterator[None]:
        """Open now, keep open in the background, close on leaving.

        Entering returns once the offer is open or has failed for the first time.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self._keep, host)
            try:
                yield
            finally:
                self._closing.set()
                nursery.cancel_scope.deadline = trio.current_time() + GRACE_SECONDS

    async def _keep(
        self, host: Host, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        told = trio.Event()

        def settled() -> None:
            if not told.is_set():
                told.set()
                task_status.started()

        delay = FIRST_DELAY
        while not self._closing.is_set():
            began = trio.current_time()
            try:
                await self._run(host, settled)
            except Exception as error:  # a lobe is foreign code: its crash stays in this task
                if os.environ.get("KWAAI_STRICT") == "1":
                    raise
                self._note(error)
            if self.state == "opening":
                self.state, self.cause = "failed", "it ended while opening"
            settled()
            if trio.current_time() - began > _STEADY_SECONDS:
                delay = FIRST_DELAY
            pause = delay * random.uniform(0.75, 1.25)
            self._retry_at = trio.current_time() + pause
            with trio.move_on_after(pause):
                await self._closing.wait()
            delay = min(delay * 2, LONGEST_DELAY)

    async def _run(self, host: Host, settled: Callable[[], None]) -> None:
        with trio.move_on_after(OPEN_SECONDS) as opening:
            try:
                async with self.offer.open(host) as role:
                    opening.deadline = float("inf")
                    self.current, self.state, self.cause = role, "ready", ""
                    settled()
                    await self._closing.wait()
            finally:
                self.current = None
                if self.state == "ready" and not self._closing.is_set():
                    self.state, self.cause = "failed", "it was closed by itself"
        if opening.cancelled_caught:
            raise KwaaiError(f"it did not open within {OPEN_SECONDS:g} s")

    def _note(self, error: Exception) -> None:
        first = _first(error)
        if isinstance(first, LobeFailed) and first.lobe != self.lobe:
            self.state, self.cause = "waiting", f"{first.lobe} failed: {first.cause}"
        else:
            what = first.message if isinstance(first, KwaaiError) else repr(first)
            self.state, self.cause = "failed", what
        log.error("lobe %s (%s): %s", self.lobe, self.state, self.cause)
        log.debug("lobe %s", self.lobe, exc_info=error)


def _first(error: BaseException) -> BaseException:
    """The first leaf of an exception group, or the error itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Forward:
    """A role that is always there: every attribute is that of what is open now."""

    def __init__(self, supervised: Supervised) -> None:
        object.__setattr__(self, "_supervised", supervised)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._supervised.get(), name)

    def __repr__(self) -> str:
        return f"<role of lobe {self._supervised.lobe}: {self._supervised.state}>"
