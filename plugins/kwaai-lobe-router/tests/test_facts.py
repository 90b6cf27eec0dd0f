"""Announcements: what is written is read again, and nothing else is."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwaai_core import FrameError, NotVerified, Span
from kwaai_lobe_router.candidates import candidate
from kwaai_lobe_router.facts import (
    Batch,
    FastFacts,
    SlowFacts,
    provider_key,
    read_fast,
    read_slow,
    topic,
    write_fast,
    write_slow,
)
from kwaai_lobe_router.fields import MAX_BYTES, MAX_NS

DIGEST = "0f" * 32
SLOW = SlowFacts(
    digest=DIGEST,
    architecture="gemma3",
    blocks=18,
    width=640,
    units=(Span(0, 4), Span(4, 8), Span(12, 18)),
    fingerprint="ab12",
    exact=True,
    rows=7,
    chunk=128,
    cells=4096,
    dtypes=frozenset({"float32", "bfloat16"}),
)
FAST = FastFacts(
    digest=DIGEST,
    sessions=2,
    waiting=5,
    room=5000,
    batches=(Batch(1, (10, 20, 30)), Batch(4, (16, 32, 48))),
    row=(1, 2, 3),
    links={"me": 900, "another": 5},
)

times = st.integers(1, MAX_NS)


@st.composite
def slow_facts(draw: st.DrawFn) -> SlowFacts:
    blocks = draw(st.integers(1, 1000))
    borders = sorted(draw(st.sets(st.integers(0, blocks), min_size=2, max_size=20)))
    units = tuple(Span(lo, hi) for lo, hi in zip(borders[::2], borders[1::2], strict=False))
    return replace(
        SLOW,
        blocks=blocks,
        units=units,
        exact=draw(st.booleans()),
        width=draw(st.integers(1, 1 << 20)),
        cells=draw(st.integers(1, 1 << 32)),
    )


@given(slow_facts())
def test_slow_facts_come_back(slow: SlowFacts) -> None:
    assert read_slow(write_slow(slow)) == slow


@given(st.data(), slow_facts())
def test_fast_facts_come_back(data: st.DataObject, slow: SlowFacts) -> None:
    each = st.tuples(*[times] * len(slow.units))
    rows = sorted(data.draw(st.sets(st.integers(1, 4096), min_size=1, max_size=8)))
    fast = replace(
        FAST,
        batches=tuple(Batch(count, data.draw(each)) for count in rows),
        row=data.draw(each),
    )
    assert read_fast(write_fast(fast), slow) == fast


def test_a_record_has_one_form() -> None:
    written = write_slow(SLOW)
    assert written == write_slow(read_slow(written))
    assert written.startswith(b'{"architecture":"gemma3","blocks":18,"cells":4096,"chunk":128,')
    fields = json.loads(written)
    assert fields["units"] == [[0, 4], [4, 8], [12, 18]] and fields["price"] is None


WRONG_SLOW: list[tuple[str, Any]] = [
    ("digest", "0F" * 32),
    ("digest", 7),
    ("architecture", "two words"),
    ("architecture", "x" * 129),
    ("blocks", 0),
    ("blocks", 1001),
    ("blocks", True),
    ("blocks", 18.0),
    ("width", -1),
    ("units", []),
    ("units", [[0, 4], [3, 8]]),
    ("units", [[4, 8], [0, 4]]),
    ("units", [[0, 0]]),
    ("units", [[0, 19]]),
    ("units", [[-1, 4]]),
    ("units", [[0, 4, 8]]),
    ("units", [[0, True]]),
    ("units", [["0", 4]]),
    ("units", {"0": 4}),
    ("fingerprint", ""),
    ("fingerprint", None),
    ("exact", 1),
    ("rows", 4097),
    ("chunk", 0),
    ("cells", (1 << 32) + 1),
    ("dtypes", ["bfloat16"]),
    ("dtypes", "float32"),
    ("dtypes", ["float32", 3]),
    ("price", 0),
]


@pytest.mark.parametrize(("name", "value"), WRONG_SLOW)
def test_a_slow_fact_that_is_wrong_is_named(name: str, value: object) -> None:
    fields = json.loads(write_slow(SLOW)) | {name: value}
    with pytest.raises(NotVerified, match=f"“{name}”"):
        read_slow(json.dumps(fields).encode())


WRONG_FAST: list[tuple[str, Any]] = [
    ("digest", "1f" * 32),
    ("sessions", -1),
    ("waiting", "5"),
    ("room", 1 << 33),
    ("batches", []),
    ("batches", [[1, [1, 2]]]),
    ("batches", [[4, [1, 2, 3]], [1, [1, 2, 3]]]),
    ("batches", [[1, [1, 2, 3]], [1, [1, 2, 3]]]),
    ("batches", [[1, [1, 2, 0]]]),
    ("batches", [[1, [1, 2, MAX_NS + 1]]]),
    ("batches", [[count, [1, 2, 3]] for count in range(1, 10)]),
    ("row", [1, 2]),
    ("row", [1, 2, 3.5]),
    ("links", [["me", 3]]),
    ("links", {"me": -1}),
    ("links", {"": 1}),
    ("links", {f"p{n}": 1 for n in range(129)}),
]


@pytest.mark.parametrize(("name", "value"), WRONG_FAST)
def test_a_fast_fact_that_is_wrong_is_named(name: str, value: object) -> None:
    fields = json.loads(write_fast(FAST)) | {name: value}
    with pytest.raises(NotVerified, match=f"“{name}”"):
        read_fast(json.dumps(fields).encode(), SLOW)


@pytest.mark.parametrize("name", json.loads(write_slow(SLOW)))
def test_every_slow_fact_has_to_be_there(name: str) -> None:
    fields = json.loads(write_slow(SLOW))
    del fields[name]
    with pytest.raises(NotVerified, match=f"“{name}” of an announcement is missing"):
        read_slow(json.dumps(fields).encode())


def test_fields_and_types_of_a_later_version_are_left_out() -> None:
    fields = json.loads(write_slow(SLOW)) | {"colour": "blue"}
    fields["dtypes"].append("float4")
    assert read_slow(json.dumps(fields).encode()) == SLOW


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b"[" * MAX_BYTES,
        b'{"a":' * (MAX_BYTES // 5),
        b'{"blocks":1,"blocks":2}',
        b'{"blocks":NaN}',
        b'{"blocks":' + b"9" * 5000 + b"}",
        b" " * (MAX_BYTES + 1),
    ],
    ids=lambda body: repr(body[:12]),
)
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(NotVerified):
        read_slow(body)
    with pytest.raises(NotVerified):
        read_fast(body, SLOW)


words = st.text("az09 .–\x00", max_size=6)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@given(st.data(), st.sampled_from([True, False]))
def test_no_input_raises_anything_else(data: st.DataObject, slow: bool) -> None:
    fields = json.loads(write_slow(SLOW) if slow else write_fast(FAST))
    for name in data.draw(st.sets(st.sampled_from(sorted(fields)), max_size=4)):
        fields[name] = data.draw(anything)
    body = bytearray(json.dumps(fields).encode())
    if data.draw(st.booleans()):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_slow(bytes(body)) if slow else read_fast(bytes(body), SLOW)
    except NotVerified:
        pass


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    with pytest.raises(NotVerified):
        read_slow(body)


def test_what_is_too_long_is_not_written() -> None:
    units = tuple(Span(block, block + 1) for block in range(1000))
    many = tuple(Batch(rows, (MAX_NS,) * 1000) for rows in range(1, 9))
    assert read_slow(write_slow(replace(SLOW, blocks=1000, units=units))).units == units
    with pytest.raises(FrameError, match="too long"):
        write_fast(replace(FAST, batches=many, row=(MAX_NS,) * 1000))


def test_names_are_of_the_model() -> None:
    assert provider_key(DIGEST) == f"kwaai/spans/1/{DIGEST}"
    assert topic(DIGEST) != provider_key(DIGEST) != provider_key("1f" * 32)


def test_the_larger_word_on_a_link_counts() -> None:
    assert candidate("p", SLOW, FAST, rtt=100, me="me").link == 900
    assert candidate("p", SLOW, FAST, rtt=1000, me="me").link == 1000
    assert candidate("p", SLOW, FAST, rtt=100, me="nobody").link == 100


def test_a_candidate_is_as_fast_as_the_batch_that_it_would_be_in() -> None:
    known = candidate("p", SLOW, FAST, rtt=1, me="me")
    assert [unit.step for unit in known.units] == [16, 32, 48]
    assert [unit.row for unit in known.units] == [1, 2, 3]
    idle = replace(FAST, sessions=0, waiting=0)
    assert [unit.step for unit in candidate("p", SLOW, idle, rtt=1, me="me").units] == [10, 20, 30]
    crowd = replace(FAST, sessions=50)
    assert [unit.step for unit in candidate("p", SLOW, crowd, rtt=1, me="me").units] == [16, 32, 48]


def test_the_queue_is_what_waits_in_the_largest_batches() -> None:
    assert candidate("p", SLOW, FAST, rtt=1, me="me").queue == 2 * (16 + 32 + 48)
    idle = replace(FAST, waiting=0)
    assert candidate("p", SLOW, idle, rtt=1, me="me").queue == 0
    slow = replace(FAST, waiting=1 << 20, batches=(Batch(1, (MAX_NS,) * 3),))
    assert candidate("p", SLOW, slow, rtt=1, me="me").queue == MAX_NS


def test_the_room_is_a_session_s_and_no_more_than_there_is() -> None:
    assert candidate("p", SLOW, FAST, rtt=1, me="me").room == 4096
    assert candidate("p", SLOW, replace(FAST, room=12), rtt=1, me="me").room == 12
