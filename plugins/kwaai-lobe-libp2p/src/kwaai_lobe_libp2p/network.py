"""The connections of this node: who may have one, and how one is got."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial

import trio

from kwaai_core import (
    Door,
    FrameError,
    KwaaiError,
    Link,
    PeerDenied,
    PeerLost,
    PeerUnreachable,
    ProtocolRefused,
)
from kwaai_core.peering import HELLO
from kwaai_lobe_libp2p.addresses import Address
from kwaai_lobe_libp2p.book import AddressBook
from kwaai_lobe_libp2p.connection import Connection, Handshake
from kwaai_lobe_libp2p.dialling import Dialler, Relayed
from kwaai_lobe_libp2p.rates import Rates
from kwaai_lobe_libp2p.serving import Services
from kwaai_lobe_libp2p.settings import Libp2pSettings
from kwaai_lobe_libp2p.streams import ByteStream

_GUESTS = 8
"""Of so many connections one may be taken, from who uses it least, for a peer not let in yet."""

_greeting: ContextVar[Connection | None] = ContextVar("_greeting", default=None)
"""The connection on which this task greets a peer: to all others it is not ready yet."""

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Dial:
    """A dial that is under way, for all who want that peer."""

    done: trio.Event = field(default_factory=trio.Event)
    error: KwaaiError | None = None


class Network:
    """Connections by peer; made by the transport, whose ``nursery`` carries them."""

    def __init__(
        self,
        peer: str,
        handshake: Handshake,
        settings: Libp2pSettings,
        nursery: trio.Nursery,
        relayed: Relayed,
    ) -> None:
        self.peer = peer
        self.door: Door | None = None
        self.book = AddressBook(trio.current_time, self.belongs)
        self.met: Callable[[Connection], None] = lambda connection: None
        self._settings = settings
        self._nursery = nursery
        self.dialler = Dialler(handshake, self.book, relayed)
        self._connections: dict[str, list[Connection]] = {}
        self._dials: dict[str, _Dial] = {}
        self.services = Services(settings, nursery, self.lets_in)
        self._bytes = Rates(settings.peer_bytes, settings.peer_bytes, clock=trio.current_time)

    def __iter__(self) -> Iterator[Connection]:
        return (one for several in self._connections.values() for one in several)

    def links(self) -> list[Link]:
        """See :meth:`kwaai_core.Transport.links`."""
        best = (self.best(peer) for peer in list(self._connections))
        return [_link(one) for one in best if one is not None]

    def best(self, peer: str) -> Connection | None:
        """The connection to a peer that a stream is best opened on: direct rather than relayed."""
        greeting = _greeting.get()
        usable = [
            one
            for one in self._connections.get(peer, ())
            if one.is_up and (one.ready.is_set() or one is greeting)
        ]
        return min(usable, key=lambda one: bool(one.address.relay), default=None)

    def relayed(self, peer: str) -> Connection | None:
        """A connection to a peer that goes through a relay."""
        mine = self._connections.get(peer, ())
        return next((one for one in mine if one.is_up and one.address.relay), None)

    # -- connections ---------------------------------------------------------------------------

    async def adopt(
        self,
        connection: Connection,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Carry a connection to its end. Errors, if it was dialled: :class:`PeerDenied`."""
        peer = connection.peer
        try:
            self._make_room(peer, inbound=connection.inbound)
        except PeerDenied as error:
            connection.discard()
            if not connection.inbound:
                raise
            _log.info("a connection of %s is turned away: %s", peer, error.message)
            return
        self._connections.setdefault(peer, []).append(connection)
        connection.tcp.pace = partial(self._bytes.overdraw, peer)
        if connection.inbound:
            connection.ready.set()
            self.met(connection)
        try:
            await connection.run(self.services.take, task_status=task_status)
        finally:
            connection.discard()
            self._connections[peer].remove(connection)
            if not self._connections[peer]:
                del self._connections[peer]

    def _check(self, peer: str) -> None:
        """Errors: :class:`PeerDenied` where there is to be no connection to a peer at all."""
        if peer == self.peer:
            raise PeerDenied(f"{peer} is this node itself")
        if self.door is not None and not self.door.allows(peer, HELLO):
            raise PeerDenied(f"{peer} is blocked here: kwaai peers unblock, or [peers] deny")

    def _make_room(self, peer: str, *, inbound: bool = False) -> None:
        """Errors: :class:`PeerDenied`."""
        self._check(peer)
        mine = [one for one in self._connections.get(peer, ()) if one.is_up]
        if len(mine) >= self._settings.peer_connections:
            self._prune(mine, f"{peer} has {len(mine)} connections", busy=True)
        every = [one for one in self if one.is_up]
        if len(every) >= self._settings.max_connections:
            guests = [one for one in every if one.inbound and not self.belongs(one.peer)]
            few = inbound and not self.belongs(peer) and len(guests) * _GUESTS < len(every)
            among = every if few or not guests else guests
            why = f"this node has {len(every)} connections"
            self._prune(among, why, busy=among is guests)

    def belongs(self, peer: str) -> bool:
        """Whether the door lets a peer use more than what all may: others make room for it."""
        return self.lets_in(peer, "")

    def _prune(self, among: Sequence[Connection], why: str, *, busy: bool = False) -> None:
        """Close the one that was idle for longest, or with ``busy`` not used for longest.

        Errors: :class:`PeerDenied` where there is none such.
        """
        idle = [one for one in among if busy or (one.is_idle and one.ready.is_set())]
        if not idle:
            raise PeerDenied(f"{why}, all in use, and [libp2p] allows no more")
        victim = min(idle, key=lambda one: (not one.is_idle, one.used))
        _log.info("a connection to %s is closed: %s", victim.peer, why)
        victim.close()

    async def disconnect(self, peer: str) -> None:
        """Close every connection to a peer, and wait until they are gone."""
        mine = list(self._connections.get(peer, ()))
        for connection in mine:
            connection.close()
        for connection in mine:
            await connection.closed.wait()
        await trio.lowlevel.checkpoint()

    async def connected(self, peer: str, addresses: Sequence[Address] | None = None) -> Connection:
        """A connection to a peer, dialled and greeted if need be.

        ``addresses`` are to be tried, whatever is known of them; None is those that are known.

        Errors: :class:`PeerUnreachable`, :class:`PeerDenied`.
        """
        await trio.lowlevel.checkpoint()
        while (found := self.best(peer)) is None:
            greeting = _greeting.get()
            if greeting is not None and greeting.peer == peer:
                self._check_up(greeting)  # the dial that this is part of would wait for itself
            dial = self._dials.get(peer)
            if dial is None:
                dial = self._dials[peer] = _Dial()
                self._nursery.start_soon(self._dial, peer, addresses, dial)
            await dial.done.wait()
            if dial.error is not None:
                raise type(dial.error)(dial.error.message)
        return found

    async def _dial(self, peer: str, addresses: Sequence[Address] | None, dial: _Dial) -> None:
        try:
            self._check(peer)
            known = self.book.of(peer) if addresses is None else addresses
            found = await self.dialler.reach(peer, known, all_=addresses is not None)
            await self.take_on(found)
        except KwaaiError as error:
            dial.error = error
        except Exception as error:  # noqa: BLE001 - what a peer said, or a disk: it ends one dial
            _log.warning("dialling %s failed", peer, exc_info=True)
            dial.error = PeerUnreachable(f"{peer} cannot be reached: {error!r}")
        finally:
            del self._dials[peer]
            dial.done.set()

    async def take_on(self, connection: Connection) -> None:
        """Carry a connection that this node made; in the dialler's part, greet who is there first.

        Errors: :class:`PeerUnreachable`, :class:`PeerDenied`.
        """
        if connection.inbound:
            self._nursery.start_soon(self.adopt, connection)
            return
        await self._nursery.start(self.adopt, connection)
        if connection.dialled is not None:
            self.book.worked(connection.dialled)
        await self._greet(connection)
        self.book.met(connection.peer)
        self._check_up(connection)

    def _check_up(self, connection: Connection) -> None:
        """Errors: :class:`PeerUnreachable` where a connection was closed right after its start."""
        if not connection.is_up:
            cause = "it closed the connection at once; perhaps it denies this node"
            self.book.failed(connection.dialled or connection.address, cause)
            raise PeerUnreachable(f"{connection.peer} cannot be reached: {cause}")

    async def _greet(self, connection: Connection) -> None:
        if self.door is not None:
            token = _greeting.set(connection)
            try:
                await self.door.greet(connection.peer)
            except BaseException:
                connection.close()
                raise
            finally:
                _greeting.reset(token)
        connection.ready.set()
        self.met(connection)

    # -- streams -------------------------------------------------------------------------------

    async def open(self, peer: str, protocol: str) -> ByteStream:
        """Errors: :class:`PeerUnreachable`, :class:`PeerDenied`, :class:`ProtocolRefused`."""
        for last in (False, True):
            connection = await self.connected(peer)
            try:
                return await connection.open(protocol)
            except PeerLost as error:
                if last or connection.is_up:
                    raise PeerUnreachable(error.message) from error
                await connection.closed.wait()  # it broke just now: try on another
            except ProtocolRefused as error:
                raise ProtocolRefused(
                    f"{peer} does not serve {protocol}, or does not let this node use it"
                ) from error
            except FrameError as error:
                raise PeerUnreachable(f"{peer} cannot be talked to: {error.message}") from error
        raise AssertionError("the last try returns or raises")

    def lets_in(self, peer: str, protocol: str) -> bool:
        """Whether the door lets a peer in for a protocol; where there is none, it lets nobody."""
        return self.door is not None and self.door.allows(peer, protocol)


def _link(connection: Connection) -> Link:
    return Link(
        connection.peer,
        str(connection.address),
        connection.inbound,
        bool(connection.address.relay),
        connection.rtt or connection.muxer.rtt() or None,
        connection.why_relayed,
    )
