"""Streams, records and messages between nodes over libp2p: the role transport."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from kwaai_core import Host, Offer, Transport, hookimpl
from kwaai_lobe_libp2p.settings import Libp2pSettings


@hookimpl
def provide_transport() -> Offer[Transport]:
    """A libp2p host with the key of the role identity."""
    return Offer("libp2p", _open, Libp2pSettings)


def _open(host: Host) -> AbstractAsyncContextManager[Transport]:
    # libp2p takes more than a second to import; `kwaai --help` has 0.3
    from kwaai_lobe_libp2p.transport import open_transport

    return open_transport(host)
