"""Data channels: a TCP connection of its own between two peers that have a stream already.

Both ends send an *offer* over the stream: a certificate made for this once, the ports where this
node takes data channels, and a *ticket*. Then one end dials the other, the opener of the stream
first, and shows the ticket that it was given; who has none, gets nothing. What is returned is the
connected socket and what TLS 1.3 over it needs, so that any process can do the handshake. A ticket
that is stolen on its way opens the port and no more: TLS wants the key of the certificate.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import secrets
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kwaai_core import DataChannel, NotVerified, PeerLost, Stream
from kwaai_lobe_libp2p.tasks import background, within

TICKET = 32
SHOW = 3.0
"""How many seconds who connects has to show a ticket."""

DIAL = 4.0
"""How many seconds an end tries to reach the other."""

HALF_OPEN = 64
"""How many connections may be without a ticket; of more, the oldest is closed."""

AWAITED = 1024
_WELCOME = b"\x01"
_MAX_OFFER = 8192
_YES, _NO = b'{"connected":true}', b'{"connected":false}'


@dataclass(frozen=True, slots=True)
class _Offer:
    """What the other end offers: its certificate in PEM, its ports by version of IP, a ticket."""

    certificate: bytes
    ports: dict[int, int]
    ticket: bytes


class _Arrival:
    """Who comes with a ticket; what nobody takes, or what comes when nobody waits, is closed."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._there = trio.Event()
        self._over = False

    def put(self, came: socket.socket) -> None:
        if self._over:
            came.close()
        else:
            self._socket = came
            self._there.set()

    def end(self) -> None:
        self._over = True
        if (late := self.take()) is not None:
            late.close()

    async def wait(self) -> None:
        await self._there.wait()

    def take(self) -> socket.socket | None:
        came, self._socket = self._socket, None
        return came


class DataChannels:
    """The ports where data channels are taken; made by :func:`open_data_channels`."""

    def __init__(self, listeners: Sequence[trio.SocketListener]) -> None:
        self._ports: dict[int, int] = {}
        for listener in listeners:
            host, port = listener.socket.getsockname()[:2]
            self._ports[ipaddress.ip_address(host).version] = port
        self._awaited: dict[bytes, _Arrival] = {}
        self._half_open: dict[trio.CancelScope, None] = {}

    @property
    def ports(self) -> dict[int, int]:
        """The port for each version of IP."""
        return dict(self._ports)

    @property
    def half_open(self) -> int:
        """How many connections there are that have shown no ticket yet."""
        return len(self._half_open)

    async def meet(
        self, stream: Stream, *, opener: bool, host: str | None, seconds: float
    ) -> DataChannel | None:
        """See :meth:`kwaai_core.Transport.data_channel`.

        ``opener``: whether this end opened the stream; ``host``: the number under which the peer is
        reached directly, None where it is not. Where it fails by an error, the stream is closed.
        """
        made: socket.socket | None = None
        try:
            with within(seconds, f"opening a data channel to {stream.peer}"):
                certificate, key = _certificate()
                ticket = secrets.token_bytes(TICKET)
                with self._expecting(ticket) as arrival:
                    ports = self._ports if host is not None else {}
                    await stream.send(_packed(certificate, ports, ticket), seconds=seconds)
                    offer = _offer(await stream.receive(seconds=seconds), stream.peer)
                    for dials in (opener, not opener):
                        if dials:
                            made = await _dial(host, offer)
                            await stream.send(_YES if made else _NO, seconds=seconds)
                        elif _connected(await stream.receive(seconds=seconds), stream.peer):
                            made = await _taken(arrival, stream.peer)
                        if made is not None:
                            break
            if made is None:
                return None
            return DataChannel(made, certificate, key, offer.certificate, server=not opener)
        except BaseException:
            if made is not None:
                made.close()
            with trio.CancelScope(shield=True):  # it does not wait for the peer
                await stream.aclose()
            raise

    @contextmanager
    def _expecting(self, ticket: bytes) -> Iterator[_Arrival]:
        if len(self._awaited) >= AWAITED:
            raise PeerLost(f"{AWAITED} data channels are being opened: too many for one more")
        arrival = self._awaited[ticket] = _Arrival()
        try:
            yield arrival
        finally:
            self._awaited.pop(ticket, None)
            arrival.end()

    async def admit(self, stream: trio.SocketStream) -> None:
        """Hand a connection to who expects it. The caller closes ``stream`` in any case."""
        if len(self._half_open) >= HALF_OPEN:
            next(iter(self._half_open)).cancel()
        with trio.move_on_after(SHOW) as scope:
            self._half_open[scope] = None
            try:
                shown = await _exactly(stream, TICKET)
                if (arrival := self._awaited.pop(shown, None)) is not None:
                    # not to be cut off in the middle: the other end goes by what it is told
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + SHOW):
                        await stream.send_all(_WELCOME)
                        arrival.put(_plain(stream))
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, PeerLost):
                pass  # it is gone, and where it was expected the other end says so
            finally:
                del self._half_open[scope]


@asynccontextmanager
async def open_data_channels(hosts: Sequence[str]) -> AsyncIterator[DataChannels]:
    """Take data channels at these numbers, on a free port each, while the context is open.

    Errors: OSError where one of them cannot be listened on.
    """
    listeners: list[trio.SocketListener] = []
    try:
        for host in hosts:
            listeners += await trio.open_tcp_listeners(0, host=host, backlog=HALF_OPEN)
        channels = DataChannels(listeners)
        async with background() as nursery:
            if listeners:
                await nursery.start(trio.serve_listeners, channels.admit, listeners)
            yield channels
    finally:
        for listener in listeners:
            listener.socket.close()


async def _dial(host: str | None, offer: _Offer) -> socket.socket | None:
    """A connection on which the ticket was welcome; None where none can be had."""
    port = offer.ports.get(ipaddress.ip_address(host).version) if host is not None else None
    if host is None or port is None:
        return None
    with trio.move_on_after(DIAL):
        try:
            stream = await trio.open_tcp_stream(host, port)
            try:
                await stream.send_all(offer.ticket)
                if await stream.receive_some(len(_WELCOME)) == _WELCOME:
                    return _plain(stream)
            finally:
                stream.socket.close()  # not by aclose(): cancelled there, it loses the other handle
        except (OSError, trio.BrokenResourceError):
            pass  # there is no way, which is an answer too
    return None


async def _taken(arrival: _Arrival, peer: str) -> socket.socket:
    with trio.move_on_after(SHOW):
        await arrival.wait()
    came = arrival.take()
    if came is None:
        raise NotVerified(f"{peer} says that it has connected a data channel, and has not")
    return came


def _plain(stream: trio.SocketStream) -> socket.socket:
    """Another handle of its socket, blocking; small frames are sent at once."""
    plain = socket.socket(fileno=os.dup(stream.socket.fileno()))
    plain.setblocking(True)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return plain


async def _exactly(stream: trio.SocketStream, n: int) -> bytes:
    data = b""
    while len(data) < n:
        more = await stream.receive_some(n - len(data))
        if not more:
            raise PeerLost("a connection for a data channel was closed before its ticket")
        data += more
    return data


def _packed(certificate: bytes, ports: dict[int, int], ticket: bytes) -> bytes:
    offer = {"certificate": certificate.decode(), "ports": ports, "ticket": ticket.hex()}
    return json.dumps(offer, separators=(",", ":")).encode()


def _offer(frame: bytes, peer: str) -> _Offer:
    """Errors: :class:`NotVerified` for what is none."""
    try:
        if len(frame) > _MAX_OFFER:
            raise ValueError("it is too long")
        told = json.loads(frame)
        certificate = x509.load_pem_x509_certificate(told["certificate"].encode())
        ports = {version: told["ports"].get(str(version)) for version in (4, 6)}
        for port in ports.values():
            if port is not None and not (type(port) is int and 0 < port < 1 << 16):
                raise ValueError("a port is none")
        ticket = bytes.fromhex(told["ticket"])
        if len(ticket) != TICKET:
            raise ValueError("its ticket has another length")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise NotVerified(f"{peer} offers a malformed data channel: {error}") from None
    there = {version: port for version, port in ports.items() if port is not None}
    return _Offer(certificate.public_bytes(serialization.Encoding.PEM), there, ticket)


def _connected(frame: bytes, peer: str) -> bool:
    if frame not in (_YES, _NO):
        raise NotVerified(f"{peer} does not say whether it has connected a data channel")
    return frame == _YES


def _certificate() -> tuple[bytes, bytes]:
    """A fresh certificate, signed by its own key and good for nothing else; and the key. PEM."""
    key, day = ec.generate_private_key(ec.SECP256R1()), datetime.timedelta(days=1)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kwaai data channel")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)  # clocks differ, and it is for one use anyway
        .not_valid_after(now + day)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
