"""A lobe's offer in a task of its own: opened, watched, opened again, closed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from kwaai_core import Host, KwaaiError, LobeFailed, Offer
from kwaai_core.supervise import GRACE_SECONDS, LONGEST_DELAY, OPEN_SECONDS, Supervised
from kwaai_core.testing.fakes import FakeHost

Opener = Callable[[Host], AbstractAsyncContextManager["Role"]]


@pytest.fixture
def clock() -> MockClock:
    """Time that stands still until a test moves it."""
    return MockClock()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return FakeHost(tmp_path)


class Role:
    """What the lobe of these tests fills its role with."""

    def __init__(self, number: int) -> None:
        self.number = number


class Lobe:
    """Opens a new role every time, after the errors that it is given; crashes when told."""

    def __init__(self, *errors: BaseException | None) -> None:
        self.errors = list(errors)
        self.opened = 0
        self.closed: list[int] = []
        self.crash = trio.Event()
        self.error: Exception | None = None

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Role]:
        self.opened += 1
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error
        number = self.opened
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._crash_when_told)
                yield Role(number)
                nursery.cancel_scope.cancel()
        finally:
            self.closed.append(number)

    async def _crash_when_told(self) -> None:
        await self.crash.wait()
        self.crash = trio.Event()
        raise self.error or OSError("crashed")


def supervise(open_: Opener) -> Supervised:
    return Supervised("lobe", Offer("lobe", open_))


async def later(clock: MockClock, seconds: float) -> None:
    """Move the clock, and let everything happen that is due then."""
    await wait_all_tasks_blocked()
    clock.jump(seconds)
    await wait_all_tasks_blocked()


async def test_what_is_open_fills_the_role_and_is_closed_at_the_end(
    clock: MockClock, host: Host
) -> None:
    lobe = Lobe()
    supervised = supervise(lobe.open)
    async with supervised.supervised(host):
        assert supervised.state == "ready"
        assert supervised.role.number == 1
        assert lobe.closed == []
    assert lobe.closed == [1]
    assert lobe.opened == 1


async def test_one_that_fails_to_open_is_tried_again_ever_more_seldom(
    clock: MockClock, host: Host
) -> None:
    lobe = Lobe(*[KwaaiError("no such device: plug it in")] * 4)
    supervised = supervise(lobe.open)
    async with supervised.supervised(host):
        assert (supervised.state, supervised.cause) == ("failed", "no such device: plug it in")
        with pytest.raises(LobeFailed, match="no such device") as caught:
            _ = supervised.role.number
        assert caught.value.lobe == "lobe"
        assert caught.value.retry_after == 1.0
        for tries, (least, most) in enumerate(_delays(0.5, 4), start=1):
            await later(clock, least)
            assert lobe.opened == tries
            await later(clock, most - least)
            assert lobe.opened == tries + 1
        assert supervised.state == "ready"
        assert supervised.role.number == 5


def _delays(first: float, n: int) -> list[tuple[float, float]]:
    """The least, less a little, and the most of each of the first delays."""
    return [(first * 2**i * 0.74, first * 2**i * 1.26) for i in range(n)]


async def test_the_delay_has_a_longest(clock: MockClock, host: Host) -> None:
    lobe = Lobe(*[OSError("still")] * 20)
    async with supervise(lobe.open).supervised(host):
        for _ in range(11):
            await later(clock, LONGEST_DELAY * 1.26)
        assert lobe.opened == 12


async def test_a_crash_is_seen_at_once_and_mended(clock: MockClock, host: Host) -> None:
    lobe = Lobe()
    supervised = supervise(lobe.open)
    role = supervised.role
    async with supervised.supervised(host):
        lobe.crash.set()
        await wait_all_tasks_blocked()
        with pytest.raises(LobeFailed, match="the lobe “lobe” failed: OSError"):
            _ = role.number
        assert supervised.state == "failed"
        await later(clock, 0.63)
        assert role.number == 2
        assert supervised.cause == ""
    assert lobe.closed == [1, 2]


async def test_one_that_ran_for_long_starts_with_the_first_delay_again(
    clock: MockClock, host: Host
) -> None:
    lobe = Lobe(*[OSError("at first")] * 5)
    supervised = supervise(lobe.open)
    async with supervised.supervised(host):
        for _ in range(5):
            await later(clock, 100)
        assert supervised.role.number == 6
        await later(clock, 100)
        lobe.crash.set()
        await later(clock, 0.63)
        assert supervised.role.number == 7


async def test_the_error_of_a_nursery_is_shown_without_its_group(
    clock: MockClock, host: Host
) -> None:
    inner = ExceptionGroup("inner", [KwaaiError("the socket is taken")])
    lobe = Lobe(ExceptionGroup("outer", [inner]))
    supervised = supervise(lobe.open)
    async with supervised.supervised(host):
        assert supervised.cause == "the socket is taken"


async def test_one_that_waits_for_another_says_for_which(clock: MockClock, host: Host) -> None:
    lobe = Lobe(LobeFailed("identity", "no key"))
    supervised = supervise(lobe.open)
    async with supervised.supervised(host):
        assert supervised.state == "waiting"
        assert supervised.cause == "identity failed: no key"
        await later(clock, 0.63)
        assert supervised.state == "ready"


async def test_its_own_failure_is_no_waiting(clock: MockClock, host: Host) -> None:
    supervised = supervise(Lobe(LobeFailed("lobe", "no key")).open)
    async with supervised.supervised(host):
        assert supervised.state == "failed"


async def test_one_that_hangs_while_opening_has_failed_after_a_time(
    clock: MockClock, host: Host
) -> None:
    @asynccontextmanager
    async def hang(host: Host) -> AsyncIterator[Role]:
        await trio.sleep_forever()
        yield Role(0)

    supervised = supervise(hang)
    async with trio.open_nursery() as nursery:
        ended = trio.Event()
        nursery.start_soon(_run_until, supervised, host, ended)
        await wait_all_tasks_blocked()
        assert supervised.state == "opening"
        with pytest.raises(LobeFailed, match="still opening"):
            _ = supervised.role.number
        await later(clock, OPEN_SECONDS + 0.01)
        assert supervised.state == "failed"
        assert supervised.cause == "it did not open within 60 s"
        ended.set()


async def _run_until(supervised: Supervised, host: Host, ended: trio.Event) -> None:
    async with supervised.supervised(host):
        await ended.wait()


async def test_a_timeout_of_its_own_later_is_its_own(clock: MockClock, host: Host) -> None:
    lobe = Lobe()
    lobe.error = trio.TooSlowError()
    supervised = supervise(lobe.open)
    async with supervised.supervised(host):
        lobe.crash.set()
        await wait_all_tasks_blocked()
        assert supervised.state == "failed"
        assert "did not open" not in supervised.cause


async def test_one_that_ends_by_itself_has_failed(clock: MockClock, host: Host) -> None:
    leave = trio.Event()

    @asynccontextmanager
    async def swallow(host: Host) -> AsyncIterator[Role]:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def end() -> None:
                    await leave.wait()
                    scope.cancel()

                nursery.start_soon(end)
                yield Role(1)
                nursery.cancel_scope.cancel()

    supervised = supervise(swallow)
    async with supervised.supervised(host):
        assert supervised.state == "ready"
        leave.set()
        await wait_all_tasks_blocked()
        assert supervised.state == "failed"
        assert supervised.cause == "it was closed by itself"
        with pytest.raises(LobeFailed):
            _ = supervised.role.number


async def test_closing_has_a_time_of_grace(clock: MockClock, host: Host) -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def reluctant(host: Host) -> AsyncIterator[Role]:
        yield Role(1)
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            seen.append("cancelled")
            raise

    supervised, ended = supervise(reluctant), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_run_until, supervised, host, ended)
        await wait_all_tasks_blocked()
        ended.set()
        await later(clock, GRACE_SECONDS - 0.1)
        assert seen == []
        await later(clock, 0.2)
        assert seen == ["cancelled"]


async def test_an_error_while_closing_reaches_nobody(clock: MockClock, host: Host) -> None:
    @asynccontextmanager
    async def clumsy(host: Host) -> AsyncIterator[Role]:
        yield Role(1)
        raise OSError("stumbled at the end")

    supervised = supervise(clumsy)
    async with supervised.supervised(host):
        pass
    assert supervised.cause == "OSError: stumbled at the end"


async def test_one_that_failed_does_not_hold_up_the_end(clock: MockClock, host: Host) -> None:
    supervised = supervise(Lobe(OSError("no")).open)
    with trio.fail_after(0.1):
        async with supervised.supervised(host):
            pass


@pytest.mark.parametrize("later_on", [False, True])
async def test_strict_lets_errors_through(
    clock: MockClock, host: Host, monkeypatch: pytest.MonkeyPatch, later_on: bool
) -> None:
    monkeypatch.setenv("KWAAI_STRICT", "1")
    lobe = Lobe(None if later_on else OSError("crashed"))
    with pytest.RaisesGroup(OSError, flatten_subgroups=True):
        async with supervise(lobe.open).supervised(host):
            lobe.crash.set()
            await trio.sleep_forever()


async def test_a_role_says_what_it_is(clock: MockClock, host: Host) -> None:
    supervised = supervise(Lobe(OSError("no")).open)
    async with supervised.supervised(host):
        assert repr(supervised.role) == "<role of lobe lobe: failed>"


async def test_a_cancelled_node_closes_its_lobes(clock: MockClock, host: Host) -> None:
    lobes: Sequence[Lobe] = (Lobe(), Lobe())
    with trio.CancelScope() as scope:
        async with AsyncExitStack() as stack:
            for lobe in lobes:
                await stack.enter_async_context(supervise(lobe.open).supervised(host))
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert [lobe.closed for lobe in lobes] == [[1], [1]]


FOREIGN = """
from contextlib import asynccontextmanager
import trio
from kwaai_core import KwaaiError

class Foreign:
    def at_once(self):
        return {}["at once"]

    async def awaited(self):
        raise KeyError("awaited")

    @asynccontextmanager
    async def entered(self, early=False):
        async with trio.open_nursery():
            if early:
                raise KeyError("entered")
            yield self

    async def of_ours(self):
        raise KwaaiError("said on purpose")

@asynccontextmanager
async def open_(host):
    yield Foreign()
"""


def foreign() -> Supervised:
    names: dict[str, Any] = {"__name__": "foreign_lobe.roles"}
    exec(compile(FOREIGN, "/somewhere/foreign_lobe/roles.py", "exec"), names)
    return Supervised("lobe", Offer("lobe", names["open_"]), package="foreign_lobe")


async def test_a_bug_of_a_lobe_is_its_failure_and_says_where(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    supervised = foreign()

    async def enter(early: bool) -> None:
        async with supervised.role.entered(early) as value:
            await value.awaited()

    async with supervised.supervised(host):
        for call, said in (
            (supervised.role.awaited, "KeyError: 'awaited' at foreign_lobe/roles.py:11"),
            (partial(enter, True), "KeyError: 'entered' at foreign_lobe/roles.py:17"),
            (partial(enter, False), "KeyError: 'awaited' at foreign_lobe/roles.py:11"),
        ):
            with pytest.raises(LobeFailed) as caught:
                await call()
            assert str(caught.value) == f"the lobe “lobe” failed: {said}"
            assert caplog.messages.pop() == f"lobe lobe: {said}"
        with pytest.raises(LobeFailed, match=r"KeyError: 'at once' at foreign_lobe/roles\.py:8"):
            supervised.role.at_once()
        assert not [record for record in caplog.records if record.exc_info]
        assert supervised.state == "ready"


async def test_an_error_of_the_caller_is_not_the_lobes(host: Host) -> None:
    supervised = foreign()
    async with supervised.supervised(host):
        with pytest.raises(ExceptionGroup) as caught:
            async with supervised.role.entered():
                raise KeyError("the caller's")
        assert isinstance(caught.value.exceptions[0], KeyError)
        with pytest.raises(KwaaiError, match="said on purpose"):
            await supervised.role.of_ours()


async def test_strict_leaves_bugs_as_they_are(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KWAAI_STRICT", "1")
    supervised = foreign()
    async with supervised.supervised(host):
        with pytest.raises(KeyError):
            await supervised.role.awaited()
