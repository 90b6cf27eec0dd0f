"""The book of addresses: bounded, and not to be flushed by strangers."""

from __future__ import annotations

import pytest

from kwaai_core.testing.identities import FakeIdentity
from kwaai_lobe_libp2p import book
from kwaai_lobe_libp2p.addresses import Address, parse
from kwaai_lobe_libp2p.book import PEERS, AddressBook

from .conftest import Nodes
from .test_network import eventually


def address(peer: str) -> Address:
    return Address("ip4", "192.0.2.1", 4001, peer)


def test_strangers_are_forgotten_before_members_and_who_was_met() -> None:
    members = {f"member {n}" for n in range(100)}
    known = AddressBook(lambda: 0.0, members.__contains__)
    known.worked(address("met"))
    known.met("met")
    known.worked(address("not let in"))
    for peer in members:
        known.learn(peer, [address(peer)])
    for n in range(3 * PEERS):
        known.learn(f"stranger {n}", [address(f"stranger {n}")])
    assert len(known) <= PEERS
    assert known.of("met")
    assert not known.of("not let in")
    assert all(map(known.of, members))
    assert known.of(f"stranger {3 * PEERS - 1}")  # who has just come may be about to say hello


def test_where_all_belong_the_oldest_goes() -> None:
    known = AddressBook(lambda: 0.0, lambda peer: True)
    for n in range(PEERS + 1):
        known.learn(f"member {n}", [address(f"member {n}")])
    assert len(known) == PEERS
    assert not known.of("member 0")
    assert known.of("member 1")


async def test_what_strangers_say_does_not_push_a_member_out(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book, "PEERS", 32)
    async with nodes("one") as one, nodes("member") as member:
        await member.transport.connect(one.transport.addresses)
        known = one.transport.network.book
        await eventually(lambda: known.of(member.peer))
        for n in range(100):
            stranger = FakeIdentity(n).peer_id
            one.door.strangers.add(stranger)
            one.transport.learn(stranger, [f"/ip4/192.0.2.1/tcp/4001/p2p/{stranger}"])
        assert parse(member.transport.addresses[0]) in known.of(member.peer)
