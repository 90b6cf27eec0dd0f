"""Frames from a worker to its node."""

from __future__ import annotations

import socket
import threading

from kwaai_lobe_llama.frames import Kind, frame


class Outbox:
    """Frames for the node: collected by the computing thread, sent in one call a step."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._collected = bytearray()

    def send(self, kind: Kind, request: int = 0, payload: bytes = b"") -> None:
        """Send one frame now."""
        with self._lock:
            self._connection.sendall(frame(kind, request, payload))

    def collect(self, kind: Kind, request: int, payload: bytes) -> None:
        """Keep a frame until :meth:`flush`."""
        self._collected += frame(kind, request, payload)

    def flush(self) -> None:
        """Send what was collected; waits while the node does not read."""
        if self._collected:
            with self._lock:
                self._connection.sendall(self._collected)
            self._collected.clear()
