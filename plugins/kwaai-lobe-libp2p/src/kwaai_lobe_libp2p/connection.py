"""One connection to one peer, from its handshake to its end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import trio
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as new_x25519
from libp2p.peer.id import ID
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

from kwaai_core import Identity, NotVerified, PeerLost, PeerUnreachable
from kwaai_core.errors import cause_of
from kwaai_lobe_libp2p import remedies
from kwaai_lobe_libp2p.addresses import Address
from kwaai_lobe_libp2p.negotiation import agree, propose
from kwaai_lobe_libp2p.private import PrivateStream
from kwaai_lobe_libp2p.streams import ByteStream
from kwaai_lobe_libp2p.tcp import TcpConnection

NOISE, YAMUX = "/noise", "/yamux/1.0.0"
HANDSHAKE = 8.0
"""How many seconds a peer has to prove who it is."""

_FIRST = "agreeing on Noise"

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Connection:
    """A connection that is up; :meth:`run` has to run for it to do anything.

    ``ready`` is set once the door has greeted the peer, which is at once where the peer dialled;
    ``used`` is when a stream was last opened on it, ``dialled`` the address as it was known,
    ``local`` this end of a socket that this node dialled from, ``why_relayed`` why there is no
    direct connection beside this one through a relay, empty where nothing is known of that.
    """

    peer: str
    address: Address
    inbound: bool
    muxer: Yamux
    tcp: TcpConnection

    def __post_init__(self) -> None:
        self.ready = trio.Event()
        self.closed = trio.Event()
        self.used = trio.current_time()
        self.rtt: float | None = None
        self.dialled: Address | None = None
        self.local: Address | None = None
        self.why_relayed = ""
        self.tcp.heard = partial(remedies.hear, self.muxer)  # before a whole frame is there

    @property
    def is_up(self) -> bool:
        return not self.muxer.event_shutting_down.is_set() and not self.closed.is_set()

    @property
    def host(self) -> str | None:
        """The number of the peer's machine, None where that is not known."""
        return self.address.host if self.address.is_number and not self.address.relay else None

    @property
    def is_idle(self) -> bool:
        return not self.muxer.streams

    async def run(
        self,
        take: Callable[[Connection, ByteStream], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Carry streams, and have ``take`` take each that the peer opens, until it is over."""
        told = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._mux, nursery.cancel_scope)
                await self.muxer.event_started.wait()
                task_status.started()
                told = True
                while True:
                    muxed = cast(YamuxStream, await self.muxer.accept_stream())
                    self.used = trio.current_time()
                    take(self, ByteStream(muxed, self.peer, opener=False, host=self.host))
                    await trio.lowlevel.checkpoint()
        except* Exception as errors:  # noqa: BLE001 - whatever the peer made the library raise
            _log.debug("the connection to %s ended: %s", self.peer, cause_of(errors))
        finally:
            self.closed.set()
            if not told:
                task_status.started()  # over before it began: `is_up` says so

    async def _mux(self, scope: trio.CancelScope) -> None:
        try:
            await self.muxer.start()
        finally:
            scope.cancel()

    async def open(self, protocol: str) -> ByteStream:
        """A stream of a protocol. Errors: :class:`ProtocolRefused`, :class:`PeerLost`."""
        self.used = trio.current_time()
        try:
            muxed: YamuxStream = await self.muxer.open_stream()
        except (MuxedConnError, MuxedStreamError) as error:
            raise PeerLost(f"the connection to {self.peer} is gone: {error}") from error
        stream = ByteStream(muxed, self.peer, opener=True, host=self.host)
        try:
            await propose(stream, protocol)
        except BaseException:
            await stream.reset()
            raise
        return stream

    def close(self) -> None:
        """End it, with all its streams; whoever runs it then frees what it holds."""
        remedies.abandon(self.muxer)

    def discard(self) -> None:
        """Close a connection that was never run."""
        remedies.abandon(self.muxer)
        self.closed.set()
        self.tcp.cut()


class Handshake:
    """How connections of this node are secured: its key in Noise, and the network's, if any."""

    def __init__(self, keys: KeyPair, identity: Identity, network_key: bytes | None) -> None:
        self._noise = Noise(keys, new_x25519().private_key)
        self._identity = identity
        self._network_key = network_key

    async def outbound(self, stream: trio.abc.Stream, address: Address) -> Connection:
        """Make a connection to the peer of an address. Errors: :class:`PeerUnreachable`."""
        return await self._made(stream, address, inbound=False)

    async def inbound(self, stream: trio.abc.Stream, address: Address) -> Connection:
        """Make a connection with who dials. Errors: :class:`PeerUnreachable`."""
        return await self._made(stream, address, inbound=True)

    async def _made(
        self, stream: trio.abc.Stream, address: Address, *, inbound: bool
    ) -> Connection:
        if self._network_key is not None:
            stream = PrivateStream(stream, self._network_key)
        tcp = TcpConnection(stream, initiator=not inbound)
        step = _FIRST
        try:
            with trio.fail_after(HANDSHAKE):
                if inbound:
                    await agree(tcp, NOISE.__eq__)
                    step = "the handshake of Noise"
                    session = await self._noise.secure_inbound(tcp)
                    step = "agreeing on Yamux"
                    await agree(session, YAMUX.__eq__)
                else:
                    await propose(tcp, NOISE)
                    step = "the handshake of Noise"
                    session = await self._noise.secure_outbound(tcp, ID.from_string(address.peer))
                    step = "agreeing on Yamux"
                    await propose(session, YAMUX)
                peer = str(session.get_remote_peer())
                self._identity.did_of(peer)
        except BaseException as error:
            await trio.aclose_forcefully(stream)
            if not isinstance(error, Exception):
                raise
            raise PeerUnreachable(f"{step} failed: {self._reason(error, step)}") from error
        muxer = Yamux(session, session.get_remote_peer(), is_initiator=not inbound)
        found = Address(address.kind, address.host, address.port, peer, address.relay)
        return Connection(peer, found, inbound, muxer, tcp)

    def _reason(self, error: Exception, step: str) -> str:
        if isinstance(error, trio.TooSlowError):
            reason = f"nothing came for {HANDSHAKE:g} s"
        elif isinstance(error, PeerIDMismatchesPubkey):
            return "another peer is there"
        elif isinstance(error, NotVerified):
            return error.message
        else:
            reason = cause_of(error)
        if step != _FIRST:
            return reason
        mine = "its key is not this node's" if self._network_key else "this node has no key for it"
        return f"{reason}; if the other is in a private network, {mine} (network_key_file)"
