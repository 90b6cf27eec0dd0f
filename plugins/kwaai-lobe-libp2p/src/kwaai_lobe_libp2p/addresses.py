"""Multiaddresses, as far as this lobe dials and listens: TCP, by name or number, and relays."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from kwaai_core import RequestError

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\.?")
_PEER = re.compile(r"12D3KooW[1-9A-HJ-NP-Za-km-z]{44}")  # of an Ed25519 key: no other is taken
_CIRCUIT = "/p2p-circuit"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a peer may be dialled.

    ``relay``, where there is one, is the peer id at ``host`` and ``port``, through which ``peer``
    is reached. ``peer`` is empty where the address does not say it.
    """

    kind: str
    host: str
    port: int
    peer: str = ""
    relay: str = ""

    def __str__(self) -> str:
        peer = f"/p2p/{self.peer}" if self.peer else ""
        return f"{self.place}{self._circuit}{peer}"

    @property
    def place(self) -> str:
        """Only where, without who is there."""
        return f"/{self.kind}/{self.host}/tcp/{self.port}"

    @property
    def _circuit(self) -> str:
        return f"/p2p/{self.relay}{_CIRCUIT}" if self.relay else ""

    @property
    def is_number(self) -> bool:
        return self.kind in {"ip4", "ip6"}

    @property
    def is_unspecified(self) -> bool:
        """Whether it is for all interfaces of a machine."""
        return self.is_number and ipaddress.ip_address(self.host).is_unspecified

    @property
    def is_loopback(self) -> bool:
        return self.is_number and ipaddress.ip_address(self.host).is_loopback


def parse(text: str) -> Address:
    """Read an address. Errors: :class:`RequestError` for any that this lobe cannot dial."""
    found = _parsed(text) if len(text) <= 512 else None
    if found is None:
        raise RequestError(
            f"{text[:100]!r} is no address that can be dialled: one looks like "
            "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooW…"
        )
    return found


def _parsed(text: str) -> Address | None:
    direct, circuit, behind = text.partition(_CIRCUIT)
    empty, *parts = direct.split("/")
    if empty or len(parts) not in {4, 6} or parts[2] != "tcp":
        return None
    kind, host, _, port = parts[:4]
    peer = _peer(parts[4:])
    if peer is None or not _is_host(kind, host) or not (port.isascii() and port.isdecimal()):
        return None
    if len(port) > 5 or int(port) > 65535:
        return None
    if not circuit:
        return Address(kind, host, int(port), peer)
    dialled = _peer(behind.split("/")[1:])
    return Address(kind, host, int(port), dialled, peer) if peer and dialled else None


def _peer(parts: list[str]) -> str | None:
    """The peer id of a trailing ``/p2p/…``; empty where there is none, None where it is none."""
    if not parts:
        return ""
    return parts[1] if len(parts) == 2 and parts[0] == "p2p" and _PEER.fullmatch(parts[1]) else None


def _is_host(kind: str, host: str) -> bool:
    try:
        if kind in {"ip4", "ip6"}:
            return ipaddress.ip_address(host).version == int(kind[2])
    except ValueError:
        return False
    return kind in {"dns", "dns4", "dns6"} and _NAME.fullmatch(host) is not None


def readable(texts: Iterable[str], peer: str) -> list[Address]:
    """Those of the addresses that can be dialled and are of ``peer``; for what others say."""
    found = []
    for text in texts:
        address = _parsed(text) if len(text) <= 512 else None
        if address is not None and address.peer in {"", peer} and address.port:
            found.append(Address(address.kind, address.host, address.port, peer, address.relay))
    return found


def of_socket(name: tuple[object, ...]) -> Address:
    """What a socket's address is as a multiaddress."""
    host, port = str(name[0]).partition("%")[0], int(str(name[1]))
    number = ipaddress.ip_address(host)
    if isinstance(number, ipaddress.IPv6Address) and number.ipv4_mapped:
        number = number.ipv4_mapped
    return Address(f"ip{number.version}", str(number), port)
