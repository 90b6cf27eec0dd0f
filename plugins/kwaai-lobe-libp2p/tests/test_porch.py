"""Handshakes under way: however many strangers only wait, a newcomer finds a place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from kwaai_core import PeerUnreachable
from kwaai_lobe_libp2p import listening
from kwaai_lobe_libp2p.addresses import Address
from kwaai_lobe_libp2p.listening import Porch, source_of


class Slow:
    """Handshakes that are never done, but for the last one that is told."""

    def __init__(self) -> None:
        self.under_way: list[Any] = []
        self.done = trio.Event()

    async def inbound(self, stream: Any, address: Address) -> Any:
        self.under_way.append(stream)
        try:
            if stream.honest:
                await self.done.wait()
                return stream
            await trio.sleep_forever()
        finally:
            self.under_way.remove(stream)
        raise PeerUnreachable("it was given up")


class Knock:
    """As much of a stream as the porch looks at."""

    def __init__(self, host: str, *, honest: bool = False) -> None:
        self.host = host
        self.honest = honest
        self.socket = self

    def getpeername(self) -> tuple[str, int]:
        return self.host, 4001


@asynccontextmanager
async def porch(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Any, ...]]:
    monkeypatch.setattr(listening, "HALF_OPEN", 6)
    monkeypatch.setattr(listening, "HALF_OPEN_EACH", 4)
    slow, adopted = Slow(), list[Any]()

    async def adopt(connection: Any) -> None:
        adopted.append(connection)

    opened = Porch(slow, adopt)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:

        async def knock(host: str, *, honest: bool = False) -> None:
            nursery.start_soon(opened.admit, Knock(host, honest=honest))
            await trio.testing.wait_all_tasks_blocked()

        yield knock, slow, adopted, opened
        nursery.cancel_scope.cancel()
    assert opened._waiting == {}


async def test_a_newcomer_takes_the_place_of_the_oldest_of_the_crowd(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with porch(monkeypatch) as (knock, slow, adopted, _):
        for host in ("10.0.0.1", "10.0.0.2", "10.0.0.2", "10.0.0.2", "10.0.0.3", "10.0.0.4"):
            await knock(host)
        await knock("10.0.0.9", honest=True)
        assert len(slow.under_way) == 6
        assert [one.host for one in slow.under_way].count("10.0.0.2") == 2
        slow.done.set()
        await trio.testing.wait_all_tasks_blocked()
        assert [one.host for one in adopted] == ["10.0.0.9"]


async def test_one_source_crowds_out_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    async with porch(monkeypatch) as (knock, slow, adopted, _):
        await knock("10.0.0.9", honest=True)
        for number in range(20):
            await knock(f"2001:db8::{number:x}")
        assert len(slow.under_way) == 5
        slow.done.set()
        await trio.testing.wait_all_tasks_blocked()
        assert [one.host for one in adopted] == ["10.0.0.9"]


@pytest.mark.parametrize(
    ("address", "source"),
    [
        (Address("ip4", "10.1.2.3", 1), "10.1.2.3"),
        (Address("ip6", "2001:db8:1:2:3:4:5:6", 1), "2001:db8:1:2::/64"),
        (Address("ip6", "fe80::1%eth0", 1), "fe80::/64"),
    ],
)
def test_a_line_of_version_six_is_one_source(address: Address, source: str) -> None:
    assert source_of(address) == source


async def test_within_a_source_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with porch(monkeypatch) as (knock, slow, adopted, _):
        for honest in (False, False, False, False, True, False, False, False):
            await knock("10.0.0.2", honest=honest)
        slow.done.set()
        await trio.testing.wait_all_tasks_blocked()
        assert len(adopted) == 1
