"""Callers of a supervised role: they hold one object, and a crash of its lobe reaches them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from kwaai_core import Host, LobeFailed, Offer
from kwaai_core.supervise import LONGEST_DELAY, OPEN_SECONDS, Supervised
from kwaai_core.testing import FakeHost


class Slow:
    """A role whose calls last for ever, unless it is told otherwise."""

    def __init__(self) -> None:
        self.number = 7
        self.left = trio.Event()

    async def ask(self, answer: int | None = None) -> int:
        while answer is None:
            await trio.sleep_forever()
        return answer

    @asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        try:
            yield self.number
        finally:
            self.left.set()

    def add(self, one: int, *, other: int) -> int:
        return one + other


class Lobe:
    """Crashes when told, and then takes its time to clean up."""

    def __init__(self) -> None:
        self.role = Slow()
        self.crash = trio.Event()
        self.cleaned = trio.Event()

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Slow]:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._crash)
                yield self.role
                nursery.cancel_scope.cancel()
        finally:
            if self.crash.is_set():
                with trio.CancelScope(shield=True):
                    await self.cleaned.wait()

    async def _crash(self) -> None:
        await self.crash.wait()
        raise OSError("the device is gone")


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


@pytest.fixture
def clock() -> MockClock:
    """Time that stands still until a test moves it."""
    return MockClock()


async def test_what_a_role_gives_comes_through(clock: MockClock, host: FakeHost) -> None:
    supervised = Supervised("lobe", Offer("lobe", Lobe().open))
    role = supervised.role
    async with supervised.supervised(host):
        assert role.number == 7
        assert role.add(1, other=2) == 3
        assert await role.ask(5) == 5
        async with role.open() as number:
            assert number == 7
        assert not supervised._calls  # which would grow with every request
        with pytest.raises(AttributeError):
            _ = role.nothing
        assert not hasattr(role, "__wrapped__")


async def test_errors_of_a_call_come_through(clock: MockClock, host: FakeHost) -> None:
    supervised = Supervised("lobe", Offer("lobe", Lobe().open))
    async with supervised.supervised(host):
        with pytest.raises(ValueError, match="mine"):
            async with supervised.role.open():
                raise ValueError("mine")


@pytest.mark.parametrize("how", ["coroutine", "context"])
async def test_a_crash_ends_the_calls_at_once(clock: MockClock, host: FakeHost, how: str) -> None:
    lobe, failures = Lobe(), list[LobeFailed]()
    supervised = Supervised("lobe", Offer("lobe", lobe.open))

    async def call() -> None:
        try:
            if how == "coroutine":
                await supervised.role.ask()
            else:
                async with supervised.role.open():
                    await trio.sleep_forever()
        except LobeFailed as error:
            failures.append(error)

    async with supervised.supervised(host), trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        lobe.crash.set()
        await wait_all_tasks_blocked()  # and no time passes, while the lobe still cleans up
        assert [error.lobe for error in failures] == ["lobe"]
        assert lobe.role.left.is_set() == (how == "context")
        with pytest.raises(LobeFailed, match="it crashed"):
            _ = supervised.role.number
        lobe.cleaned.set()
        await wait_all_tasks_blocked()
        assert supervised.cause == "OSError: the device is gone"


async def test_a_call_that_its_caller_cancels_is_no_failure(
    clock: MockClock, host: FakeHost
) -> None:
    supervised = Supervised("lobe", Offer("lobe", Lobe().open))
    async with supervised.supervised(host):
        with trio.CancelScope() as scope:
            scope.cancel()
            await supervised.role.ask()
        assert scope.cancelled_caught
        assert await supervised.role.ask(1) == 1


class Needs:
    """Opens only while another role works."""

    def __init__(self, get: Callable[[], object]) -> None:
        self.get = get
        self.tries = 0

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[object]:
        self.tries += 1
        self.get()
        yield self


async def test_what_waits_is_opened_as_soon_as_that_helps(clock: MockClock, host: FakeHost) -> None:
    broken = True

    @asynccontextmanager
    async def sometimes(host: Host) -> AsyncIterator[Slow]:
        if broken:
            raise OSError("not yet")
        yield Slow()

    first = Supervised("first", Offer("first", sometimes), on_ready=lambda: second.retry())
    needs = Needs(first.get)
    second = Supervised("second", Offer("second", needs.open))
    async with first.supervised(host), second.supervised(host):
        assert (second.state, second.cause) == ("waiting", "first failed: OSError: not yet")
        for _ in range(12):  # both are tried again ever more seldom
            clock.jump(LONGEST_DELAY * 1.26)
            await wait_all_tasks_blocked()
        tries, broken = needs.tries, False
        while first.state != "ready":
            clock.jump(1.0)
            await wait_all_tasks_blocked()
        assert second.state == "ready"
        assert needs.tries <= tries + 2


async def test_closing_does_not_wait_for_what_is_not_open_yet(
    clock: MockClock, host: FakeHost
) -> None:
    hang = False

    @asynccontextmanager
    async def open_(host: Host) -> AsyncIterator[Slow]:
        if hang:
            await trio.sleep_forever()
        raise OSError("no")
        yield Slow()

    supervised = Supervised("lobe", Offer("lobe", open_))
    async with supervised.supervised(host):
        hang = True
        clock.jump(1.0)
        await wait_all_tasks_blocked()
        began = trio.current_time()
    assert trio.current_time() == began < OPEN_SECONDS


async def test_the_same_failure_is_an_error_in_the_log_only_once(
    clock: MockClock, host: FakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    @asynccontextmanager
    async def open_(host: Host) -> AsyncIterator[Slow]:
        raise OSError("the key is missing")
        yield Slow()

    async with Supervised("lobe", Offer("lobe", open_)).supervised(host):
        for _ in range(3):
            clock.jump(LONGEST_DELAY)
            await wait_all_tasks_blocked()
    errors = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert errors == ["lobe lobe (failed): OSError: the key is missing"]


async def test_who_may_ask_again_when_is_said(clock: MockClock, host: FakeHost) -> None:
    @asynccontextmanager
    async def open_(host: Host) -> AsyncIterator[Slow]:
        raise OSError("no")
        yield Slow()

    supervised = Supervised("lobe", Offer("lobe", open_))
    async with supervised.supervised(host):
        for _ in range(12):
            clock.jump(LONGEST_DELAY * 1.26)
            await wait_all_tasks_blocked()
        with pytest.raises(LobeFailed) as caught:
            supervised.get()
        assert caught.value.retry_after is not None
        assert LONGEST_DELAY * 0.74 < caught.value.retry_after < LONGEST_DELAY * 1.26
        clock.jump(caught.value.retry_after / 2)
        with pytest.raises(LobeFailed) as later:
            supervised.get()
        assert later.value.retry_after == pytest.approx(caught.value.retry_after / 2)


@pytest.mark.parametrize("slow", [False, True])
async def test_what_had_to_be_cut_off_is_logged(
    autojump_clock: MockClock, host: FakeHost, caplog: pytest.LogCaptureFixture, slow: bool
) -> None:
    @asynccontextmanager
    async def open_(host: Host) -> AsyncIterator[Slow]:
        yield Slow()
        if slow:
            await trio.sleep_forever()

    async with Supervised("lobe", Offer("lobe", open_)).supervised(host):
        pass
    said = "lobe lobe did not close in 10 s: cut off"
    assert (said in [record.getMessage() for record in caplog.records]) == slow
