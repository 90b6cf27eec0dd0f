"""A lobe's offer in a task of its own: opened, watched, opened again, closed.

Whoever needs the role holds one stable object all the while. It forwards to what is open now, and
raises :class:`LobeFailed` at once when nothing is, or when that crashes during a call.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from math import inf
from typing import Any, Literal

import trio

from kwaai_core.errors import KwaaiError, LobeFailed, cause_of, leaf, place_in
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
    """One offer, supervised. ``role`` is the stable object for its callers.

    ``on_ready`` is called each time that the offer is open. What code of ``package`` raises, other
    than a :class:`KwaaiError`, is a failure of the lobe, and told its callers as that.
    """

    def __init__(
        self,
        lobe: str,
        offer: Offer[Any],
        on_ready: Callable[[], None] = lambda: None,
        *,
        package: str = "",
    ) -> None:
        self.package = "" if os.environ.get("KWAAI_STRICT") == "1" else package
        self.lobe = lobe
        self.offer = offer
        self.state: State = "opening"
        self.cause = ""
        self.current: Any = None
        self.role: Any = Forward(self)
        self._on_ready = on_ready
        self._settled = trio.Event()
        self._closing = trio.Event()
        self._again = trio.Event()
        self._opening: trio.CancelScope | None = None
        self._calls: set[trio.CancelScope] = set()
        self._retry_at = 0.0
        self._logged = ""

    def get(self) -> Any:
        """What is open now; raises :class:`LobeFailed`."""
        if self.state != "ready":
            raise self._failure()
        return self.current

    def _failure(self) -> LobeFailed:
        wait = max(1.0, self._retry_at - trio.current_time())
        return LobeFailed(self.lobe, self.cause or "it is still opening", retry_after=wait)

    def retry(self) -> None:
        """Open now what waits for another lobe, which may have come back."""
        if self.state == "waiting":
            self._again.set()

    @contextmanager
    def call(self, passing: Sequence[BaseException] = ()) -> Iterator[None]:
        """A call of the role; a crash of the lobe, or of the call, is :class:`LobeFailed`.

        Errors in ``passing`` are the caller's own.
        """
        with trio.CancelScope() as scope:
            self._calls.add(scope)
            try:
                yield
            except Exception as error:  # a lobe is foreign code: its bug is not the node's
                first = leaf(error)
                if isinstance(first, KwaaiError) or first in passing or not self.package:
                    raise
                cause = cause_of(first) + place_in(self.package, first)
                log.error("lobe %s: %s", self.lobe, cause)
                log.debug("lobe %s", self.lobe, exc_info=error)
                raise LobeFailed(self.lobe, cause) from error
            finally:
                self._calls.discard(scope)
        if scope.cancelled_caught:
            raise self._failure()

    @asynccontextmanager
    async def supervised(self, host: Host) -> AsyncIterator[None]:
        """Open now, keep open in the background, close on leaving.

        Entering returns once the offer is open or has failed for the first time.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep, host)
            await self._settled.wait()
            try:
                yield
            finally:
                self._closing.set()
                self._again.set()
                if self._opening is not None:
                    self._opening.cancel()  # what is not open yet has nothing to close
                nursery.cancel_scope.deadline = trio.current_time() + GRACE_SECONDS
        if nursery.cancel_scope.cancelled_caught:
            log.warning("lobe %s did not close in %g s: cut off", self.lobe, GRACE_SECONDS)

    async def _keep(self, host: Host) -> None:
        delay = FIRST_DELAY
        while not self._closing.is_set():
            began = trio.current_time()
            self._again = trio.Event()
            try:
                await self._run(host)
            except Exception as error:  # a lobe is foreign code: its crash stays in this task
                if os.environ.get("KWAAI_STRICT") == "1":
                    raise
                self._note(error)
            if trio.current_time() - began > _STEADY_SECONDS:
                delay = FIRST_DELAY
            pause = delay * random.uniform(0.75, 1.25)
            self._retry_at = trio.current_time() + pause
            self._settled.set()
            if not self._closing.is_set():
                with trio.move_on_after(pause):
                    await self._again.wait()
            delay = min(delay * 2, LONGEST_DELAY)

    async def _run(self, host: Host) -> None:
        """Open, and hold until it is time to close. Errors: whatever the lobe raises."""
        with trio.move_on_after(OPEN_SECONDS) as scope:
            self._opening = scope
            async with self.offer.open(host) as role:
                scope.deadline, self._opening = inf, None
                await self._hold(role)
        if not self._closing.is_set():
            late = f"it did not open within {OPEN_SECONDS:g} s"
            raise KwaaiError(late if scope.cancelled_caught else "it was closed by itself")

    async def _hold(self, role: Any) -> None:
        self.current, self.state, self.cause = role, "ready", ""
        self._settled.set()
        self._on_ready()
        try:
            await self._closing.wait()
        finally:  # at once, since what the lobe still closes is of no use to anybody
            crashed = not self._closing.is_set()
            self.current, self.state = None, "failed"
            self.cause = "it crashed" if crashed else "the node is closing"
            for call in self._calls if crashed else ():
                call.cancel()

    def _note(self, error: Exception) -> None:
        first = leaf(error)
        if isinstance(first, LobeFailed) and first.lobe != self.lobe:
            self.state, self.cause = "waiting", f"{first.lobe} failed: {first.cause}"
        else:
            place = "" if isinstance(first, KwaaiError) else place_in(self.package, first)
            self.state, self.cause = "failed", cause_of(first) + place
        again = self.cause == self._logged  # said once; it may be tried for days
        log.log(
            logging.DEBUG if again else logging.ERROR,
            "lobe %s (%s): %s",
            self.lobe,
            self.state,
            self.cause,
        )
        log.debug("lobe %s", self.lobe, exc_info=error)
        self._logged = self.cause


class Forward:
    """A role that is always there: every attribute is that of what is open now.

    Coroutines and contexts that its methods give end with :class:`LobeFailed` when the lobe
    crashes meanwhile, so that nobody waits for what is gone.
    """

    __slots__ = ("_supervised",)

    def __init__(self, supervised: Supervised) -> None:
        self._supervised = supervised

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # python and its tools look for these on any object
        value = getattr(self._supervised.get(), name)
        return partial(self._call, value) if callable(value) else value

    def __repr__(self) -> str:
        return f"<role of lobe {self._supervised.lobe}: {self._supervised.state}>"

    def _call(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        with self._supervised.call():
            result = method(*args, **kwargs)
        if isinstance(result, AbstractAsyncContextManager):
            return self._entered(result)
        return self._awaited(result) if isinstance(result, Awaitable) else result

    @asynccontextmanager
    async def _entered(self, context: AbstractAsyncContextManager[Any]) -> AsyncIterator[Any]:
        callers = list[BaseException]()
        with self._supervised.call(callers):
            async with context as value:
                try:
                    yield value
                except Exception as error:
                    if not place_in(self._supervised.package, error):
                        callers.append(leaf(error))
                    raise

    async def _awaited(self, awaitable: Awaitable[Any]) -> Any:
        with self._supervised.call():
            return await awaitable
