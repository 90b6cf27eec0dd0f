"""What the directory and the topics need of the transport that they are part of."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from kwaai_core import Link, Stream
from kwaai_core.peering import StreamHandler


class Streams(Protocol):
    """Streams to and from peers, as of :class:`kwaai_core.Transport`."""

    @property
    def addresses(self) -> Sequence[str]: ...

    def links(self) -> Sequence[Link]: ...

    def open(
        self, peer: str, protocol: str, *, max_frame: int, seconds: float
    ) -> AbstractAsyncContextManager[Stream]: ...

    def serve(
        self, protocol: str, handler: StreamHandler, *, max_frame: int
    ) -> AbstractAsyncContextManager[None]: ...
