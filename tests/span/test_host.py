"""The host's rules, in their order, and what it admits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kwaai_core.errors import FrameError
from kwaai_core.span.frames import FaultCode, Flags, Frame, Kind, Opening
from kwaai_core.testing.toy import ROW, ToyCache
from kwaai_core.types import Span
from tests.span.rigs import CHUNK, LIMITS, HostRig, code


@pytest.fixture
def rig() -> HostRig:
    rig = HostRig()
    rig.open()
    return rig


def opening(lo: int, hi: int, tokens: int = 9, sender: str = "", target: str = "") -> Frame:
    payload = Opening(Span(lo, hi), tokens, sender, target).encode()
    return Frame(Kind.OPEN, 2, 1, payload=payload)


def test_room_that_is_reserved_is_for_its_peer(rig: HostRig) -> None:
    free = rig.host.free
    rig.host.reserve({"bob": free})
    (refused,) = rig.give(opening(4, 8))
    assert code([refused]) is FaultCode.CAPACITY
    (opened,) = rig.give(opening(4, 8), "bob")
    assert opened.kind is Kind.OPENED
    rig.host.reserve({"bob": free - 2})
    (opened,) = rig.give(opening(4, 8)._replace(session=3))
    assert opened.kind is Kind.OPENED
    rig.host.reserve({})
    assert rig.host.free == free - 2


# -- steps


def test_steps_are_answered_in_order_with_their_times(rig: HostRig) -> None:
    assert rig.give(rig.step(0, 0, 3)) == rig.give(rig.step(1, 3, 1)) == []
    first, second = rig.compute()
    assert (first.kind, first.step, first.position, first.rows) == (Kind.RESULT, 0, 0, 3)
    assert (second.step, second.position, second.rows) == (1, 3, 1)
    assert (first.waited, first.computed, len(first.payload)) == (1000, 2000, 3 * ROW)
    assert first.flags == Flags.FLOAT32


def test_a_silent_step_is_answered_without_states(rig: HostRig) -> None:
    rig.give(rig.step(0, 0, 3)._replace(flags=Flags.FLOAT32 | Flags.SILENT))
    (result,) = rig.compute()
    assert result.flags == Flags.FLOAT32 | Flags.SILENT and result.payload == b""


def test_of_a_step_whose_last_row_is_wanted_that_is_the_answer(rig: HostRig) -> None:
    rig.give(rig.step(0, 0, 3))
    (whole,) = rig.compute()
    rig.fence(2)
    last = Flags.FLOAT32 | Flags.LAST
    assert rig.give(rig.step(0, 0, 3, epoch=2)._replace(flags=last)) == []  # it is no copy
    (result,) = rig.compute()
    assert (result.rows, result.flags) == (3, last)
    assert result.payload == whole.payload[-ROW:]
    assert rig.give(rig.step(0, 0, 3, epoch=2)._replace(flags=last)) == [result]


def test_a_step_of_another_epoch_is_dropped(rig: HostRig) -> None:
    rig.fence(3)
    assert rig.give(rig.step(0, 0, 1, epoch=2)) == rig.give(rig.step(0, 0, 1, epoch=4)) == []
    assert rig.compute() == []


def test_a_step_over_another_link_of_the_same_peer_is_dropped(rig: HostRig) -> None:
    rig.host.attach("ann 2", "ann")
    assert rig.give(rig.step(0, 0, 1), "ann 2") == rig.compute() == []


def test_the_same_step_again_is_answered_from_memory(rig: HostRig) -> None:
    rig.give(rig.step(0, 0, 3))
    (first,) = rig.compute()
    (again,) = rig.give(rig.step(0, 0, 3))
    assert again == first
    assert rig.compute() == []


def test_a_silent_copy_of_a_step_needs_no_states(rig: HostRig) -> None:
    rig.give(rig.step(0, 0, 3))
    rig.compute()
    (again,) = rig.give(rig.step(0, 0, 3)._replace(flags=Flags.FLOAT32 | Flags.SILENT))
    assert again.payload == b"" and again.flags & Flags.SILENT


def test_what_was_silent_is_computed_again_when_its_output_is_wanted(rig: HostRig) -> None:
    rig.give(rig.step(0, 0, 3)._replace(flags=Flags.FLOAT32 | Flags.SILENT))
    rig.compute()
    rig.fence(2)
    assert rig.give(rig.step(0, 0, 3, epoch=2)) == []
    (result,) = rig.compute()
    assert len(result.payload) == 3 * ROW


def test_copies_of_what_waits_or_is_older_change_nothing(rig: HostRig) -> None:
    for number in range(3):
        rig.give(rig.step(number, number, 1))
    rig.give(rig.step(1, 1, 1))  # waits
    session, _ = rig.host.ready()[0]
    rig.host.start(session)
    rig.give(rig.step(0, 0, 1))  # is computed
    rig.host.finish(session, rig.cache.run(session), waited=0, computed=0)
    assert [frame.step for frame in rig.compute()] == [1, 2]
    assert rig.give(rig.step(0, 0, 1)) == []  # is older than the last
    assert rig.give(rig.step(3, 3, 1)) == []
    assert [frame.step for frame in rig.compute()] == [3]


def test_an_old_answer_is_not_given_for_what_is_computed_anew(rig: HostRig) -> None:
    """After a replay from the beginning the last answer stands for rows that are cut off."""
    for number in range(3):
        rig.give(rig.step(number, number, 1))
    rig.compute()
    rig.fence(2)
    assert [rig.give(rig.step(number, number, 1, epoch=2)) for number in range(3)] == [[], [], []]
    assert [frame.step for frame in rig.compute()] == [0, 1, 2]


def test_other_tokens_before_a_step_need_a_replay(rig: HostRig) -> None:
    rig.give(rig.step(0, 0, 4))
    rig.compute()
    rig.tags.extend([9])
    other = rig.step(1, 4, 1)
    assert code(rig.give(other._replace(payload=bytes(8) + other.payload[8:]))) is (
        FaultCode.NEED_REPLAY
    )
    (fenced,) = rig.fence(2)
    assert fenced.position == 0 and fenced.payload == b""


def test_other_tokens_while_one_is_computed_leave_nothing_of_it(rig: HostRig) -> None:
    rig.give(rig.step(0, 0, 4))
    session, _ = rig.host.ready()[0]
    rig.host.start(session)
    other = rig.step(1, 4, 1)
    rig.give(other._replace(payload=bytes(8) + other.payload[8:]))
    rig.host.finish(session, rig.cache.run(session), waited=0, computed=0)
    rig.fence(2)
    assert rig.give(rig.step(0, 0, 4, epoch=2)) == []  # not the answer of what is cut off
    assert len(rig.compute()) == 1
    assert len(rig.cache.rows[4, session.stream]) == 4


def test_a_step_beyond_the_end_is_told_where_that_is(rig: HostRig) -> None:
    rig.give(rig.step(0, 0, 4))
    (fault,) = rig.give(rig.step(2, 9, 1))
    assert (fault.rows, fault.position, fault.step) == (FaultCode.NEED_REPLAY, 4, 2)


def test_a_step_of_no_session_needs_a_replay_from_the_start(rig: HostRig) -> None:
    (fault,) = rig.give(rig.step(0, 0, 1, session=9))
    assert (fault.rows, fault.position, fault.session) == (FaultCode.NEED_REPLAY, 0, 9)


def test_going_back_cuts_off_what_was_there(rig: HostRig) -> None:
    rig.give(rig.step(0, 0, 4))
    rig.give(rig.step(1, 4, 4))
    rig.compute()
    rig.give(rig.step(2, 6, 1))
    (result,) = rig.compute()
    rig.give(rig.step(3, 0, 7))
    (whole,) = rig.compute()
    assert whole.payload[-ROW:] == result.payload


def test_going_back_into_what_waits_is_not_held_before_it_is_computed(rig: HostRig) -> None:
    rig.give(rig.step(0, 0, 4))
    rig.give(rig.step(1, 2, 1))  # in place of the third row and the fourth
    session, _ = rig.host.ready()[0]
    rig.host.start(session)
    rig.host.finish(session, rig.cache.run(session), waited=0, computed=0)
    (fenced,) = rig.fence(2)
    assert fenced.position == 2 and fenced.payload == rig.tags.at(2)


def test_going_back_takes_the_place_of_what_waits_behind_it(rig: HostRig) -> None:
    for number, position in enumerate([0, 2, 4]):
        rig.give(rig.step(number, position, 2))
    rig.give(rig.step(3, 2, 1))
    assert [frame.step for frame in rig.compute()] == [0, 3]


@pytest.mark.parametrize(
    ("rows", "position"),
    [(CHUNK + 1, 0), (1, 100), (4, 97)],
    ids=["too many rows", "no room left", "no room for all"],
)
def test_a_step_that_is_not_admitted_is_refused(rig: HostRig, rows: int, position: int) -> None:
    for number, at in enumerate(range(0, position, 10)):
        rig.give(rig.step(number, at, min(10, position - at)))
        rig.compute()
    assert code(rig.give(rig.step(99, position, rows))) is FaultCode.REQUEST


def test_more_steps_than_may_wait_are_refused(rig: HostRig) -> None:
    for number in range(LIMITS.window):
        assert rig.give(rig.step(number, number, 1)) == []
    assert code(rig.give(rig.step(99, LIMITS.window, 1))) is FaultCode.REQUEST
    assert len(rig.compute()) == LIMITS.window


@pytest.mark.parametrize("value", [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff"], ids=["nan", "inf"])
def test_states_that_are_not_finite_are_refused(rig: HostRig, value: bytes) -> None:
    step = rig.step(0, 0, 2)
    assert code(rig.give(step._replace(payload=step.payload[:-4] + value))) is FaultCode.REQUEST
    assert rig.compute() == []


def test_sessions_take_turns_and_do_not_touch_each_other(rig: HostRig) -> None:
    rig.open(2, link="bob")
    rig.give(rig.step(0, 0, 4))
    rig.now = 1.0
    rig.give(rig.step(0, 0, 4, session=2), "bob")
    assert [session.number for session, _ in rig.host.ready()] == [1, 2]
    first, second = rig.compute()
    assert first.payload == second.payload


# -- the past is forgotten, or the engine fails


class ForgetfulCache(ToyCache):
    def truncate(self, span: Span, stream: int, length: int) -> bool:
        return super().truncate(span, stream, length if not length else 0) and not length


def test_a_cache_that_forgets_needs_a_replay(rig: HostRig) -> None:
    rig = HostRig(cache=ForgetfulCache())
    rig.open()
    rig.give(rig.step(0, 0, 4))
    rig.compute()
    rig.give(rig.step(1, 2, 1))
    (fault,) = rig.compute()
    assert (fault.rows, fault.position, fault.step) == (FaultCode.NEED_REPLAY, 0, 1)
    rig.fence(2)
    rig.give(rig.step(0, 0, 4, epoch=2))
    (result,) = rig.compute()
    assert result.kind is Kind.RESULT


def test_a_step_that_fails_is_the_hosts_fault_and_leaves_nothing(rig: HostRig) -> None:
    rig.give(rig.step(0, 0, 4))
    rig.give(rig.step(1, 4, 4))
    session, _ = rig.host.ready()[0]
    rig.host.start(session)
    rig.sent.clear()
    rig.host.fail(session, "out of memory")
    (fault,) = [frame for _, frame in rig.sent]
    assert (fault.rows, fault.step, fault.payload) == (FaultCode.HOST, 0, b"out of memory")
    assert rig.compute() == []
    (fenced,) = rig.fence(2)
    assert fenced.position == 0


def test_a_failure_that_nobody_waits_for_is_not_told(rig: HostRig) -> None:
    rig.give(rig.step(0, 0, 4))
    session, _ = rig.host.ready()[0]
    rig.host.start(session)
    assert rig.fence(2) == []
    rig.sent.clear()
    rig.host.fail(session, "out of memory")
    (fenced,) = [frame for _, frame in rig.sent]
    assert (fenced.kind, fenced.position) == (Kind.FENCED, 0)
    rig.give(rig.step(0, 0, 4, epoch=2))
    session, _ = rig.host.ready()[0]
    rig.host.start(session)
    rig.host.detach("ann", 0.0)
    rig.sent.clear()
    rig.host.fail(session, "out of memory")
    assert rig.sent == []


def test_finishing_what_was_not_begun_is_a_bug_of_the_driver(rig: HostRig) -> None:
    (session,) = rig.host.sessions
    with pytest.raises(RuntimeError, match="computes nothing"):
        rig.host.finish(session, b"", waited=0, computed=0)


# -- fences


def test_a_fence_drops_what_waits_and_says_what_is_held(rig: HostRig) -> None:
    rig.give(rig.step(0, 0, 4))
    rig.compute()
    rig.give(rig.step(1, 4, 4))
    (fenced,) = rig.fence(2)
    assert (fenced.kind, fenced.epoch, fenced.position) == (Kind.FENCED, 2, 4)
    assert fenced.payload == rig.tags.at(4)
    assert rig.compute() == []
    (fault,) = rig.give(rig.step(2, 8, 1, epoch=2))  # what waited is not there
    assert (fault.rows, fault.position) == (FaultCode.NEED_REPLAY, 4)


def test_a_fence_waits_for_what_is_computed_and_its_answer_is_kept(rig: HostRig) -> None:
    rig.give(rig.step(0, 0, 4))
    session, _ = rig.host.ready()[0]
    rig.host.start(session)
    assert rig.fence(2) == rig.fence(2) == []
    assert rig.compute() == []
    rig.host.finish(session, rig.cache.run(session), waited=0, computed=0)
    (fenced,) = [frame for _, frame in rig.sent]
    assert (fenced.kind, fenced.position) == (Kind.FENCED, 4)
    (result,) = rig.give(rig.step(0, 0, 4, epoch=2))
    assert result.kind is Kind.RESULT and result.epoch == 2 and result.payload
    assert rig.compute() == []


def test_a_copy_of_a_fence_loses_nothing(rig: HostRig) -> None:
    rig.fence(2)
    rig.give(rig.step(0, 0, 4, epoch=2))
    assert rig.fence(2) == []
    (result,) = rig.compute()
    assert result.kind is Kind.RESULT
    (fenced,) = rig.fence(2)
    assert fenced.position == 4
    rig.give(rig.step(1, 4, 1, epoch=2))
    assert rig.give(rig.step(0, 0, 4, epoch=2)) == [result]
    assert [frame.step for frame in rig.compute()] == [1]


def test_an_old_fence_is_dropped(rig: HostRig) -> None:
    rig.fence(5)
    assert rig.fence(4) == []
    assert rig.host.sessions[0].epoch == 5


def test_a_fence_of_no_session_says_so(rig: HostRig) -> None:
    (fault,) = rig.give(Frame(Kind.FENCE, 9, 3))
    assert (fault.rows, fault.position, fault.epoch) == (FaultCode.NEED_REPLAY, 0, 3)


def test_an_owner_comes_back_over_a_new_link(rig: HostRig) -> None:
    rig.give(rig.step(0, 0, 4))
    rig.compute()
    rig.host.attach("ann 2", "ann")
    rig.host.detach("ann", 1.0)
    (fenced,) = rig.fence(2, "ann 2")
    assert fenced.position == 4
    rig.now = 100.0
    rig.host.tick(rig.now)
    assert rig.give(rig.step(1, 4, 1, epoch=2), "ann 2") == []
    assert [link for link, _ in rig.sent] == []
    rig.compute()
    assert [link for link, _ in rig.sent] == ["ann 2"]


def test_a_link_that_was_left_changes_nothing(rig: HostRig) -> None:
    """The old link of an owner who fenced over a new one is still open, and brings old frames."""
    rig.host.attach("ann 2", "ann")
    rig.fence(2, "ann 2")
    assert rig.fence(2, "ann") == rig.fence(1, "ann") == []
    assert rig.give(rig.step(0, 0, 1), "ann") == []
    assert rig.give(Frame(Kind.CLOSE, 1, 1), "ann") == []
    assert rig.give(opening(4, 8)._replace(session=1, epoch=2), "ann") == []
    assert rig.host.sessions[0].link == "ann 2"
    rig.host.detach("ann", 0.0)
    assert rig.give(rig.step(0, 0, 1, epoch=2), "ann 2") == []
    assert [frame.epoch for frame in rig.compute()] == [2]


def test_a_link_that_is_gone_is_not_heard(rig: HostRig) -> None:
    rig.host.detach("ann", 0.0)
    assert rig.give(rig.step(0, 0, 1)) == rig.give(Frame(Kind.CLOSE, 1, 9)) == []
    assert rig.give(opening(4, 8)) == []
    assert len(rig.host.sessions) == 1


# -- opening


@pytest.mark.parametrize(
    "frame",
    [
        opening(0, 4),
        opening(4, 5),
        opening(5, 8),
        opening(4, 2**31 - 1),
        opening(4, 8, 10_000),
        opening(4, 8, sender="carl"),
        opening(4, 8, target="carl"),
        Frame(Kind.OPEN, 2, 1, payload=b"?"),
    ],
    ids=["foreign", "half", "half too", "endless", "too long", "ring", "ring too", "garbage"],
)
def test_an_opening_of_what_is_not_held_is_refused(rig: HostRig, frame: Frame) -> None:
    assert code(rig.give(frame)) is FaultCode.REQUEST
    assert len(rig.host.sessions) == 1


@pytest.mark.parametrize(("lo", "hi"), [(4, 6), (6, 8), (4, 8)])
def test_any_run_of_units_is_served(rig: HostRig, lo: int, hi: int) -> None:
    (opened,) = rig.give(opening(lo, hi))
    assert opened.kind is Kind.OPENED


def test_units_may_come_later(rig: HostRig) -> None:
    rig.host.hold([Span(0, 4)])
    assert [frame.kind for frame in rig.give(opening(0, 4))] == [Kind.OPENED]


def test_one_peer_takes_no_more_than_its_share(rig: HostRig) -> None:
    rig.open(2)
    rig.open(3)
    (fault,) = rig.give(opening(4, 8)._replace(session=4))
    assert (fault.rows, fault.position) == (FaultCode.CAPACITY, 1000)
    rig.open(5, link="bob")
    assert rig.host.free == 0
    assert code(rig.give(opening(4, 8)._replace(session=6), "bob")) is FaultCode.CAPACITY


def test_what_a_lost_link_left_makes_room_for_its_owner(rig: HostRig) -> None:
    rig.open(2)
    rig.now = 1.0
    rig.open(3)
    rig.host.detach("ann", 2.0)
    rig.host.attach("ann", "ann")
    rig.open(4)
    assert sorted(session.number for session in rig.host.sessions) == [2, 3, 4]


def test_a_copy_of_an_opening_is_answered_again_and_loses_nothing(rig: HostRig) -> None:
    rig.open()
    rig.give(rig.step(0, 0, 1))
    copy = opening(4, 8)._replace(session=1)
    assert rig.give(copy) == []
    assert len(rig.compute()) == 1
    assert rig.give(copy) == rig.give(copy._replace(epoch=0)) == []


def test_an_opening_of_a_later_epoch_begins_anew(rig: HostRig) -> None:
    rig.give(rig.step(0, 0, 4))
    rig.compute()
    rig.open(epoch=2)
    (fenced,) = rig.fence(3)
    assert fenced.position == 0 and not any(rig.cache.rows.values())


def test_what_is_computed_has_its_room_until_its_end(rig: HostRig) -> None:
    rig.give(rig.step(0, 0, 4))
    session, _ = rig.host.ready()[0]
    rig.host.start(session)
    assert code(rig.give(opening(4, 8)._replace(session=1, epoch=2))) is FaultCode.CAPACITY
    assert rig.host.free == LIMITS.streams - 1
    assert code(rig.fence(3)) is FaultCode.NEED_REPLAY
    rig.sent.clear()
    rig.host.finish(session, rig.cache.run(session), waited=0, computed=0)
    assert rig.sent == [] and rig.host.free == LIMITS.streams
    assert not any(rig.cache.rows.values())


# -- closing


def test_closing_frees_at_once(rig: HostRig) -> None:
    rig.give(rig.step(0, 0, 4))
    rig.compute()
    assert rig.give(Frame(Kind.CLOSE, 1, 0)) == [] and rig.host.sessions
    assert rig.give(Frame(Kind.CLOSE, 1, 1)) == [] and not rig.host.sessions
    assert rig.host.free == LIMITS.streams and not any(rig.cache.rows.values())
    assert rig.give(Frame(Kind.CLOSE, 1, 1)) == []


def test_idle_sessions_expire(rig: HostRig) -> None:
    rig.host.tick(LIMITS.idle)
    assert rig.host.sessions
    rig.host.tick(LIMITS.idle + 1)
    assert not rig.host.sessions


def test_what_is_used_does_not_expire(rig: HostRig) -> None:
    rig.now = 500.0
    rig.give(rig.step(0, 0, 4))
    rig.host.tick(2000.0)
    session, _ = rig.host.ready()[0]
    rig.host.start(session)
    rig.host.tick(2000.0)
    assert rig.host.sessions
    rig.sent.clear()
    rig.host.finish(session, rig.cache.run(session), waited=0, computed=0)
    assert [frame.kind for _, frame in rig.sent] == [Kind.RESULT]
    rig.host.tick(2000.0)
    assert not rig.host.sessions


def test_orphans_expire_sooner(rig: HostRig) -> None:
    rig.open(2, link="bob")
    rig.give(rig.step(0, 0, 4))
    rig.host.detach("ann", 10.0)
    assert rig.compute() == []
    rig.host.tick(10 + LIMITS.orphan)
    assert len(rig.host.sessions) == 2
    rig.host.tick(11 + LIMITS.orphan)
    assert [session.number for session in rig.host.sessions] == [2]


def test_what_is_computed_for_a_link_that_is_gone_is_kept_for_its_owner(rig: HostRig) -> None:
    rig.give(rig.step(0, 0, 4))
    session, _ = rig.host.ready()[0]
    rig.host.start(session)
    rig.host.detach("ann", 0.0)
    rig.sent.clear()
    rig.host.finish(session, rig.cache.run(session), waited=0, computed=0)
    assert rig.sent == []
    rig.host.attach("ann 2", "ann")
    (fenced,) = rig.fence(2, "ann 2")
    assert fenced.position == 4


def test_a_fence_over_a_link_that_is_gone_since_is_not_answered(rig: HostRig) -> None:
    rig.give(rig.step(0, 0, 4))
    session, _ = rig.host.ready()[0]
    rig.host.start(session)
    rig.fence(2)
    rig.host.detach("ann", 0.0)
    rig.host.finish(session, rig.cache.run(session), waited=0, computed=0)
    assert rig.sent == []


def test_a_host_that_leaves_says_so_and_admits_nobody() -> None:
    rig = HostRig()
    rig.open()
    rig.sent.clear()
    rig.host.drain()
    assert [(link, frame.kind) for link, frame in rig.sent] == [
        ("ann", Kind.DRAIN),
        ("bob", Kind.DRAIN),
    ]
    assert code(rig.give(opening(4, 8))) is FaultCode.CAPACITY
    assert rig.give(rig.step(0, 0, 4)) == [] and len(rig.compute()) == 1
    rig.sent.clear()
    rig.host.attach("carl", "carl")
    assert [(link, frame.kind) for link, frame in rig.sent] == [("carl", Kind.DRAIN)]


# -- foreign hands


@pytest.mark.parametrize("kind", [Kind.OPEN, Kind.STEP, Kind.FENCE, Kind.CLOSE])
def test_a_session_is_its_owners_alone(rig: HostRig, kind: Kind) -> None:
    frame = rig.step(0, 0, 1, epoch=9)._replace(kind=kind)
    assert code(rig.give(frame, "bob")) is FaultCode.REQUEST
    assert rig.host.sessions[0].epoch == 1 and rig.compute() == []


@pytest.mark.parametrize("kind", sorted({*Kind} - {Kind.OPEN, Kind.STEP, Kind.FENCE, Kind.CLOSE}))
def test_an_owner_does_not_talk_like_a_host(rig: HostRig, kind: Kind) -> None:
    with pytest.raises(FrameError, match=Kind(kind).name):
        rig.give(Frame(kind, 1, 1))


def test_the_room_of_one_opening_is_all_it_gets() -> None:
    rig = HostRig(replace(LIMITS, cells=8))
    rig.open(room=8)
    rig.give(rig.step(0, 0, 8))
    assert code(rig.give(rig.step(1, 8, 1))) is FaultCode.REQUEST
