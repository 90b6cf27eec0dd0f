"""Listening: sockets that are this node's alone, and who knocks at them."""

from __future__ import annotations

import errno
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path

import ifaddr
import trio

from kwaai_core import ConfigError, PeerUnreachable, RequestError
from kwaai_lobe_libp2p.addresses import Address, of_socket, parse
from kwaai_lobe_libp2p.connection import Connection, Handshake

HALF_OPEN, HALF_OPEN_EACH = 512, 128
"""How many connections may be at their handshake at once: in all, and from one source, which is
an address of version 4 or a network of 64 bits of version 6."""

_BACKLOG = 1024

_log = logging.getLogger(__name__)


class Ports:
    """Which free port was taken the last time, so that addresses stay good. Errors: OSError."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._ports: dict[str, int] = {}
        try:
            found = json.loads(file.read_bytes())
            self._ports = {key: port for key, port in found.items() if isinstance(port, int)}
        except FileNotFoundError:
            pass
        except (ValueError, AttributeError):
            _log.warning("%s is damaged, so other ports may be taken than before", file)

    def last(self, address: str) -> int:
        return self._ports.get(address, 0)

    def keep(self, ports: dict[str, int]) -> None:
        if ports != self._ports:
            new = self._file.with_suffix(".new")
            new.write_text(json.dumps(ports))
            new.replace(self._file)


async def listen(texts: Sequence[str], ports: Ports) -> list[trio.SocketListener]:
    """Listen on these multiaddresses. Errors: :class:`ConfigError`, with nothing left open."""
    listeners: list[trio.SocketListener] = []
    taken: dict[str, int] = {}
    try:
        for text in texts:
            listener = await _bound(text, ports)
            listeners.append(listener)
            if text.endswith("/tcp/0"):
                taken[text] = listener.socket.getsockname()[1]
        ports.keep(taken)
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners


async def _bound(text: str, ports: Ports) -> trio.SocketListener:
    try:
        address = parse(text)
    except RequestError as error:
        raise ConfigError(f"[libp2p] listen: {error.message}") from None
    if address.kind not in {"ip4", "ip6"} or address.peer:
        raise ConfigError(f"[libp2p] listen: {text} must be /ip4/…/tcp/… or /ip6/…/tcp/…")
    for port in (ports.last(text), 0) if address.port == 0 else (address.port,):
        try:
            # no SO_REUSEPORT, with which two nodes would share a port and notice nothing
            (listener,) = await trio.open_tcp_listeners(port, host=address.host, backlog=_BACKLOG)
        except OSError as error:
            if port and address.port == 0 and error.errno == errno.EADDRINUSE:
                continue  # somebody else has it now; the next is free
            reason = error.strerror or str(error)
            raise ConfigError(
                f"[libp2p] listen: cannot listen on {text}: {reason}. Is another node running? "
                "Choose another port, or /tcp/0 for a free one"
            ) from None
        return listener
    raise AssertionError("port 0 is never in use")


def reachable(bound: Sequence[Address]) -> list[Address]:
    """Where these sockets can be dialled: an unspecified address is that of each interface."""
    found: dict[Address, None] = {}
    for address in bound:
        hosts = _interfaces(address.kind) if address.is_unspecified else [address.host]
        for host in hosts:
            found[Address(address.kind, host, address.port)] = None
    return sorted(found, key=lambda one: one.is_loopback)


def _interfaces(kind: str) -> list[str]:
    names = [ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips]
    if kind == "ip4":
        return [name for name in names if isinstance(name, str)]
    return [name[0] for name in names if not isinstance(name, str) and name[2] == 0]


class Porch:
    """Where who dials this node proves who it is, and is given up if it does not.

    A handshake takes milliseconds. So where too many are under way the oldest is given up, of the
    source that has most of them, and a newcomer finds a place however many strangers only wait.
    """

    def __init__(
        self, handshake: Handshake, adopt: Callable[[Connection], Awaitable[None]]
    ) -> None:
        self._handshake = handshake
        self._adopt = adopt
        self._waiting: dict[str, deque[trio.CancelScope]] = {}

    async def admit(self, stream: trio.SocketStream) -> None:
        """Carry on the connection of a socket, to its end. Whatever comes, this returns."""
        try:
            address = of_socket(stream.socket.getpeername())
        except OSError:
            return  # gone already
        connection = None
        with self._place(source_of(address)):
            try:
                connection = await self._handshake.inbound(stream, address)
            except PeerUnreachable as error:
                _log.debug("%s did not become a peer: %s", address, error.message)
        if connection is not None:
            await self._adopt(connection)

    @contextmanager
    def _place(self, source: str) -> Iterator[None]:
        """A place for a handshake of a source, for which others may have to go; and it later."""
        if len(self._waiting.get(source, ())) >= HALF_OPEN_EACH:
            self._give_up(source)
        elif sum(map(len, self._waiting.values())) >= HALF_OPEN:
            self._give_up(max(self._waiting, key=lambda one: len(self._waiting[one])))
        scope = trio.CancelScope()
        self._waiting.setdefault(source, deque()).append(scope)
        try:
            with scope:
                yield
        finally:
            self._leave(source, scope)

    def _give_up(self, source: str) -> None:
        oldest = self._waiting[source][0]
        _log.info("too many handshakes are under way: the oldest of %s is given up", source)
        self._leave(source, oldest)
        oldest.cancel()

    def _leave(self, source: str, scope: trio.CancelScope) -> None:
        waiting = self._waiting.get(source, deque())
        if scope in waiting:
            waiting.remove(scope)
        if not waiting:
            self._waiting.pop(source, None)


def source_of(address: Address) -> str:
    """Whose an address is, as far as limits go: a line has 2**64 addresses of version 6."""
    if address.kind != "ip6":
        return address.host
    return str(ip_network((address.host.partition("%")[0], 64), strict=False))


def close(listeners: Sequence[trio.SocketListener]) -> None:
    for listener in listeners:
        listener.socket.close()
