"""Meeting: a TCP connection between two who both dial, each from a port that it uses already.

A router that lets nothing in lets in the answer to what went out. So both ends dial at once, from
the port whose outside the other was told of, and the first packets open the way for each other.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress

import trio

from kwaai_core import PeerUnreachable
from kwaai_lobe_libp2p.addresses import Address, of_socket
from kwaai_lobe_libp2p.connection import Connection

AGAIN = 0.5
"""After how many seconds an address that refused is dialled again, in the same try."""

_REUSE = getattr(socket, "SO_REUSEPORT", None)
_FAMILY = {"ip4": socket.AF_INET, "ip6": socket.AF_INET6}
_COMERS = 16

Secure = Callable[[trio.SocketStream, Address], Awaitable[Connection]]
"""The handshake with who is at an address; errors: :class:`PeerUnreachable`."""


def share(sock: trio.socket.SocketType) -> None:
    """Let other sockets of this user be bound to the port of this one, where the system can."""
    if _REUSE is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, _REUSE, 1)


async def dial(family: int, host: str, port: int) -> trio.SocketStream:
    """Connect from a port that nobody else dials from, so that :func:`meet` can use it as well.

    Of a socket that was not bound first the system may give the port to others, and then not again.
    Errors: OSError.
    """
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        share(sock)
        await sock.bind(("", 0))
        await sock.connect((host, port))
        return trio.SocketStream(sock)
    except BaseException:
        sock.close()
        raise


async def meet(
    local: Address, theirs: Sequence[Address], secure: Secure, *, seconds: float
) -> Connection:
    """A connection from the port of ``local`` to one of these addresses, or from there.

    Errors: :class:`PeerUnreachable`, with the cause for each address.
    """
    theirs = [one for one in theirs if one.kind == local.kind]
    if not theirs:
        raise PeerUnreachable("the other end has no address of this kind")
    meeting = _Meeting(local, secure)
    try:
        with trio.move_on_after(seconds):
            await meeting.run(theirs)
    finally:
        for superfluous in meeting.found[1:]:
            superfluous.discard()
    if not meeting.found:
        causes = (f"{one.place}: {meeting.causes.get(one.host, 'no answer')}" for one in theirs)
        raise PeerUnreachable("; ".join(causes))
    return meeting.found[0]


class _Meeting:
    def __init__(self, local: Address, secure: Secure) -> None:
        self.found: list[Connection] = []
        self.causes: dict[str, str] = {}
        self._local = local
        self._secure = secure

    async def run(self, theirs: Sequence[Address]) -> None:
        """Dial all, and take who comes from there, until there is a connection."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._accept, {one.host for one in theirs}, nursery)
            for there in theirs:
                nursery.start_soon(self._dial, there, nursery.cancel_scope)

    async def _dial(self, there: Address, others: trio.CancelScope) -> None:
        while True:
            try:
                stream = await self._connected(there)
            except OSError as error:
                self._failed(there, error)
            else:
                await self._try(stream, there, others)
            await trio.sleep(AGAIN)

    async def _connected(self, there: Address) -> trio.SocketStream:
        sock = await self._bound()
        try:
            await sock.connect((there.host, there.port))
            return trio.SocketStream(sock)
        except BaseException:
            sock.close()
            raise

    async def _accept(self, hosts: Collection[str], nursery: trio.Nursery) -> None:
        """Who comes from one of the hosts, as when only this end's router is in the way."""
        with suppress(OSError), await self._bound() as sock:
            sock.listen(_COMERS)
            for _ in range(_COMERS):
                accepted, name = await sock.accept()
                there = of_socket(name)
                if there.host in hosts:
                    stream = trio.SocketStream(accepted)
                    nursery.start_soon(self._try, stream, there, nursery.cancel_scope)
                else:
                    accepted.close()

    async def _bound(self) -> trio.socket.SocketType:
        sock = trio.socket.socket(_FAMILY[self._local.kind], socket.SOCK_STREAM)
        try:
            share(sock)
            await sock.bind((self._local.host, self._local.port))
        except BaseException:
            sock.close()
            raise
        return sock

    async def _try(self, stream: trio.SocketStream, there: Address, all_: trio.CancelScope) -> None:
        try:
            connection = await self._secure(stream, there)
        except PeerUnreachable as error:
            self.causes[there.host] = error.message
        else:
            self.found.append(connection)
            all_.cancel()

    def _failed(self, there: Address, error: OSError) -> None:
        if error.errno != errno.EADDRNOTAVAIL:  # that is: the two have a connection already
            self.causes[there.host] = os.strerror(error.errno) if error.errno else str(error)
