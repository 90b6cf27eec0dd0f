"""The running node, for commands on the same machine, and who else has its port."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kwaai_core.errors import KwaaiError, NoNode

if TYPE_CHECKING:
    import httpx

SOCKET = "node.sock"
ANSWER_SECONDS = 5.0
"""A node that lives answers at once that it does; what it is asked for then may take its time."""

_LISTEN = "0A"  # of the column "st" of /proc/net/tcp


def node_runs(state: Path) -> bool:
    """Whether a node answers on the socket of a state folder."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(state / SOCKET))
        except OSError:
            return False
    return True


@contextmanager
def node_client(state: Path, *, timeout: float | None = 30.0) -> Iterator[httpx.Client]:
    """A client of the node that runs on a state folder, for the time of a ``with`` block.

    ``timeout`` is in seconds for each operation. Errors: :class:`NoNode` where there is none or it
    does not answer, and out of the block where it stops to, or goes away meanwhile.
    """
    if not node_runs(state):
        raise NoNode(f"no node runs here ({state}): kwaai run")
    import httpx

    transport = httpx.HTTPTransport(uds=str(state / SOCKET))
    waited = ANSWER_SECONDS if timeout is None else min(timeout, ANSWER_SECONDS)
    try:
        with httpx.Client(
            transport=transport, base_url="http://localhost", timeout=timeout
        ) as client:
            client.get("/health", timeout=waited)
            waited = timeout or waited
            yield client
    except httpx.TimeoutException as error:
        raise NoNode(
            f"the node here ({state}) has not answered for {waited:g} s: it is stopped or too busy"
        ) from error
    except httpx.TransportError as error:
        raise NoNode(
            f"the node here ({state}) does not answer any more, it has ended: kwaai run"
        ) from error


def answered(response: httpx.Response) -> Any:
    """The document of the node's answer. Errors: :class:`KwaaiError` with what the node says."""
    document = response.json()
    if response.is_error:
        raise KwaaiError(document["error"]["message"])
    return document


def listener_on(port: int) -> str:
    """Which process listens on a TCP port, as far as this user may see it; else an empty text."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(file) in sockets for file in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (process {process.name})"
        except OSError:
            continue  # not ours to look at, or gone
    return ""


def _listening(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/net", table).read_text().splitlines()[1:]
        except OSError:
            continue  # another system, or no IPv6
        for _, local, _, state, *rest in map(str.split, lines):
            if state == _LISTEN and int(local.rpartition(":")[2], 16) == port:
                yield rest[5]
