"""The role transport: connections, streams, the directory and topics, put together."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from trio.abc import ReceiveChannel

from kwaai_core import (
    Broadcast,
    ConfigError,
    DataChannel,
    Door,
    FrameError,
    Host,
    Identity,
    KwaaiError,
    Link,
    PeerLost,
    PeerUnreachable,
    Record,
    RequestError,
    Stream,
)
from kwaai_core.peering import DEADLINE, MAX_FRAME, StreamHandler
from kwaai_lobe_libp2p import identify, listening
from kwaai_lobe_libp2p.addresses import Address, of_socket, parse, readable
from kwaai_lobe_libp2p.connection import Connection, Handshake
from kwaai_lobe_libp2p.data_channel import DataChannels, open_data_channels
from kwaai_lobe_libp2p.directory import Directory, open_directory
from kwaai_lobe_libp2p.discovery import Memory, open_discovery
from kwaai_lobe_libp2p.hole_punching import DCUTR, HolePuncher
from kwaai_lobe_libp2p.network import Network
from kwaai_lobe_libp2p.relay import Circuits, open_relaying
from kwaai_lobe_libp2p.sequence import Sequence as Numbers
from kwaai_lobe_libp2p.settings import Libp2pSettings
from kwaai_lobe_libp2p.streams import ByteStream, FrameStream
from kwaai_lobe_libp2p.tasks import background, within
from kwaai_lobe_libp2p.topics import Topics, open_topics

_IDENTIFY_WITHIN = 10.0

_log = logging.getLogger(__name__)


class Libp2pTransport:
    """A :class:`kwaai_core.Transport`; made by :func:`open_transport`."""

    channels: DataChannels
    directory: Directory
    topics: Topics

    def __init__(
        self,
        identity: Identity,
        settings: Libp2pSettings,
        handshake: Handshake,
        listeners: Sequence[trio.SocketListener],
        nursery: trio.Nursery,
    ) -> None:
        self._identity = identity
        self._settings = settings
        self._bound = [of_socket(one.socket.getsockname()) for one in listeners]
        self._nursery = nursery
        self._guarded = trio.Event()
        self.network = Network(identity.peer_id, handshake, settings, nursery, self._relayed)
        self.circuits = Circuits(self.network, handshake, self.network.adopt)
        self.puncher = HolePuncher(self.network, handshake, nursery)
        self.network.met = self._met

    # -- who and where ---------------------------------------------------------------------------

    @property
    def addresses(self) -> Sequence[str]:
        """See :attr:`kwaai_core.Transport.addresses`."""
        peer = self._identity.peer_id
        own = [f"{address.place}/p2p/{peer}" for address in listening.reachable(self._bound)]
        relayed = [f"{place}/p2p-circuit/p2p/{peer}" for place in self.circuits.places]
        announced = [f"{parse(text).place}/p2p/{peer}" for text in self._settings.announce]
        return list(dict.fromkeys([*announced, *own, *relayed]))

    def guard(self, door: Door) -> None:
        """See :meth:`kwaai_core.Transport.guard`."""
        self.network.door = door
        self._guarded.set()

    def learn(self, peer: str, addresses: Sequence[str]) -> None:
        """Remember where a peer may be reached, as somebody says."""
        if peer != self._identity.peer_id:
            self.network.book.learn(peer, readable(addresses, peer))

    async def connect(self, addresses: Sequence[str], *, seconds: float = DEADLINE) -> str:
        """See :meth:`kwaai_core.Transport.connect`. Errors: also :class:`RequestError`."""
        parsed = [parse(address) for address in addresses]
        peers = {address.peer for address in parsed}
        if len(peers) != 1 or not (peer := peers.pop()):
            raise RequestError(f"these are not addresses of one peer: {', '.join(addresses)}")
        with within(seconds, f"connecting to {peer}"):
            await self.network.connected(peer, parsed)
        return peer

    async def disconnect(self, peer: str) -> None:
        """See :meth:`kwaai_core.Transport.disconnect`."""
        await self.network.disconnect(peer)

    def links(self) -> Sequence[Link]:
        """See :meth:`kwaai_core.Transport.links`."""
        return self.network.links()

    async def ping(self, peer: str, *, seconds: float = DEADLINE) -> float:
        """See :meth:`kwaai_core.Transport.ping`."""
        with within(seconds, f"a ping of {peer}"):
            stream = await self.network.open(peer, identify.PING)
            try:
                took = await identify.ping(stream)
            except (FrameError, PeerLost) as error:
                raise PeerUnreachable(f"{peer} does not answer a ping: {error.message}") from error
            finally:
                await stream.reset()
        if (connection := self.network.best(peer)) is not None:
            connection.rtt = took
        return took

    # -- streams ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def open(
        self, peer: str, protocol: str, *, max_frame: int = MAX_FRAME, seconds: float = DEADLINE
    ) -> AsyncIterator[FrameStream]:
        """See :meth:`kwaai_core.Transport.open`."""
        with within(seconds, f"opening {protocol} at {peer}"):
            wire = await self.network.open(peer, protocol)
        try:
            yield FrameStream(wire, protocol, max_frame)
        finally:
            await wire.reset()

    @asynccontextmanager
    async def serve(
        self, protocol: str, handler: StreamHandler, *, max_frame: int = MAX_FRAME
    ) -> AsyncIterator[None]:
        """See :meth:`kwaai_core.Transport.serve`."""

        async def handle(wire: ByteStream) -> None:
            await handler(FrameStream(wire, protocol, max_frame))

        async with self.network.services.serve(protocol, handle):
            yield

    async def data_channel(
        self, stream: Stream, *, seconds: float = DEADLINE
    ) -> DataChannel | None:
        """See :meth:`kwaai_core.Transport.data_channel`."""
        if not isinstance(stream, FrameStream):
            raise TypeError(f"{stream!r} is a stream of another transport")
        wire = stream.wire
        return await self.channels.meet(stream, opener=wire.opener, host=wire.host, seconds=seconds)

    # -- the directory ---------------------------------------------------------------------------

    async def publish(self, name: str, body: bytes, *, seconds: float) -> None:
        """See :meth:`kwaai_core.Transport.publish`."""
        await self.directory.publish(name, body, seconds=seconds)

    async def lookup(self, peer: str, name: str, *, seconds: float = DEADLINE) -> Record | None:
        """See :meth:`kwaai_core.Transport.lookup`."""
        return await self.directory.lookup(peer, name, seconds=seconds)

    async def provide(self, key: str, *, seconds: float) -> None:
        """See :meth:`kwaai_core.Transport.provide`."""
        await self.directory.provide(key, seconds=seconds)

    async def providers(self, key: str, *, seconds: float = DEADLINE) -> Sequence[str]:
        """See :meth:`kwaai_core.Transport.providers`."""
        return await self.directory.providers(key, seconds=seconds)

    async def nearest(self, key: str, k: int, *, seconds: float = DEADLINE) -> Sequence[str]:
        """See :meth:`kwaai_core.Transport.nearest`."""
        return await self.directory.nearest(key, k, seconds=seconds)

    # -- topics ----------------------------------------------------------------------------------

    def subscribe(self, topic: str) -> AbstractAsyncContextManager[ReceiveChannel[Broadcast]]:
        """See :meth:`kwaai_core.Transport.subscribe`."""
        return self.topics.subscribe(topic)

    async def broadcast(self, topic: str, body: bytes) -> None:
        """See :meth:`kwaai_core.Transport.broadcast`."""
        await self.topics.broadcast(topic, body)

    # -- inside ----------------------------------------------------------------------------------

    async def _relayed(self, address: Address) -> trio.abc.Stream:
        return await self.circuits.dial(address)

    def _met(self, connection: Connection) -> None:
        """Ask who has dialled where it can be dialled itself, and see to a direct connection."""
        if connection.inbound:
            self._nursery.start_soon(self._ask, connection)
        elif connection.address.relay and self._settings.hole_punching:
            self._nursery.start_soon(self.puncher.prepare, connection)

    async def _ask(self, connection: Connection) -> None:
        try:
            with within(_IDENTIFY_WITHIN, "asking who that is"):
                stream = await connection.open(identify.IDENTIFY)
                try:
                    listens, _ = await identify.ask_identity(stream)
                finally:
                    await stream.reset()
        except KwaaiError as error:
            _log.debug("%s does not say where it listens: %s", connection.peer, error.message)
        else:
            self.learn(connection.peer, listens)
        if connection.address.relay and self._settings.hole_punching:
            await self.puncher.upgrade(connection)

    async def serve_identify(self, key: Any, stream: ByteStream) -> None:
        """Tell a peer who this node is, where it listens, and where it sees the peer."""
        links = {link.peer: link.address for link in self.links()}
        observed = links.get(stream.peer, "/ip4/0.0.0.0/tcp/0").partition("/p2p/")[0]
        said = identify.description(key, self.addresses, self.network.services.protocols, observed)
        await stream.write(said)
        await stream.finish()

    async def discover(self, memory: Memory) -> None:
        """Look for peers, once there is a door that greets them."""
        await self._guarded.wait()
        for relay in self._settings.relays:
            self._nursery.start_soon(self.circuits.keep_place, parse(relay))
        looking = open_discovery(
            self,
            self._identity.peer_id,
            memory,
            bootstrap=self._settings.bootstrap,
            local_network=self._settings.mdns,
            addresses_of=lambda peer: [str(one) for one in self.network.book.of(peer)],
            belongs=self.network.belongs,
        )
        async with looking:
            await trio.sleep_forever()

    def describe(self) -> Mapping[str, Any]:
        """See :meth:`kwaai_core.Describes.describe`."""
        return {
            "addresses": list(self.addresses),
            "connections": len(list(self.network)),
            "directory": self.directory.facts(),
            "topics": self.topics.facts(),
        }


def _check(settings: Libp2pSettings) -> None:
    """Errors: :class:`ConfigError` for an address that cannot be used."""
    for key in ("announce", "bootstrap", "relays"):
        for text in getattr(settings, key):
            try:
                address = parse(text)
            except RequestError as error:
                raise ConfigError(f"[libp2p] {key}: {error.message}") from None
            if key != "announce" and not address.peer:
                raise ConfigError(f"[libp2p] {key}: {text} lacks the peer id, /p2p/12D3KooW…")


@asynccontextmanager
async def open_transport(host: Host) -> AsyncIterator[Libp2pTransport]:
    """Listen, and be reachable and reach others while the context is open.

    Errors: :class:`ConfigError` where it cannot listen; :class:`ValueError` where the network's key
    cannot be read any more.
    """
    settings = host.settings(Libp2pSettings)
    identity = host.identity
    if identity is None:
        raise KwaaiError("libp2p needs the role identity: pip install kwaai-lobe-identity")
    keys = create_new_key_pair(identity.handshake_key())
    handshake = Handshake(keys, identity, settings.network_key())
    _check(settings)
    listeners = await listening.listen(settings.listen, listening.Ports(host.state / "ports.json"))
    try:
        async with background() as nursery, AsyncExitStack() as stack:
            transport = Libp2pTransport(identity, settings, handshake, listeners, nursery)
            network = transport.network
            serve = network.services.serve
            about = partial(transport.serve_identify, keys.public_key)
            await stack.enter_async_context(serve(identify.IDENTIFY, about, to_all=True))
            await stack.enter_async_context(serve(identify.PING, identify.answer_ping, to_all=True))
            await stack.enter_async_context(
                open_relaying(network, transport.circuits, relay=settings.relay)
            )
            if settings.hole_punching:
                await stack.enter_async_context(serve(DCUTR, transport.puncher.serve))
            porch = listening.Porch(handshake, network.adopt)
            if listeners:
                nursery.start_soon(trio.serve_listeners, porch.admit, listeners)
            hosts = dict.fromkeys(parse(text).host for text in settings.listen)
            transport.channels = await stack.enter_async_context(open_data_channels(list(hosts)))
            numbers = Numbers(host.state / "sequence")
            transport.directory = await stack.enter_async_context(
                open_directory(
                    identity,
                    transport,
                    numbers.next,
                    learn=transport.learn,
                    allows=network.lets_in,
                )
            )
            transport.topics = await stack.enter_async_context(
                open_topics(identity, transport, allows=network.lets_in)
            )
            nursery.start_soon(transport.discover, Memory(host.state / "peers.json"))
            yield transport
    finally:
        listening.close(listeners)
