"""The running node, for commands on the same machine: its app on a Unix socket."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

from kwaai_core.errors import NoNode

if TYPE_CHECKING:
    import httpx

SOCKET = "node.sock"


def node_runs(state: Path) -> bool:
    """Whether a node answers on the socket of a state folder."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(state / SOCKET))
        except OSError:
            return False
    return True


def node_client(state: Path, *, timeout: float | None = 30.0) -> httpx.Client:
    """A client of the node that runs on a state folder; the caller closes it.

    ``timeout`` is in seconds for each operation. Errors: :class:`NoNode`.
    """
    if not node_runs(state):
        raise NoNode(f"no node runs here ({state}): kwaai run")
    import httpx

    transport = httpx.HTTPTransport(uds=str(state / SOCKET))
    return httpx.Client(transport=transport, base_url="http://localhost", timeout=timeout)
