"""Who is turned away at the door hears so at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from kwaai_core import PeerUnreachable, Transport
from kwaai_core.testing import FakeIdentity
from kwaai_core.testing.fakes import FakeHost
from kwaai_lobe_libp2p import provide_transport
from kwaai_lobe_libp2p.settings import Libp2pSettings


class Shut:
    """Lets nobody in, for anything."""

    def allows(self, peer: str, protocol: str) -> bool:
        return False

    async def greet(self, peer: str) -> None:
        return


class Greeting:
    """Says hello over the connection that was just made."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def allows(self, peer: str, protocol: str) -> bool:
        return True

    async def greet(self, peer: str) -> None:
        async with self._transport.open(peer, "/kwaai/hello/1", seconds=10):
            pass


async def test_a_connection_that_is_closed_before_the_greeting_fails_at_once(
    tmp_path: Path,
) -> None:
    def node(name: str) -> FakeHost:
        settings = Libp2pSettings(listen=("/ip4/127.0.0.1/tcp/0",))
        return FakeHost(tmp_path / name, {Libp2pSettings: settings}, FakeIdentity(name))

    opened = provide_transport().open
    async with opened(node("closed")) as closed, opened(node("caller")) as caller:
        closed.guard(Shut())
        caller.guard(Greeting(caller))
        for _ in range(2):
            with trio.fail_after(3), pytest.raises(PeerUnreachable, match="perhaps it denies"):
                await caller.connect(closed.addresses)
