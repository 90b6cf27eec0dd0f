"""How this node is seen from outside its router, and which addresses could be others' outsides."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from kwaai_core import PeerUnreachable
from kwaai_lobe_libp2p import identify
from kwaai_lobe_libp2p.addresses import Address, readable
from kwaai_lobe_libp2p.connection import Connection
from kwaai_lobe_libp2p.network import Network
from kwaai_lobe_libp2p.tasks import within

ASK = 10.0
"""How many seconds a relay has to say where it sees this node."""

_PRIVILEGED = 1024


@dataclass(frozen=True, slots=True)
class Way:
    """How this node is seen by a relay: its own end of that connection, and the relay's view."""

    relay: Address
    local: Address
    observed: Address


class Outside:
    """Asks relays where they see this node: once for each connection that it dialled."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._ways: WeakKeyDictionary[Connection, Way] = WeakKeyDictionary()

    async def of(self, relayed: Connection) -> Way:
        """How the relay of a connection sees this node.

        Errors: :class:`KwaaiError` of any kind where that is not known, or cannot be true.
        """
        relay = self._network.best(relayed.address.relay)
        if relay is None or relay.local is None or relay.address.relay:
            raise PeerUnreachable("this node did not dial the relay, so its outside is not known")
        if relay not in self._ways:
            with within(ASK, "asking the relay where it sees this node"):
                observed = await _observed(relay)
            seen = readable([observed], "")
            if not seen or not may_be_dialled(seen[0], relay.address):
                raise PeerUnreachable("the relay does not say where it sees this node")
            self._ways[relay] = Way(relay.address, relay.local, seen[0])
        return self._ways[relay]


async def _observed(relay: Connection) -> str:
    stream = await relay.open(identify.IDENTIFY)
    try:
        _, observed = await identify.ask_identity(stream)
    finally:
        await stream.reset()
    return observed


def may_be_dialled(address: Address, relay: Address) -> bool:
    """Whether a router on the same network as a relay could have an address as its outside.

    A public one always; a private one if the relay has such; one of this machine if the relay is
    on it; never a name, a port of a system's services, or what is no address of one host.
    """
    if address.relay or not (address.is_number and relay.is_number) or address.port < _PRIVILEGED:
        return False
    scope = _scope(address)
    return scope == "public" or (scope != "none" and scope == _scope(relay))


def _scope(address: Address) -> str:
    number = ipaddress.ip_address(address.host)
    if isinstance(number, ipaddress.IPv6Address) and (
        number.ipv4_mapped or number.sixtofour or number.teredo or number.scope_id
    ):
        return "none"  # an address of IPv4 within, of whatever scope
    if number.is_multicast or number.is_unspecified or number.is_link_local:
        return "none"
    if number.is_loopback:
        return "machine"
    if number.is_global:
        return "public"
    return "none" if number.is_reserved else "private"
