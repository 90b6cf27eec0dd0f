"""Dialling: all known addresses of a peer, one soon after the other, until one answers."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from operator import methodcaller

import trio

from kwaai_core import PeerUnreachable
from kwaai_lobe_libp2p.addresses import Address, of_socket
from kwaai_lobe_libp2p.book import AddressBook
from kwaai_lobe_libp2p.connection import Connection, Handshake
from kwaai_lobe_libp2p.meeting import dial

STAGGER = 0.15
"""After how many seconds the next address is tried while those before have not failed yet."""

ATTEMPT = 6.0
"""How many seconds one address has to accept a TCP connection."""

_THERE, _HERE = methodcaller("getpeername"), methodcaller("getsockname")

Relayed = Callable[[Address], Awaitable[trio.abc.Stream]]


class Dialler:
    """Makes connections. ``relayed`` gives a stream to a peer through a relay."""

    def __init__(self, handshake: Handshake, book: AddressBook, relayed: Relayed) -> None:
        self._handshake = handshake
        self._book = book
        self._relayed = relayed

    async def reach(self, peer: str, addresses: Sequence[Address], *, all_: bool) -> Connection:
        """A connection to a peer; ``all_``: try also what failed a moment ago.

        Errors: :class:`PeerUnreachable`, with the cause for each address.
        """
        if not addresses:
            raise PeerUnreachable(f"no address of {peer} is known here")
        causes: dict[Address, str] = {}
        due: list[Address] = []
        for address in sorted(addresses, key=lambda one: (bool(one.relay), one.is_loopback)):
            resting = None if all_ else self._book.resting(address)
            if resting is None:
                due.append(address)
            else:
                causes[address] = resting
        found: list[Connection] = []
        try:
            await self._race(due, found, causes)
        finally:
            for superfluous in found[1:]:
                superfluous.discard()
        if not found:
            told = "; ".join(f"{address.place}: {cause}" for address, cause in causes.items())
            raise PeerUnreachable(f"{peer} cannot be reached: {told}")
        return found[0]

    async def _race(
        self, due: Sequence[Address], found: list[Connection], causes: dict[Address, str]
    ) -> None:
        async with trio.open_nursery() as nursery:
            for address in due:
                failed = trio.Event()
                nursery.start_soon(self._try, address, found, causes, failed, nursery.cancel_scope)
                with trio.move_on_after(STAGGER):
                    await failed.wait()

    async def _try(
        self,
        address: Address,
        found: list[Connection],
        causes: dict[Address, str],
        failed: trio.Event,
        others: trio.CancelScope,
    ) -> None:
        try:
            stream = await self._stream(address)
            there = replace(_end(stream, _THERE) or address, peer=address.peer, relay=address.relay)
            local = _end(stream, _HERE)
            connection = await self._handshake.outbound(stream, there)
        except (OSError, ValueError, PeerUnreachable) as error:  # a name no resolver can take
            causes[address] = _cause(error)
            self._book.failed(address, causes[address])
            failed.set()
        else:
            connection.dialled = address
            connection.local = local
            found.append(connection)
            others.cancel()

    async def _stream(self, address: Address) -> trio.abc.Stream:
        if address.relay:
            return await self._relayed(address)
        with trio.move_on_after(ATTEMPT):
            return await _dialled(address)
        raise PeerUnreachable(f"no answer within {ATTEMPT:g} s")


def _end(stream: trio.abc.Stream, name: methodcaller) -> Address | None:
    """One end of a stream, None where it is no socket's."""
    if not isinstance(stream, trio.SocketStream):
        return None
    try:
        return of_socket(name(stream.socket))
    except OSError:
        return None  # it is gone already, as the handshake will find


async def _dialled(address: Address) -> trio.SocketStream:
    """To the first of a name's numbers that answers, each in its part of the time. Errors: OSError,
    ValueError.
    """
    found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    error: OSError = TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    for family, _, _, _, where in found:
        with trio.move_on_after(ATTEMPT / len(found)):
            try:
                return await dial(family, str(where[0]), address.port)
            except OSError as failure:
                error = failure
    raise error


def _cause(error: OSError | ValueError | PeerUnreachable) -> str:
    if isinstance(error, PeerUnreachable):
        return error.message
    if isinstance(error, ValueError):
        return str(error)
    inner = error.__cause__ if error.strerror is None else None
    if isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    number = getattr(inner or error, "errno", None) or 0
    if number > 0:
        return os.strerror(number)
    return str(getattr(inner or error, "strerror", None) or inner or error)
