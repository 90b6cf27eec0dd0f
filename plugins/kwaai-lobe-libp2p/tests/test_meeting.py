"""Sockets that dial each other from ports that they use already."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair

from kwaai_core import PeerUnreachable
from kwaai_core.testing.identities import FakeIdentity
from kwaai_lobe_libp2p.addresses import Address, of_socket
from kwaai_lobe_libp2p.connection import Connection, Handshake
from kwaai_lobe_libp2p.meeting import dial, meet


def handshake(name: str) -> tuple[str, Handshake]:
    identity = FakeIdentity(name)
    keys = create_new_key_pair(identity.handshake_key())
    return identity.peer_id, Handshake(keys, identity, None)


Ports = Callable[[], Awaitable[Address]]


@asynccontextmanager
async def used_ports() -> AsyncIterator[Ports]:
    """Ports from which there is a connection to somebody already."""
    async with AsyncExitStack() as stack:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await stack.enter_async_context(listener)

        async def port() -> Address:
            number = listener.socket.getsockname()[1]
            stream = await dial(socket.AF_INET, "127.0.0.1", number)
            await stack.enter_async_context(stream)
            await stack.enter_async_context(await listener.accept())
            return of_socket(stream.socket.getsockname())

        yield port


async def test_two_meet_at_ports_from_which_they_have_dialled_others() -> None:
    (_, client), (peer, server) = handshake("client"), handshake("server")
    found: dict[str, Connection] = {}

    async def as_client(stream: trio.SocketStream, at: Address) -> Connection:
        return await client.outbound(stream, Address(at.kind, at.host, at.port, peer))

    async def run(name: str, here: Address, there: Address) -> None:
        secure = as_client if name == "client" else server.inbound
        found[name] = await meet(here, [there], secure, seconds=10)

    async with used_ports() as port:
        mine, theirs = await port(), await port()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, "client", mine, theirs)
            nursery.start_soon(run, "server", theirs, mine)
        assert found["client"].address.port == theirs.port
        assert found["server"].address.port == mine.port
        assert not found["client"].inbound
        assert found["server"].inbound
        for connection in found.values():
            connection.discard()


async def test_who_comes_from_elsewhere_is_turned_away_at_once() -> None:
    _, server = handshake("server")
    async with used_ports() as port, trio.open_nursery() as nursery:
        here = await port()
        nobody = Address("ip4", "127.0.0.3", 4001)
        nursery.start_soon(partial(meet, here, [nobody], server.inbound, seconds=20))
        with trio.fail_after(5):
            stranger = await _knocked(here)
            async with stranger:
                assert await stranger.receive_some() == b""
        nursery.cancel_scope.cancel()


async def _knocked(here: Address) -> trio.SocketStream:
    """A stranger's connection, as soon as there is somebody who listens."""
    while True:
        try:
            return await trio.open_tcp_stream(here.host, here.port, local_address="127.0.0.2")
        except OSError:
            await trio.sleep(0.01)


async def test_each_address_has_its_cause() -> None:
    _, server = handshake("server")
    async with used_ports() as port:
        here = await port()
        nobody = [Address("ip4", host, 4001) for host in ("127.0.0.2", "127.0.0.3")]
        told = r"127\.0\.0\.2/tcp/4001: Connection refused; .*127\.0\.0\.3/tcp/4001: Connection ref"
        with pytest.raises(PeerUnreachable, match=told):
            await meet(here, nobody, server.inbound, seconds=0.3)
        with pytest.raises(PeerUnreachable, match="no address of this kind"):
            await meet(here, [Address("ip6", "2001:db8::1", 4001)], server.inbound, seconds=0.3)


async def test_a_port_that_was_dialled_from_is_given_to_nobody_who_is_not_bound() -> None:
    """Sockets that are not bound share ports as long as they lead to other ends."""
    async with AsyncExitStack() as stack:
        ends = [
            await stack.enter_async_context((await trio.open_tcp_listeners(0, host=host))[0])
            for host in ("127.0.0.1", "127.0.0.2")
        ]
        first, second = (end.socket.getsockname() for end in ends)
        kept = await stack.enter_async_context(await dial(socket.AF_INET, *first))
        with trio.socket.socket() as other:
            with pytest.raises(OSError, match="in use"):
                await other.bind(kept.socket.getsockname())
            await other.connect(second)
            assert other.getsockname()[1] != kept.socket.getsockname()[1]
