"""What a node holds for others, and whom it knows: bounded, whatever comes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwaai_core.testing.identities import FakeIdentity
from kwaai_lobe_libp2p.rates import Rates
from kwaai_lobe_libp2p.sequence import Sequence
from kwaai_lobe_libp2p.shelf import Limits, Shelf
from kwaai_lobe_libp2p.statements import Statement, distance, position_of, seal
from kwaai_lobe_libp2p.table import STALE, Table

PEERS = [FakeIdentity(n) for n in range(60)]
HERE = position_of(PEERS[0].peer_id)
NOW = 1_800_000_000.0


def made(
    peer: int, name: str, sequence: int = 1, *, provider: bool = False, life: float = 60.0
) -> Statement:
    kind = "provider" if provider else "record"
    return seal(PEERS[peer], kind, name, b"", sequence=sequence, expires=NOW + life)


def test_only_the_newer_replaces() -> None:
    shelf = Shelf(HERE)
    second = made(1, "x", 2)
    assert shelf.hold(second, NOW) is second
    assert shelf.hold(made(1, "x", 1), NOW) is second
    assert shelf.hold(made(1, "x", 2), NOW) is second
    third = made(1, "x", 3)
    assert shelf.hold(third, NOW) is third
    assert list(shelf.at(third.key, NOW)) == [third]
    assert len(shelf) == 1 and shelf.size == len(third.sealed)


def test_the_expired_are_gone() -> None:
    shelf = Shelf(HERE)
    short, long = made(1, "x", provider=True), made(2, "x", provider=True, life=600)
    shelf.hold(short, NOW)
    shelf.hold(long, NOW)
    assert list(shelf.at(short.key, NOW + 59)) == [short, long]
    assert list(shelf.at(short.key, NOW + 61)) == [long]
    assert len(shelf) == 1


def test_one_subject_has_a_share() -> None:
    shelf = Shelf(HERE, Limits(statements_of_one=3))
    assert [shelf.hold(made(1, f"{n}"), NOW) is not None for n in range(5)] == [True] * 3 + [
        False
    ] * 2
    assert shelf.hold(made(2, "x"), NOW) is not None
    assert shelf.hold(made(1, "0", 2), NOW) is not None
    # what has expired makes room
    assert shelf.hold(made(1, "new", life=600), NOW + 61) is not None
    assert len(shelf) == 1


def test_one_key_has_a_share() -> None:
    shelf = Shelf(HERE, Limits(statements_of_key=2))
    held = [shelf.hold(made(n, "x", provider=True), NOW) is not None for n in range(4)]
    assert held == [True, True, False, False]
    assert shelf.hold(made(1, "x", 2, provider=True), NOW) is not None


def test_the_farthest_make_room() -> None:
    shelf = Shelf(HERE, Limits(statements=32))
    statements = [made(n, "x") for n in range(60)]
    for statement in statements:
        shelf.hold(statement, NOW)
    assert len(shelf) <= 32
    nearest = min(statements, key=lambda one: distance(one.key, HERE))
    assert shelf.at(nearest.key, NOW)


@given(
    st.lists(
        st.tuples(
            st.integers(1, 6),
            st.sampled_from("abcdef"),
            st.integers(0, 5),
            st.booleans(),
            st.floats(-5, 50),
        ),
        max_size=60,
    )
)
def test_it_stays_within_its_limits(puts: list[tuple[int, str, int, bool, float]]) -> None:
    limits = Limits(
        statements=12, size=6000, statements_of_one=4, size_of_one=2500, statements_of_key=3
    )
    shelf = Shelf(HERE, limits)
    for step, (peer, name, sequence, provider, life) in enumerate(puts):
        shelf.hold(made(peer, name, sequence, provider=provider, life=life), NOW + step / 10)
        held = list(shelf)
        assert len(held) == len(shelf) <= limits.statements
        assert sum(len(one.sealed) for one in held) == shelf.size <= limits.size
        for one in PEERS:
            of_one = [statement for statement in held if statement.peer == one.peer_id]
            assert len(of_one) <= limits.statements_of_one
            assert sum(len(statement.sealed) for statement in of_one) <= limits.size_of_one


def test_a_full_bucket_keeps_who_is_alive() -> None:
    now = 0.0
    table = Table(PEERS[0].peer_id, clock=lambda: now, bucket=2)
    index = {}
    for one in PEERS[1:]:
        bits = distance(position_of(one.peer_id), HERE).bit_length()
        index.setdefault(bits, []).append(one.peer_id)
    first, second, third, *_ = index[256]
    assert table.heard(first, None) and table.heard(second, None)
    assert not table.heard(third, None)
    now = STALE / 2
    assert not table.heard(first, None)
    now = STALE + 1
    assert table.heard(third, None)
    assert {contact.peer for contact in table} == {first, third}
    table.lost(first)
    assert [contact.peer for contact in table] == [third]


def test_the_nearest_come_first_and_the_table_is_bounded() -> None:
    table = Table(PEERS[0].peer_id, clock=lambda: 0.0)
    for one in PEERS:
        table.heard(one.peer_id, None)
    assert PEERS[0].peer_id not in {contact.peer for contact in table}
    assert len(table) < len(PEERS)
    key = position_of(PEERS[7].peer_id)
    found = [distance(contact.position, key) for contact in table.nearest(key, 10)]
    assert found == sorted(found) and len(found) == 10


def test_rates() -> None:
    now = 0.0
    rates = Rates(2.0, 3.0, clock=lambda: now, peers=2)
    assert [rates.take("a") for _ in range(4)] == [True, True, True, False]
    assert rates.take("b")
    now = 1.0
    assert [rates.take("a") for _ in range(3)] == [True, True, False]
    assert rates.overdraw("b", 13.0) == pytest.approx(5.0)
    rates.take("c")
    rates.take("d")
    assert rates.take("a", 3.0)  # forgotten, so it starts anew


async def test_numbers_never_restart(tmp_path: Path) -> None:
    clock = 1000.0
    path = tmp_path / "sequence"
    numbers = Sequence(path, now=lambda: clock)
    first = await numbers.next()
    assert first == 1_000_000
    assert await numbers.next() == first + 1
    assert await numbers.next(above=5_000_000) == 5_000_001
    clock = 10.0
    again = Sequence(path, now=lambda: clock)
    assert await again.next() == 5_000_002
    path.write_bytes(b"garbage")
    clock = 6000.0
    assert await Sequence(path, now=lambda: clock).next() == 6_000_000
    assert path.read_bytes() == b"6000000\n"
