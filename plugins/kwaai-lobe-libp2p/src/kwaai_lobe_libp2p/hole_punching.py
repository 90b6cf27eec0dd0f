"""Hole punching: a direct connection in place of one through a relay (DCUtR of libp2p).

Who was dialled through the relay asks. Both tell where the relay sees them, and dial each other at
the same moment, from the very port that the relay sees. Nothing that a peer says is believed for
more than that: its addresses are dialled a few times, and who is there has to prove its key.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio
from google.protobuf.message import DecodeError
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from multiaddr import Multiaddr

from kwaai_core import FrameError, KwaaiError, PeerDenied, PeerUnreachable
from kwaai_lobe_libp2p import identify
from kwaai_lobe_libp2p.addresses import Address, readable
from kwaai_lobe_libp2p.connection import Connection, Handshake
from kwaai_lobe_libp2p.meeting import meet
from kwaai_lobe_libp2p.network import Network
from kwaai_lobe_libp2p.outside import Outside, Way, may_be_dialled
from kwaai_lobe_libp2p.rates import Rates
from kwaai_lobe_libp2p.streams import ByteStream
from kwaai_lobe_libp2p.tasks import within

DCUTR = "/libp2p/dcutr"

TRIES, PAUSE, WINDOW = 3, 1.0, 6.0
"""How often a hole is tried for, after how many seconds again, and for how many seconds: in them a
first packet that is lost is sent again twice."""

ADDRESSES = 4
"""How many of the addresses that a peer tells are dialled."""

TALK, PLAIN_DIAL, LET_IN = 10.0, 3.0, 30.0
"""Seconds for what both say before they dial; for a dial of where the peer says it listens; and
until the door lets in who has come over a relay."""

EACH, EVERY, AT_ONCE = 6, 20.0, 16
"""Tries with one peer in a row, and then one in so many seconds; tries with all at once."""

GRACE, LONGEST = 10.0, 600.0
"""How often a relayed connection beside a direct one is closed if nothing runs on it, and after how
many seconds in any case."""

_LOOK = 0.2

_log = logging.getLogger(__name__)


class HolePuncher:
    """Gets direct connections to those that this node is connected to through a relay."""

    def __init__(self, network: Network, handshake: Handshake, nursery: trio.Nursery) -> None:
        self._network = network
        self._handshake = handshake
        self._nursery = nursery
        self._outside = Outside(network)
        self._rates = Rates(1 / EVERY, EACH, clock=trio.current_time)
        self._asking: set[str] = set()
        self._room = trio.CapacityLimiter(AT_ONCE)

    # -- who was dialled through the relay, and so asks ------------------------------------------

    async def upgrade(self, relayed: Connection) -> None:
        """Try for a direct connection to who has dialled this node through a relay."""
        peer = relayed.peer
        if peer in self._asking:
            return
        self._asking.add(peer)
        try:
            if await self._is_let_in(relayed) and not await self._dialled_plainly(relayed):
                await self._insist(relayed)
        finally:
            self._asking.discard(peer)

    async def _is_let_in(self, relayed: Connection) -> bool:
        with trio.move_on_after(LET_IN):
            while relayed.is_up:
                if self._network.lets_in(relayed.peer, DCUTR):
                    return True
                await trio.sleep(_LOOK)  # the door tells nobody that it has met a peer
        return False

    async def _dialled_plainly(self, relayed: Connection) -> bool:
        """Whether the peer can be dialled where it says it listens."""
        try:
            way = await self._outside.of(relayed)
            known = self._network.book.of(relayed.peer)
            plain = [one for one in known if may_be_dialled(one, way.relay)]
            with within(PLAIN_DIAL, f"dialling {relayed.peer}"):
                connection = await self._network.dialler.reach(relayed.peer, plain, all_=True)
            await self._take_on(connection, relayed)
        except KwaaiError as error:
            _log.debug("no direct way to where %s listens: %s", relayed.peer, error.message)
            return False
        return True

    async def _insist(self, relayed: Connection) -> None:
        for number in range(TRIES):
            if number:
                await trio.sleep(PAUSE)
            if self._is_direct(relayed.peer) or not relayed.is_up:
                return
            try:
                await self._ask(relayed)
            except KwaaiError as error:
                self._failed(relayed, error)
            else:
                return

    async def _ask(self, relayed: Connection) -> None:
        """Errors: :class:`KwaaiError` of any kind where no hole was punched."""
        self._allow(relayed.peer)
        way = await self._outside.of(relayed)
        with within(TALK, "agreeing on when to dial"):
            stream = await relayed.open(DCUTR)
        try:
            with within(TALK, "agreeing on when to dial"):
                began = trio.current_time()
                await _say(stream, HolePunch.CONNECT, way.observed)
                theirs = _addresses(await _heard(stream, HolePunch.CONNECT), relayed.peer, way)
                rtt = trio.current_time() - began
                await _say(stream, HolePunch.SYNC)
            await trio.sleep(rtt / 2)
            await self._meet(relayed, way, theirs, server=True)
        finally:
            await stream.reset()

    # -- who has dialled through the relay, and so answers ---------------------------------------

    async def prepare(self, relayed: Connection) -> None:
        """Find out how this node is seen, so that an answer takes no longer than the way."""
        try:
            await self._outside.of(relayed)
        except KwaaiError as error:
            self._failed(relayed, error)

    async def serve(self, stream: ByteStream) -> None:
        """Answer a peer that wants a direct connection.

        Errors: :class:`FrameError` for what nobody would ask; any :class:`KwaaiError`.
        """
        peer = stream.peer
        relayed = self._network.relayed(peer)
        if relayed is None:
            raise FrameError(f"{peer} wants to punch a hole, and comes through no relay")
        if peer in self._asking and self._network.peer < peer:
            raise PeerDenied(f"this node has asked {peer} for the same, and one has to give way")
        self._allow(peer)
        try:
            with within(TALK, "agreeing on when to dial"):
                way = await self._outside.of(relayed)
                theirs = _addresses(await _heard(stream, HolePunch.CONNECT), peer, way)
                await _say(stream, HolePunch.CONNECT, way.observed)
                await _heard(stream, HolePunch.SYNC)
            await self._meet(relayed, way, theirs, server=False)
        except KwaaiError as error:
            self._failed(relayed, error)
            raise

    # -- both ------------------------------------------------------------------------------------

    def _allow(self, peer: str) -> None:
        """Errors: :class:`PeerDenied`."""
        if self._room.available_tokens < 1:
            raise PeerDenied("too many holes are tried for at once")
        if not self._rates.take(peer):
            raise PeerDenied(f"holes are tried for too often with {peer}")

    async def _meet(
        self, relayed: Connection, way: Way, theirs: Sequence[Address], *, server: bool
    ) -> None:
        """Errors: :class:`PeerUnreachable`, :class:`PeerDenied`."""

        async def secure(stream: trio.SocketStream, there: Address) -> Connection:
            at = Address(there.kind, there.host, there.port, relayed.peer)
            if not server:
                return await self._handshake.outbound(stream, at)
            connection = await self._handshake.inbound(stream, at)
            if connection.peer != relayed.peer:
                connection.discard()
                raise PeerUnreachable("another peer is there")
            return connection

        async with self._room:
            connection = await meet(way.local, theirs, secure, seconds=WINDOW)
        await self._take_on(connection, relayed)

    async def _take_on(self, connection: Connection, relayed: Connection) -> None:
        """Errors: :class:`PeerUnreachable`, :class:`PeerDenied`."""
        await self._network.take_on(connection)
        _log.info("%s is reached directly now, at %s", connection.peer, connection.address.place)
        self._nursery.start_soon(self._give_up, relayed)

    async def _give_up(self, relayed: Connection) -> None:
        """Close a relayed connection: no stream that runs on it is cut before long."""
        last = trio.current_time() + LONGEST
        while relayed.is_up:
            await trio.sleep(GRACE)
            if not self._is_direct(relayed.peer):
                return  # it is the only way again
            if relayed.is_idle or trio.current_time() >= last:
                relayed.close()

    def _is_direct(self, peer: str) -> bool:
        best = self._network.best(peer)
        return best is not None and not best.address.relay

    def _failed(self, relayed: Connection, error: KwaaiError) -> None:
        relayed.why_relayed = f"no hole was punched: {error.message}"
        _log.info("%s stays relayed: %s", relayed.peer, relayed.why_relayed)


async def _say(stream: ByteStream, kind: HolePunch.Type.ValueType, *seen: Address) -> None:
    told = [Multiaddr(one.place).to_bytes() for one in seen]
    said = HolePunch(type=kind, ObsAddrs=told)
    await stream.write(identify.message(said.SerializeToString()))


async def _heard(stream: ByteStream, kind: HolePunch.Type.ValueType) -> HolePunch:
    """Errors: :class:`FrameError`, :class:`PeerLost`."""
    try:
        said = HolePunch.FromString(await identify.read_message(stream, 4096))
    except DecodeError as error:
        raise FrameError("what came is no message of hole punching") from error
    if said.type != kind:
        raise FrameError(f"a message of kind {said.type} came: {kind} is due")
    return said


def _addresses(said: HolePunch, peer: str, way: Way) -> list[Address]:
    """Those that are dialled. Errors: :class:`FrameError` where there is none."""
    told = readable((identify.text_of(raw) for raw in said.ObsAddrs[:16]), peer)
    fit = [one for one in dict.fromkeys(told) if may_be_dialled(one, way.relay)]
    if not fit:
        raise FrameError(f"{peer} tells no address that could be its router's")
    return fit[:ADDRESSES]
