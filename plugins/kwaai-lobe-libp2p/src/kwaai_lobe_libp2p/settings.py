"""The table ``[libp2p]`` of ``kwaai.toml``."""

from dataclasses import dataclass
from pathlib import Path

from kwaai_core.config import Count

_MADE = "one is made by: openssl rand -hex 32"


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
    max_connections: Count = 256
    peer_connections: Count = 8
    peer_streams: Count = 256
    peer_requests: Count = 500
    peer_bytes: int = 1 << 28
    relay: bool = False
    relays: tuple[str, ...] = ()
    hole_punching: bool = True

    def __post_init__(self) -> None:
        for key, low in _LEAST.items():
            if getattr(self, key) < low:
                raise ValueError(f"{key} = {getattr(self, key)}: must be at least {low}")
        self.network_key()

    def network_key(self) -> bytes | None:
        """The key in ``network_key_file``: the last word in it; None where there is no such file.

        Errors: :class:`ValueError`, which does not tell what the file holds.
        """
        path = self.network_key_file
        if not path:
            return None
        try:
            key = bytes.fromhex(Path(path).expanduser().read_text().split()[-1])
        except (OSError, ValueError, IndexError) as error:
            reason = error.strerror if isinstance(error, OSError) else f"it holds no key; {_MADE}"
            raise ValueError(f"network_key_file = {path!r} cannot be read: {reason}") from None
        if len(key) != 32:
            raise ValueError(
                f"network_key_file = {path!r} must hold 64 hexadecimal digits; {_MADE}"
            )
        return key


_LEAST = {
    "max_connections": 1,
    "peer_connections": 1,
    "peer_streams": 8,
    "peer_requests": 1,
    "peer_bytes": 1 << 16,
}
