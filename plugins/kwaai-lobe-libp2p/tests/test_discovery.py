"""Finding peers: from the settings, from memory, on the local network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock
from zeroconf import NonUniqueNameException

from kwaai_core import Link, PeerUnreachable
from kwaai_core.testing.identities import FakeIdentity
from kwaai_lobe_libp2p import discovery, mdns
from kwaai_lobe_libp2p.discovery import REMEMBERED, WANTED, Discovery, Memory

PEERS = [FakeIdentity(n).peer_id for n in range(300)]


def address(n: int) -> str:
    return f"/ip4/127.0.0.1/tcp/{4000 + n}/p2p/{PEERS[n]}"


class Dials:
    """A transport that connects to who is up."""

    def __init__(self, *up: int) -> None:
        self.up = {PEERS[n] for n in up}
        self.linked: set[str] = set()
        self.tried: list[tuple[float, str]] = []

    @property
    def addresses(self) -> Sequence[str]:
        return [address(0)]

    def links(self) -> Sequence[Link]:
        return [Link(peer, "/ip4/127.0.0.1/tcp/1", inbound=False) for peer in self.linked]

    async def connect(self, addresses: Sequence[str], *, seconds: float) -> str:
        await trio.lowlevel.checkpoint()
        (peer,) = {one.rpartition("/p2p/")[2] for one in addresses}
        self.tried.append((trio.current_time(), peer))
        if peer not in self.up:
            raise PeerUnreachable(f"{peer} is not there")
        self.linked.add(peer)
        return peer

    def addresses_of(self, peer: str) -> Sequence[str]:
        return [address(PEERS.index(peer))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "peers.json"


def made(dials: Dials, path: Path, *bootstrap: int) -> Discovery:
    return Discovery(
        dials, Memory(path), [address(n) for n in bootstrap], addresses_of=dials.addresses_of
    )


async def test_bootstrap_peers_are_held(autojump_clock: MockClock, path: Path) -> None:
    dials = Dials(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made(dials, path, 1, 2).run)
        await trio.sleep(5)
        assert dials.linked == {PEERS[1]}
        dials.linked.clear()
        dials.up.add(PEERS[2])
        await trio.sleep(60)
        assert dials.linked == {PEERS[1], PEERS[2]}
        nursery.cancel_scope.cancel()


async def test_who_is_not_there_is_tried_less_and_less_often(
    autojump_clock: MockClock, path: Path
) -> None:
    dials = Dials()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made(dials, path, 1).run)
        await trio.sleep(3600)
        nursery.cancel_scope.cancel()
    assert 5 < len(dials.tried) < 40
    pauses = [b - a for (a, _), (b, _) in zip(dials.tried, dials.tried[1:], strict=False)]
    assert max(pauses) <= 1.5 * discovery.RETRY[1] and max(pauses[:2]) < 4


@pytest.mark.parametrize(
    ("said", "logged"),
    [("{peer} is not there", "{peer} is not there"), ("down", "{peer} is not connected: down")],
)
async def test_who_is_not_there_is_named_once_in_the_log(
    path: Path, caplog: pytest.LogCaptureFixture, said: str, logged: str
) -> None:
    class Down(Dials):
        async def connect(self, addresses: Sequence[str], *, seconds: float) -> str:
            await trio.lowlevel.checkpoint()
            raise PeerUnreachable(said.format(peer=PEERS[1]))

    caplog.set_level("INFO")
    await made(Down(), path).found(PEERS[1], [address(1)])
    (record,) = caplog.records
    assert record.getMessage() == logged.format(peer=PEERS[1])


async def test_peers_are_remembered_over_a_restart(path: Path) -> None:
    dials = Dials(1, 2, 3)
    dials.linked = set(dials.up)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made(dials, path).run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    again = Dials(1, 3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made(again, path).run)
        with trio.fail_after(10):
            while again.linked != again.up:  # noqa: ASYNC110
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()


async def test_enough_links_are_enough(autojump_clock: MockClock, path: Path) -> None:
    memory = Memory(path)
    for n in range(20):
        memory.note(PEERS[n], [address(n)])
    dials = Dials(*range(20))
    found = Discovery(dials, memory, [], addresses_of=dials.addresses_of)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(found._recall)
        await trio.sleep(1000)
        nursery.cancel_scope.cancel()
    assert len(dials.linked) == WANTED


async def test_strangers_neither_count_nor_are_remembered(
    autojump_clock: MockClock, path: Path
) -> None:
    memory = Memory(path)
    memory.note(PEERS[1], [address(1)])
    dials = Dials(1)
    strangers = PEERS[100 : 100 + 2 * WANTED]
    dials.linked = set(strangers)
    found = Discovery(
        dials,
        memory,
        [],
        addresses_of=dials.addresses_of,
        belongs=lambda peer: peer not in strangers,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(found.run)
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert PEERS[1] in dials.linked
    assert [peer for peer, _ in Memory(path).newest_first()] == [PEERS[1]]


async def test_memory_is_bounded_and_newest_first(path: Path) -> None:
    memory = Memory(path)
    for n in range(300):
        memory.note(PEERS[n], [address(n), "nonsense", address(0)])
    assert len(memory) == REMEMBERED
    assert memory.newest_first()[0] == (PEERS[299], (address(299),))
    await memory.save()
    assert Memory(path).newest_first() == memory.newest_first()
    assert path.stat().st_mode & 0o777 == 0o600


@given(
    st.binary()
    | st.recursive(
        st.none() | st.integers() | st.text() | st.just(address(1)),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["peers", PEERS[1]]) | st.text(), inner)
        ),
    ).map(lambda value: json.dumps({"peers": value}).encode())
)
def test_a_malformed_memory_is_no_memory(data: bytes) -> None:
    for peer, addresses in discovery._read(data):
        assert all(one.endswith(f"/p2p/{peer}") for one in addresses)


async def test_a_memory_that_cannot_be_written_is_no_end(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "missing" / "peers.json")
    memory.note(PEERS[1], [address(1)])
    await memory.save()


async def test_two_nodes_find_each_other_on_the_local_network_and_the_loop_goes_on() -> None:
    heard: dict[int, list[tuple[str, tuple[str, ...]]]] = {1: [], 2: []}
    done = trio.Event()
    longest = 0.0

    async def run(n: int) -> None:
        async def found(peer: str, addresses: Sequence[str]) -> None:
            await trio.lowlevel.checkpoint()
            heard[n].append((peer, tuple(addresses)))
            if heard[1] and heard[2]:
                done.set()

        await mdns.run(PEERS[n], [address(n)], found, interfaces=["127.0.0.1"])

    async def watch() -> None:
        nonlocal longest
        while True:
            began = trio.current_time()
            await trio.sleep(0.01)
            longest = max(longest, trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        for n in heard:
            nursery.start_soon(run, n)
        nursery.start_soon(watch)
        with trio.fail_after(20):
            await done.wait()
        nursery.cancel_scope.cancel()
    assert heard[1][0] == (PEERS[2], (address(2),))
    assert heard[2][0] == (PEERS[1], (address(1),))
    assert longest < 0.5


async def test_made_up_names_do_not_silence_the_local_network() -> None:
    asked: list[str] = []
    done = trio.Event()

    def ask(name: str) -> mdns.Told | None:
        asked.append(name)
        return (PEERS[1], (address(1),)) if name == "honest" else None

    async def found(peer: str, addresses: Sequence[str]) -> None:
        await trio.lowlevel.checkpoint()
        assert (peer, addresses) == (PEERS[1], (address(1),))
        done.set()

    names = mdns.Names()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mdns.look_up, names, ask, PEERS[0], found)
        for n in range(mdns.KNOWN + mdns.WAITING // 2):
            names.put(f"made up {n}")
            if n % 64 == 0:
                await trio.sleep(0.01)
        with trio.fail_after(30):
            while len(asked) < mdns.KNOWN:  # noqa: ASYNC110 - they are asked in threads
                await trio.sleep(0.01)
            names.put("honest")
            await done.wait()
        nursery.cancel_scope.cancel()


async def test_where_too_many_names_wait_any_of_them_makes_room(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(mdns, "WAITING", 16)
    kept = 0
    for _ in range(200):
        names = mdns.Names()
        names.put("honest")
        for n in range(16):
            names.put(f"made up {n}")
            names.put(f"made up {n}")
        kept += "honest" in [await names.take() for _ in range(16)]
    assert 160 < kept < 200


async def test_a_name_is_asked_about_once_in_a_while(autojump_clock: MockClock) -> None:
    names = mdns.Names()
    names.put("one")
    assert await names.take() == "one"
    names.put("one")
    names.put("two")
    assert await names.take() == "two"
    await trio.sleep(mdns.AGAIN)
    names.put("one")
    assert await names.take() == "one"


@pytest.mark.parametrize("error", [NonUniqueNameException(), RuntimeError("No interfaces")])
def test_what_the_library_raises_is_one_error(error: Exception) -> None:
    with pytest.raises(OSError, match="multicast DNS fails"), mdns._as_os_error():
        raise error


def test_what_is_told_is_heard() -> None:
    relayed = f"/ip4/127.0.0.1/tcp/1/p2p/{PEERS[2]}/p2p-circuit/p2p/{PEERS[1]}"
    told = mdns.entries(PEERS[1], [address(1), relayed, "x" * 300])
    properties = {str(key).encode(): str(value).encode() for key, value in told.items()}
    assert mdns.heard(properties) == (PEERS[1], (address(1),))


@given(st.dictionaries(st.binary() | st.just(b"dnsaddr"), st.none() | st.binary(), max_size=50))
def test_garbage_on_the_local_network_is_nobody(properties: dict[bytes, bytes | None]) -> None:
    found = mdns.heard(properties)
    assert found is None or all(one.endswith(found[0]) for one in found[1])
