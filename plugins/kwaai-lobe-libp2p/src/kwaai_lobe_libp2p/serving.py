"""What this node serves on its connections, to whom, and how much of it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import trio

from kwaai_core import KwaaiError, PeerDenied, PeerLost
from kwaai_lobe_libp2p.connection import Connection
from kwaai_lobe_libp2p.negotiation import agree
from kwaai_lobe_libp2p.rates import Rates
from kwaai_lobe_libp2p.settings import Libp2pSettings
from kwaai_lobe_libp2p.streams import ByteStream
from kwaai_lobe_libp2p.tasks import background

NEGOTIATION = 8.0
"""How many seconds a peer may take to say what a stream is for."""

WireHandler = Callable[[ByteStream], Awaitable[None]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Served:
    nursery: trio.Nursery
    handler: WireHandler
    to_all: bool


class Services:
    """The protocols that are served, and how many streams each peer has of them.

    ``lets_in`` says whether a peer may use one; ``nursery`` carries streams until it is known what
    they are for.
    """

    def __init__(
        self,
        settings: Libp2pSettings,
        nursery: trio.Nursery,
        lets_in: Callable[[str, str], bool],
    ) -> None:
        self._streams = settings.peer_streams
        self._nursery = nursery
        self._lets_in = lets_in
        self._served: dict[str, _Served] = {}
        self._serving: Counter[str] = Counter()
        rate, burst = settings.peer_requests, 4 * settings.peer_requests
        self._requests = Rates(rate, burst, clock=trio.current_time)

    @property
    def protocols(self) -> list[str]:
        return list(self._served)

    def serving(self, peer: str) -> int:
        """How many streams of a peer are served now."""
        return self._serving.get(peer, 0)

    @asynccontextmanager
    async def serve(
        self, protocol: str, handler: WireHandler, *, to_all: bool = False
    ) -> AsyncIterator[None]:
        """Serve a protocol; ``to_all``: without asking the door, as identify and ping are.

        Each stream is reset when its handler returns; what the handler raises ends only that.
        """
        if protocol in self._served:
            raise KwaaiError(f"{protocol} is served already")
        async with background() as nursery:
            self._served[protocol] = _Served(nursery, handler, to_all)
            try:
                yield
            finally:
                del self._served[protocol]

    def take(self, connection: Connection, stream: ByteStream) -> None:
        """Have a stream that a peer has opened served, where it may be."""
        self._nursery.start_soon(self._handle, connection.peer, stream)

    async def _handle(self, peer: str, stream: ByteStream) -> None:
        """Find out what a peer's stream is for, and have that done."""
        self._serving[peer] += 1
        try:
            served = await self._agreed(peer, stream)
            done = trio.Event()
            served.nursery.start_soon(self._run, served.handler, stream, done)
            await done.wait()
        except KwaaiError as error:
            _log.debug("a stream of %s came to nothing: %s", peer, error.message)
        finally:
            await stream.reset()
            self._serving[peer] -= 1
            if not self._serving[peer]:
                del self._serving[peer]

    async def _agreed(self, peer: str, stream: ByteStream) -> _Served:
        """Errors: :class:`KwaaiError` of any kind where the stream is to be reset."""
        if self._serving[peer] > self._streams or not self._requests.take(peer):
            await trio.lowlevel.checkpoint()
            raise PeerDenied(f"{peer} opens too many streams")
        with trio.move_on_after(NEGOTIATION):
            protocol = await agree(stream, partial(self._serves, peer), lambda: self.protocols)
            if (served := self._served.get(protocol)) is not None:
                return served
        raise PeerLost(f"{peer} does not say what it wants")

    def _serves(self, peer: str, protocol: str) -> bool:
        served = self._served.get(protocol)
        if served is not None and served.to_all:
            return True
        return self._lets_in(peer, protocol) and served is not None

    async def _run(self, handler: WireHandler, stream: ByteStream, done: trio.Event) -> None:
        try:
            await handler(stream)
        except KwaaiError as error:
            _log.info("a stream of %s ended: %s", stream.peer, error.message)
        except Exception:  # noqa: BLE001 - it ends its own stream and no other
            _log.warning("what handles a stream of %s failed", stream.peer, exc_info=True)
        finally:
            await stream.reset()
            done.set()
