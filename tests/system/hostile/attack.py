"""Doing to a node what an input says."""

from __future__ import annotations

import contextlib
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import base58
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hostile import channel, wire
from hostile.inputs import Input
from hostile.noise import Handshake, public_key
from hostile.protobuf import varint
from hostile.reporting import ECHO
from hostile.subjects import Subject
from hostile.wire import Broken, Peer

PATIENCE = 2.0
"""How many seconds a hostile peer waits for an answer before it goes on."""


class Attacker:
    """A peer with many names: each of its connections has a key and a loopback address of its own.

    ``tally`` counts what became of the inputs: *reached* the protocol, *refused*, *cut off*.
    """

    def __init__(self, node: Subject, nursery: trio.Nursery, tally: Counter[str]) -> None:
        self._node, self._address, self._nursery = node, node.address, nursery
        self._peer: Peer | None = None
        self._tally = tally

    async def deliver(self, given: Input) -> None:
        """Do what the input says. What the node does about it is its own affair."""
        try:
            with trio.fail_after(15):
                outcome = await getattr(self, f"_{given.layer}")(given)
        except Broken:
            outcome = "cut off"
        except trio.TooSlowError:
            outcome = "ignored"
        self._tally[f"{given.layer}: {outcome}"] += 1

    async def leave(self) -> None:
        """Break the connection, with whatever hangs on it."""
        if self._peer is not None:
            self._peer.close()
        self._peer = None
        await trio.lowlevel.checkpoint()

    async def _connected(self) -> Peer:
        if self._peer is None or self._peer.broken.is_set():
            await self.leave()
            self._peer = await self._dial()
        return self._peer

    async def _dial(self) -> Peer:
        key = Ed25519PrivateKey.generate()
        return await wire.dial(self._nursery, self._address, key, _source())

    @asynccontextmanager
    async def _dialled(self) -> AsyncIterator[Peer]:
        peer = await self._dial()
        try:
            yield peer
        finally:
            peer.close()

    async def _stream(self, given: Input) -> str:
        peer = await self._connected()
        stream = await peer.open(given.protocol, rest=b"".join(given.parts[:1]))
        for part in given.parts[1:]:
            await stream.write(part)
        if given.end == "end":
            await stream.write(b"", flags=wire.FIN)
        with trio.move_on_after(PATIENCE):
            try:
                await stream.line()
                answer = await stream.line()
            except UnicodeDecodeError:
                answer = "?"
            if given.end == "reset":
                await stream.write(b"", flags=wire.RST)
            return "reached" if answer == given.protocol else "refused"
        return "ignored"

    async def _yamux(self, given: Input) -> str:
        peer = await self._connected()
        for part in given.parts:
            await peer.write(part)
        with trio.move_on_after(PATIENCE / 20):
            await peer.ping()
            return "suffered"
        await self.leave()
        return "left hanging"

    async def _answer(self, given: Input) -> str:
        async with self._dialled() as peer:
            peer.answer = b"".join(given.parts)
            with trio.move_on_after(PATIENCE):
                await peer.answered.wait()
                await peer.ping()
                return "reached"
        return "not asked"

    async def _channel(self, given: Input) -> str:
        async with self._dialled() as peer:
            stream = await peer.open(given.protocol)
            for _ in range(2):
                await stream.line()
            return await channel.come(stream, self._address[0], given.kind)

    async def _listener(self, given: Input) -> str:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener:
            port = listener.socket.getsockname()[1]
            await self._node.dial(f"/ip4/127.0.0.1/tcp/{port}/p2p/{_anybody()}")
            with trio.move_on_after(PATIENCE):
                async with await listener.accept() as stream:
                    with contextlib.suppress(trio.BrokenResourceError):
                        for part in given.parts:
                            await stream.send_all(part)
                    await trio.sleep(0.2 if given.end == "hang" else 0)
                return "dialled"
        return "not dialled"

    async def _tcp(self, given: Input) -> str:
        async with wire.tcp(self._address, _source()) as tcp:
            for part in given.parts:
                await tcp.write(part)
            return await _until_closed(tcp, given)

    async def _handshake(self, given: Input) -> str:
        async with wire.tcp(self._address, _source()) as tcp:
            await wire.negotiate_noise(tcp)
            if not given.parts[0].startswith(b"claim:"):
                await tcp.write(b"".join(given.parts))
                return await _until_closed(tcp, given)
            shake = Handshake()
            await tcp.write(b"\0\x20" + shake.first())
            shake.second(await tcp.exactly(int.from_bytes(await tcp.exactly(2), "big")))
            third = shake.third(given.parts[0][6:])
            await tcp.write(len(third).to_bytes(2, "big") + third)
            return await _until_closed(tcp, given)

    async def _muxing(self, given: Input) -> str:
        async with wire.tcp(self._address, _source()) as tcp:
            session, _ = await wire.secure(tcp, Ed25519PrivateKey.generate())
            for part in given.parts:
                await session.write(part)
            return await _until_closed(tcp, given)

    async def _flood(self, given: Input) -> str:
        await getattr(self, f"_flood_{given.kind.replace(' ', '_').replace('-', '_')}")(given)
        return "done"

    async def _flood_half_open(self, given: Input) -> None:
        """Connections that say nothing."""
        async with AsyncExitStack() as stack:
            for _ in range(80):
                await stack.enter_async_context(wire.tcp(self._address, _source()))
            await trio.sleep(0.2)

    async def _flood_connections(self, given: Input) -> None:
        """Many connections, and a stream on each."""
        async with AsyncExitStack() as stack:
            for _ in range(40):
                with contextlib.suppress(Broken):
                    peer = await stack.enter_async_context(self._dialled())
                    await peer.open(given.protocol)

    async def _flood_streams(self, given: Input) -> None:
        """Far more streams than anybody needs, all left open."""
        async with self._dialled() as peer:
            for _ in range(600):
                await peer.open(given.protocol)
            with trio.move_on_after(PATIENCE):
                await peer.ping()

    async def _flood_unread_echo(self, given: Input) -> None:
        """Asks for much and reads nothing of it."""
        async with self._dialled() as peer:
            stream = await peer.open(ECHO)
            peer.reading = trio.Event()
            body = bytes(60_000)
            with trio.move_on_after(PATIENCE):
                for _ in range(100):
                    await stream.write(len(body).to_bytes(4, "big") + body)

    async def _flood_unread_data(self, given: Input) -> None:
        """Sends far more than any window allows, on many streams."""
        body = bytes(60_000)
        async with self._dialled() as peer:
            streams = [await peer.open(given.protocol) for _ in range(8)]
            with trio.move_on_after(PATIENCE * 2):
                for _ in range(60):
                    for stream in streams:
                        await stream.write(body)

    async def _flood_endless_message(self, given: Input) -> None:
        """Announces more than any memory holds, and keeps sending it."""
        announced = varint(1 << 40) if given.number % 1000 < 500 else b"\x7f\xff\xff\xff"
        async with self._dialled() as peer:
            stream = await peer.open(given.protocol, rest=announced)
            with trio.move_on_after(PATIENCE * 2):
                for _ in range(300):
                    await stream.write(bytes(60_000))

    async def _flood_endless_negotiation(self, given: Input) -> None:
        """The same before anything is agreed on."""
        async with wire.tcp(self._address, _source()) as tcp:
            await tcp.write(wire.line(wire.MULTISTREAM) + varint(1 << 30))
            with trio.move_on_after(PATIENCE * 2):
                for _ in range(300):
                    await tcp.write(bytes(60_000))

    async def _flood_pings(self, given: Input) -> None:
        """Pings of the muxer whose answers nobody reads."""
        async with self._dialled() as peer:
            peer.reading = trio.Event()
            with trio.move_on_after(PATIENCE):
                for _ in range(200):
                    await peer.write(wire.frame(wire.PING, wire.SYN, 0, 7) * 500)


def _anybody() -> str:
    """A peer id."""
    return base58.b58encode(b"\0\x24" + public_key(Ed25519PrivateKey.generate())).decode()


def _source() -> str:
    """An address of the loopback range that no honest peer uses."""
    return f"127.0.{1 + secrets.randbelow(200)}.{1 + secrets.randbelow(250)}"


async def _until_closed(tcp: wire.Tcp, given: Input) -> str:
    if given.end != "hang":
        return "said"
    with trio.move_on_after(0.05):
        while True:
            await tcp.exactly(1)
    return "left hanging"
