"""The table ``[libp2p]`` of ``kwaai.toml``."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Libp2pSettings:
    """The table ``[libp2p]``.

    ``listen``: where to listen, as multiaddresses; ``tcp/0`` is a free port, the same one at each
    start while it is free; an empty list listens nowhere. ``announce``: further addresses under
    which this node can be dialled, as behind a router that forwards a port.
    ``bootstrap``: addresses of peers to connect to at the start, each with its peer id.
    ``mdns``: tell the local network of this node, and look for others there.
    ``network_key_file``: a file with the pre-shared key of a private network: 64 hexadecimal
    digits, or what other implementations call ``swarm.key``; empty is no private network.
    ``max_connections``: to all peers together; ``peer_connections``, ``peer_streams``: to one peer,
    and opened by it at once; ``peer_requests``: streams that it opens a second, in the long run;
    ``peer_bytes``: that are read from it a second, in the long run.
    ``relay``: forward streams between members who cannot reach each other; ``relays``: addresses of
    such nodes, through which this one asks to be reached; ``hole_punching``: try for a direct
    connection beside one through a relay.
    """

    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0",)
    announce: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    mdns: bool = False
    network_key_file: str = ""
    max_connections: int = 256
    peer_connections: int = 8
    peer_streams: int = 256
    peer_requests: int = 500
    peer_bytes: int = 1 << 28
    relay: bool = False
    relays: tuple[str, ...] = ()
    hole_punching: bool = True

    def __post_init__(self) -> None:
        for key, low in _LEAST.items():
            if getattr(self, key) < low:
                raise ValueError(f"{key} = {getattr(self, key)}: must be at least {low}")


_LEAST = {
    "max_connections": 1,
    "peer_connections": 1,
    "peer_streams": 8,
    "peer_requests": 1,
    "peer_bytes": 1 << 16,
}
