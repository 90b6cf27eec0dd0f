"""This node's own statements, signed under numbers that never restart; and its contact."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from kwaai_core import Identity
from kwaai_lobe_libp2p.statements import MAX_ADDRESSES, Kind, Statement, seal

CARD_LIFE = 6 * 3600.0
"""For how many seconds the contact of this node is good; others keep it as long."""

_log = logging.getLogger(__name__)


class Signer:
    """Signs; ``number`` gives the next sequence number above the one that it is given.

    ``addresses`` says where this node can be dialled now.
    """

    def __init__(
        self,
        identity: Identity,
        number: Callable[[int], Awaitable[int]],
        addresses: Callable[[], Sequence[str]],
        now: Callable[[], float],
    ) -> None:
        self._identity = identity
        self._number = number
        self._addresses = addresses
        self._now = now
        self._card: Statement | None = None
        self._lock = trio.Lock()

    async def sign(
        self, kind: Kind, name: str, body: bytes, seconds: float, *, above: int = 0
    ) -> Statement:
        """A statement good for so many seconds. Errors: OSError, of the file of numbers."""
        number = await self._number(above)
        expires = round(self._now() + seconds, 3)
        return seal(self._identity, kind, name, body, sequence=number, expires=expires)

    async def contact(self) -> Statement | None:
        """This node's contact, signed anew where its addresses changed or half its life is over."""
        async with self._lock:
            body = json.dumps(list(self._addresses())[:MAX_ADDRESSES]).encode()
            card = self._card
            if card is None or card.body != body or card.expires < self._now() + CARD_LIFE / 2:
                try:
                    self._card = await self.sign("contact", "", body, CARD_LIFE)
                except OSError as error:  # the old one may do
                    _log.warning("the contact of this node could not be signed: %s", error)
            return self._card
