"""Tags, journals, recordings, and the limits of waiting."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwaai_core.span import tags as tagging
from kwaai_core.span.frames import TAG_SIZE, Frame, Kind
from kwaai_core.span.hosted import all_finite
from kwaai_core.span.journal import Budget, Journal
from kwaai_core.span.recording import Recording, Shape
from kwaai_core.span.tags import PrefixTags, as_numbers
from kwaai_core.span.watch import SILENCE_SECONDS, Pace, Silence
from kwaai_core.testing.toy import embed
from kwaai_core.types import Span

# -- tags


def tagged(tokens: list[int], secret: bytes = b"secret") -> PrefixTags:
    tags = PrefixTags(secret)
    tags.extend(tokens)
    return tags


def test_equal_prefixes_have_equal_tags_and_others_have_not() -> None:
    one, other = tagged([1, 2, 3, 4]), tagged([1, 2, 9, 4])
    assert len(one) == 4
    assert [one.at(n) == other.at(n) for n in range(5)] == [True, True, True, False, False]


def test_tokens_that_come_later_are_tagged_as_if_they_had_come_at_once() -> None:
    later = tagged([1, 2])
    later.extend([3])
    assert later.of(0, 3) == tagged([1, 2, 3]).of(0, 3)


def test_another_secret_tells_nothing() -> None:
    assert tagged([], b"one").at(0) != tagged([], b"other").at(0)
    assert PrefixTags().at(0) != PrefixTags().at(0)


def test_a_step_carries_the_tag_before_it_and_one_after_each_row() -> None:
    tags = tagged([5, 6, 7, 8])
    assert tags.of(1, 2) == tags.at(1) + tags.at(2) + tags.at(3)
    assert as_numbers(tags.of(1, 2))[2] == struct.unpack("<Q", tags.at(3))[0]


def test_tags_are_the_same_numbers_on_a_big_endian_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tagging, "byteorder", "big")
    assert as_numbers(bytes(range(TAG_SIZE)))[0] == int.from_bytes(range(TAG_SIZE), "big")


# -- journals


def test_a_journal_keeps_within_the_budget() -> None:
    budget = Budget(100)
    journal = Journal(budget)
    journal.put(0, bytes(30))
    journal.put(1, bytes(30))
    journal.put(1, bytes(40))
    journal.passed(2)
    assert budget.used == 70 and not budget.exceeded
    assert journal.first_missing(0, 2) == 2 and journal.first_missing(0, 3) == 2
    journal.close()
    assert budget.used == 0 and journal.get(0) is None


def test_a_journal_without_room_keeps_only_what_is_on_its_way() -> None:
    budget = Budget(50)
    journal = Journal(budget)
    for step in range(3):
        journal.put(step, bytes(30))
    journal.passed(1)
    assert [journal.get(step) is not None for step in range(3)] == [False, True, True]
    assert journal.first_missing(0, 3) == 0
    journal.passed(3)
    journal.put(3, bytes(1))
    journal.passed(4)  # there is room again, but its beginning is gone
    assert budget.used == 0 and journal.get(3) is None


def test_all_journals_share_one_budget() -> None:
    budget = Budget(50)
    one, other = Journal(budget), Journal(budget)
    one.put(0, bytes(40))
    one.passed(1)
    other.put(0, bytes(40))
    other.passed(1)
    assert one.get(0) is not None and other.get(0) is None
    other.remove(5)
    assert budget.used == 40


# -- recordings


def recorded(*parts: list[int], chunk: int = 4) -> Recording:
    recording = Recording(embed, PrefixTags(b"secret"))
    for part in parts:
        recording.add(part, chunk)
    return recording


def test_steps_are_cut_at_multiples_of_the_chunk() -> None:
    recording = recorded([1, 2, 3, 4, 5, 6], [7], [8, 9, 10])
    shapes = [recording[step] for step in range(len(recording))]
    assert shapes == [
        Shape(0, 4, False),
        Shape(4, 2, True),
        Shape(6, 1, True),
        Shape(7, 1, False),
        Shape(8, 2, True),
    ]
    assert recording.states(4, 3) == embed([5, 6, 7])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 9))
def test_steps_cover_all_tokens_whatever_their_cut(lengths: list[int], chunk: int) -> None:
    recording = recorded(*([7] * length for length in lengths), chunk=chunk)
    at, asked = 0, 0
    for step in range(len(recording)):
        position, rows, logits = recording[step]
        assert position == at and 0 < rows <= chunk - position % chunk
        at += rows
        asked += logits
    assert (at, asked) == (sum(lengths), len(lengths))


def test_what_a_host_holds_counts_in_whole_steps() -> None:
    recording = recorded([1, 2, 3, 4, 5, 6])
    tags = PrefixTags(b"secret")
    tags.extend([1, 2, 3, 4, 5, 6])

    def held(length: int, tag: bytes) -> int:
        return recording.held(Frame(Kind.FENCED, position=length, payload=tag))

    assert [held(n, tags.at(n)) for n in range(7)] == [0, 0, 0, 0, 1, 1, 2]
    assert held(6, tags.at(5)) == held(6, b"") == held(7, b"") == held(2**32 - 1, b"") == 0


# -- limits of waiting


def test_silence_is_found_out_after_its_limit() -> None:
    silence = Silence(5.0)
    asked = [5 + tenth / 10 for tenth in range(1, 12)]
    assert [silence.lost(now) for now in asked] == [False] * 10 + [True]


def test_whoever_is_heard_is_not_silent() -> None:
    silence = Silence(0.0)
    for tenth in range(1, 50):
        silence.heard(tenth / 10)
        assert not silence.lost(tenth / 10 + 0.09)


def test_a_pause_of_the_asker_is_not_the_peers() -> None:
    silence = Silence(0.0)
    assert not silence.lost(0.9)
    silence.heard(1.0)
    assert not silence.lost(100.0)
    silence.heard(100.05)
    assert not silence.lost(100.1)


def test_an_asker_who_pauses_often_finds_out_too() -> None:
    silence = Silence(0.0)
    found = [silence.lost(now * 2 * SILENCE_SECONDS) for now in range(1, 5)]
    assert found == [False, False, True, True]


def test_a_step_is_slow_by_what_is_usual() -> None:
    pace = Pace(rtt=0.05)
    assert pace.limit(1) == pace.limit(64) == 30.0
    for _ in range(200):
        pace.observe(1, 0.1)
        pace.observe(10, 0.2)
    assert pace.limit(1) == pytest.approx(0.45)
    assert pace.limit(10) == pytest.approx(0.85)
    assert pace.limit(2) == 0.25
    assert pace.limit(10_000) == 30.0


@pytest.mark.parametrize("steps", [10, 99, 128])
def test_a_slow_step_among_others_does_not_count(steps: int) -> None:
    pace = Pace()
    for number in range(steps):
        pace.observe(1, 10.0 if number == 5 else 0.1)
    assert pace.limit(1) == pytest.approx(0.4)


def test_who_crawls_from_the_first_step_on_is_slow_by_what_it_says() -> None:
    pace = Pace.told(Span(2, 6), 0.01, {Span(0, 2): 9.0, Span(2, 4): 0.1, Span(4, 6): 0.2})
    assert pace.limit(1) == pytest.approx(1.21)
    assert pace.limit(64) == 30.0
    for _ in range(3):
        pace.observe(1, 8.0)
    assert pace.limit(1) == pytest.approx(4 * 0.3 * 1.25**3 + 0.01)
    assert Pace.told(Span(2, 6), 0.01, {Span(0, 2): 9.0}).limit(1) == 30.0


def test_what_is_usual_of_lone_rows_grows_step_by_step() -> None:
    pace = Pace()
    for seconds in [0.005] * 128 + [0.5, 0.6, 0.4]:
        pace.observe(1, seconds)
    assert pace.limit(1) == 0.25
    for _ in range(128):
        pace.observe(1, 0.4)
    assert pace.limit(1) == pytest.approx(1.6)


def test_who_says_that_it_takes_no_time_is_not_slow_for_ever() -> None:
    pace = Pace(lone=0.0)
    for _ in range(60):
        pace.observe(1, 0.4)
    assert pace.limit(1) == pytest.approx(1.6)


def test_an_opening_is_slow_by_what_is_usual() -> None:
    pace = Pace(rtt=0.5)
    assert pace.opening_limit() == SILENCE_SECONDS
    pace.opened(0.1)
    assert pace.opening_limit() == SILENCE_SECONDS
    pace.opened(0.5)
    assert pace.opening_limit() == pytest.approx(2.5)


# -- numbers


@given(st.lists(st.floats(width=32), max_size=20))
def test_only_numbers_are_finite(values: list[float]) -> None:
    data = struct.pack(f"<{len(values)}f", *values)
    finite = all(abs(value) < float("inf") for value in values)
    assert all_finite(memoryview(data)) is finite


def test_the_largest_numbers_are_finite_together() -> None:
    largest = struct.pack("<I", 0x7F7FFFFF)
    assert all_finite(memoryview(largest * 100_000))
    assert not all_finite(memoryview(struct.pack("<3f", float("inf"), 1, -float("inf"))))
