"""A peer's side of a connection: TCP, multistream-select, noise, yamux; every layer can be abused.

What breaks a connection, whoever did, is one error: :class:`Broken`.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hostile.noise import MAX_PLAIN, Cipher, Handshake, claim
from hostile.protobuf import read_varint, varint

DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
MULTISTREAM, NOISE, YAMUX = "/multistream/1.0.0", "/noise", "/yamux/1.0.0"
Address = tuple[str, int]
_HEADER = struct.Struct("!BBHII")
_KEEP = 1 << 20


class Broken(Exception):
    """The connection, or the stream, is of no more use."""


def line(text: str) -> bytes:
    """A message of multistream-select."""
    body = text.encode() + b"\n"
    return varint(len(body)) + body


def frame(kind: int, flags: int, stream: int, length: int, body: bytes = b"") -> bytes:
    """A frame of yamux, sound or not."""
    return _HEADER.pack(0, kind, flags, stream, length) + body


class Tcp:
    """A TCP connection with a buffer."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def write(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Broken("the node closed the connection") from error

    async def exactly(self, n: int) -> bytes:
        while len(self._buffer) < n:
            await self._more()
        found = bytes(self._buffer[:n])
        del self._buffer[:n]
        return found

    async def line(self) -> str:
        """The next message of multistream-select, without its end."""
        while True:
            try:
                size, at = read_varint(bytes(self._buffer[:10]))
                break
            except ValueError:
                await self._more()
        await self.exactly(at)
        return (await self.exactly(size))[:-1].decode()

    async def _more(self) -> None:
        try:
            data = await self._stream.receive_some(65536)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Broken("the connection broke") from error
        if not data:
            raise Broken("the node closed the connection")
        self._buffer += data

    def close(self) -> None:
        self._stream.socket.close()


async def connect(address: Address, source: str) -> Tcp:
    """A TCP connection from an address of the loopback range; the caller closes it."""
    sock = trio.socket.socket()
    try:
        await sock.bind((source, 0))
        await sock.connect(address)
    except OSError as error:
        sock.close()
        raise Broken(f"no connection: {error}") from error
    except BaseException:
        sock.close()
        raise
    return Tcp(trio.SocketStream(sock))


@asynccontextmanager
async def tcp(address: Address, source: str = "127.0.0.1") -> AsyncIterator[Tcp]:
    """A TCP connection while the context is open."""
    made = await connect(address, source)
    try:
        yield made
    finally:
        made.close()


class Secured:
    """Noise over a connection: whole frames in, any bytes out."""

    def __init__(self, below: Tcp, sending: Cipher, receiving: Cipher) -> None:
        self._below, self._sending, self._receiving = below, sending, receiving

    async def write(self, data: bytes) -> None:
        sealed = [
            self._sending.seal(data[at : at + MAX_PLAIN])
            for at in range(0, max(len(data), 1), MAX_PLAIN)
        ]
        await self._below.write(b"".join(len(part).to_bytes(2, "big") + part for part in sealed))

    async def read(self) -> bytes:
        size = int.from_bytes(await self._below.exactly(2), "big")
        try:
            return self._receiving.open(await self._below.exactly(size))
        except InvalidTag as error:
            raise Broken("what the node sent cannot be opened") from error

    def close(self) -> None:
        self._below.close()


async def negotiate_noise(below: Tcp) -> None:
    """Agree on noise, in the clear."""
    await below.write(line(MULTISTREAM) + line(NOISE))
    for expected in (MULTISTREAM, NOISE):
        if (answer := await below.line()) != expected:
            raise Broken(f"the node said {answer!r}, not {expected!r}")


async def secure(below: Tcp, key: Ed25519PrivateKey) -> tuple[Secured, bytes]:
    """A session, and what the node claims about itself in its handshake."""
    await negotiate_noise(below)
    shake = Handshake()
    first = shake.first()
    await below.write(len(first).to_bytes(2, "big") + first)
    reply = await below.exactly(int.from_bytes(await below.exactly(2), "big"))
    theirs = shake.second(reply)
    third = shake.third(claim(key, shake.static))
    await below.write(len(third).to_bytes(2, "big") + third)
    return Secured(below, *shake.ciphers()), theirs


class Stream:
    """A stream that this side opened; what comes is kept up to a mebibyte, then thrown away."""

    def __init__(self, peer: Peer, number: int) -> None:
        self.peer, self.number = peer, number
        self._buffer = bytearray()
        self._news = trio.Event()
        self.ended = False

    def feed(self, data: bytes, *, end: bool) -> None:
        self._buffer += data[: max(0, _KEEP - len(self._buffer))]
        self.ended |= end
        self._news.set()

    async def more(self) -> bytes:
        """What has come, once there is something. Errors: Broken, at the end."""
        while not self._buffer:
            if self.ended:
                raise Broken("the node ended the stream")
            await self._news.wait()
            self._news = trio.Event()
        found = bytes(self._buffer)
        self._buffer.clear()
        return found

    async def exactly(self, n: int) -> bytes:
        found = b""
        while len(found) < n:
            found += await self.more()
        self._buffer[:0] = found[n:]
        return found[:n]

    async def line(self) -> str:
        """The next message of multistream-select, without its end; shorter than 128 bytes."""
        size = (await self.exactly(1))[0]
        return (await self.exactly(size))[:-1].decode()

    async def write(self, data: bytes, *, flags: int = 0) -> None:
        await self.peer.write(frame(DATA, flags, self.number, len(data), data))


class Peer:
    """A multiplexed connection; :meth:`run` reads until it breaks."""

    def __init__(self, session: Secured) -> None:
        self._session = session
        self._lock = trio.Lock()
        self._streams: dict[int, Stream] = {}
        self._next = 1
        self._pongs: dict[int, trio.Event] = {}
        self.answer: bytes | None = None
        self.answered = trio.Event()
        self._asked: dict[int, bytes] = {}
        self._told: set[int] = set()
        self.broken = trio.Event()
        self.reading = trio.Event()
        self.reading.set()

    async def write(self, data: bytes) -> None:
        """Frames, or anything else in their place."""
        if self.broken.is_set():
            raise Broken("the connection is gone")
        async with self._lock:
            await self._session.write(data)

    def stream(self) -> Stream:
        """A stream with a number of its own; nothing is sent yet."""
        made = self._streams[self._next] = Stream(self, self._next)
        self._next += 2
        return made

    async def open(self, *protocols: str, rest: bytes = b"") -> Stream:
        """Ask for the first protocol that the node serves, and send ``rest`` along at once."""
        stream = self.stream()
        said = line(MULTISTREAM) + b"".join(map(line, protocols)) + rest
        await stream.write(said, flags=SYN)
        return stream

    async def ping(self) -> None:
        """A round trip of yamux: what was written before has been read by the node."""
        token = len(self._pongs)
        pong = self._pongs[token] = trio.Event()
        await self.write(frame(PING, SYN, 0, token))
        await pong.wait()
        if self.broken.is_set():
            raise Broken("the connection is gone")

    def close(self) -> None:
        """Break the connection at once; :meth:`run` ends by it."""
        self.broken.set()
        self.reading.set()
        self._session.close()

    async def run(self) -> None:
        buffer = bytearray()
        try:
            while True:
                await self.reading.wait()
                buffer += await self._session.read()
                while len(buffer) >= 12:
                    _, kind, flags, number, length = _HEADER.unpack_from(buffer)
                    size = 12 + (length if kind == DATA else 0)
                    if len(buffer) < size:
                        break
                    await self._take(kind, flags, number, length, bytes(buffer[12:size]))
                    del buffer[:size]
        except Broken:
            pass
        finally:
            self.close()
            for stream in self._streams.values():
                stream.feed(b"", end=True)
            for pong in self._pongs.values():
                pong.set()

    async def _take(self, kind: int, flags: int, number: int, length: int, body: bytes) -> None:
        if kind == PING and flags & SYN:
            await self.write(frame(PING, ACK, 0, length))
        elif kind == PING and length in self._pongs:
            self._pongs[length].set()
        elif kind in (DATA, WINDOW) and (stream := self._streams.get(number)):
            stream.feed(body, end=bool(flags & (FIN | RST)))
            if body:
                await self.write(frame(WINDOW, 0, number, len(body)))
        elif kind in (DATA, WINDOW) and number % 2 == 0:
            await self._asked_by_node(flags, number, body)

    async def _asked_by_node(self, flags: int, number: int, body: bytes) -> None:
        """The node opens streams too, to ask who this is: it is told nothing, or the answer."""
        if self.answer is None:
            if flags & SYN:
                await self.write(frame(WINDOW, RST, number, 0))
            return
        said = self._asked[number] = self._asked.get(number, b"") + body
        header = line(MULTISTREAM)
        reply = header if body and len(said) == len(body) else b""
        if said.startswith(header) and len(said) > len(header) and number not in self._told:
            self._told.add(number)
            reply += said[len(header) :] + self.answer
            self.answered.set()
        if flags & SYN:
            await self.write(frame(WINDOW, ACK, number, 0))
        if reply:
            await self.write(frame(DATA, 0, number, len(reply), reply))


async def dial(
    nursery: trio.Nursery, address: Address, key: Ed25519PrivateKey, source: str = "127.0.0.1"
) -> Peer:
    """A whole connection of a peer with this key; the caller closes it."""
    below = await connect(address, source)
    try:
        session, _ = await secure(below, key)
        await session.write(line(MULTISTREAM) + line(YAMUX))
        await expect(session, (MULTISTREAM, YAMUX))
    except BaseException:
        below.close()
        raise
    made = Peer(session)
    nursery.start_soon(made.run)
    return made


async def expect(session: Secured, lines: Sequence[str]) -> None:
    """Read these messages of multistream-select, and no byte more. Errors: Broken."""
    wanted = b"".join(map(line, lines))
    found = b""
    while len(found) < len(wanted):
        found += await session.read()
    if found != wanted:
        raise Broken(f"the node said {found[:100]!r}")
