"""The directory's network: who holds what is asked for, and how that is found (Kademlia).

Written over the role's own streams rather than on py-libp2p's ``KadDHT``: so every question passes
the door, is asked over a connection that was greeted, has a deadline, and all that comes back is
verified before it is used. ``docs/explanation/transport.md`` has the reasons.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import trio

from kwaai_core import DeadlinePassed, Identity, KwaaiError, NotVerified, PeerLost, Stream
from kwaai_lobe_libp2p import messages
from kwaai_lobe_libp2p.carrier import Streams
from kwaai_lobe_libp2p.lookup import Lookup
from kwaai_lobe_libp2p.rates import Rates
from kwaai_lobe_libp2p.shelf import Shelf
from kwaai_lobe_libp2p.statements import Statement, addresses_in, position_of, unseal
from kwaai_lobe_libp2p.table import BUCKET, Contact, Table

AT_ONCE = 6
"""How many peers a lookup asks at the same time: *alpha* in the paper."""

ASK = 2.0
"""How many seconds one peer has to answer, being connected to included."""

GRACE = 0.1
"""How many seconds a lookup waits for more, once enough holders have answered."""

BAD = 4
"""How many statements of an answer may fail, by clocks that differ, before it is worth nothing."""

QUESTIONS_PER_SECOND, QUESTIONS_AT_ONCE = 50.0, 400.0
_CARDS = 1024

_log = logging.getLogger(__name__)


class Kademlia:
    """This node in the network of the directory: asks others, and answers them.

    ``card`` makes this node's own contact, ``learn`` is told the addresses of others; ``allows``
    says whom the door lets in, so who is asked; ``now`` is the time in seconds since 1970.
    To be set: ``own`` gives this node's statements under a key, ``met`` is told of new contacts.
    """

    def __init__(
        self,
        identity: Identity,
        streams: Streams,
        card: Callable[[], Awaitable[Statement | None]],
        *,
        learn: Callable[[str, Sequence[str]], None],
        allows: Callable[[str, str], bool],
        now: Callable[[], float],
    ) -> None:
        self.own: Callable[[bytes], Sequence[Statement]] = lambda key: ()
        self.met: Callable[[Contact], None] = lambda contact: None
        self.position = position_of(identity.peer_id)
        self.table = Table(identity.peer_id, clock=trio.current_time)
        self.shelf = Shelf(self.position)
        self._identity = identity
        self._streams = streams
        self._card = card
        self._learn = learn
        self._allows = allows
        self._now = now
        self._cards: OrderedDict[str, Statement] = OrderedDict()
        self._rates = Rates(QUESTIONS_PER_SECOND, QUESTIONS_AT_ONCE, clock=trio.current_time)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Answer others while the context is open."""
        serve = self._streams.serve
        async with serve(messages.PROTOCOL, self._serve, max_frame=messages.MAX_MESSAGE):
            yield

    async def search(
        self, key: bytes, *, seconds: float, enough: int = 0, width: int = BUCKET
    ) -> Lookup:
        """Ask nearer and nearer peers for ``key`` until the nearest of all have answered.

        It ends soon after ``enough`` holders have answered, where that is not 0, and at the latest
        after ``seconds``.
        """
        lookup = Lookup(key, width)
        for contact in self.table.nearest(key, max(width, BUCKET)):
            lookup.learn(contact)
        for link in self._streams.links():
            if self.deals_with(link.peer):
                lookup.learn(Contact(link.peer, position_of(link.peer), None, 0.0))
        for statement in (*self.shelf.at(key, self._now()), *self.own(key)):
            lookup.add(statement)
        changed = trio.lowlevel.ParkingLot()
        with trio.move_on_after(seconds) as scope:
            async with trio.open_nursery() as nursery:
                for _ in range(AT_ONCE):
                    nursery.start_soon(self._ask_on, lookup, changed, enough, scope)
        lookup.cut_short = scope.cancelled_caught
        return lookup

    async def _ask_on(
        self,
        lookup: Lookup,
        changed: trio.lowlevel.ParkingLot,
        enough: int,
        scope: trio.CancelScope,
    ) -> None:
        while True:
            contact = lookup.next()
            if contact is not None:
                lookup.asking.add(contact.peer)
                await self._ask(lookup, contact)
                lookup.asking.discard(contact.peer)
                changed.unpark_all()
                if enough and lookup.holders >= enough:
                    scope.deadline = min(scope.deadline, trio.current_time() + GRACE)
            elif lookup.asking:
                await changed.park()
            else:
                return

    async def _ask(self, lookup: Lookup, contact: Contact) -> None:
        try:
            statements, nearer = await self._find(contact, lookup.key)
        except KwaaiError as error:
            _log.debug("%s does not answer the directory: %s", contact.peer, error)
            lookup.silent.add(contact.peer)
            self.table.lost(contact.peer)
            return
        lookup.answered.add(contact.peer)
        for statement in statements:
            lookup.add(statement)
        lookup.holders += any(statement.key == lookup.key for statement in statements)
        for card in nearer:
            if card.kind == "contact" and card.peer != self._identity.peer_id:
                lookup.learn(Contact(card.peer, position_of(card.peer), card, 0.0))

    def deals_with(self, peer: str) -> bool:
        """Whether the door lets a peer in, so whether it is asked."""
        return self._allows(peer, messages.PROTOCOL)

    async def introduce(self, peer: str) -> None:
        """Let a peer know of this node, unless it is in the routing table, so knows already."""
        if peer in self.table or not self.deals_with(peer):
            return
        with suppress(KwaaiError):  # then it takes no part
            await self._find(Contact(peer, position_of(peer), None, 0.0), self.position)

    async def _find(
        self, contact: Contact, key: bytes
    ) -> tuple[Sequence[Statement], Sequence[Statement]]:
        """Errors: :class:`KwaaiError` of any kind where the peer does not answer as it should."""
        frame = await self._asked(contact, messages.find(key, await self._card()))
        answer = messages.answer_found(frame)
        self._heard(contact.peer, answer.sender)
        return await self._believed(answer.statements), await self._believed(answer.nearer)

    async def store(self, contact: Contact, statement: Statement) -> Statement | None:
        """Ask a peer to hold a statement of this node; what it then holds in its place.

        Errors: :class:`KwaaiError` of any kind where the peer does not answer as it should.
        """
        frame = await self._asked(contact, messages.store(statement, await self._card()))
        answer = messages.answer_held(frame)
        self._heard(contact.peer, answer.sender)
        if answer.statement is None or answer.statement == statement.sealed:
            return statement if answer.statement else None
        return unseal(self._identity, answer.statement, self._now())

    async def _asked(self, contact: Contact, question: bytes) -> bytes:
        self._learn(contact.peer, contact.addresses)
        opened = self._streams.open(
            contact.peer, messages.PROTOCOL, max_frame=messages.MAX_MESSAGE, seconds=ASK
        )
        with trio.move_on_after(ASK):
            async with opened as stream:
                await stream.send(question, seconds=ASK)
                return await stream.receive(seconds=ASK)
        raise DeadlinePassed(f"{contact.peer} did not answer the directory within {ASK} s")

    async def _serve(self, stream: Stream) -> None:
        """Answer one question. What is no question ends the stream, by the error that it raises."""
        if not self._rates.take(stream.peer):
            _log.info("%s asks the directory too often", stream.peer)
            return
        question = messages.question(await stream.receive(seconds=ASK))
        if isinstance(question, messages.Find):
            answer = await self._answer(stream.peer, question)
        else:
            answer = await self._hold(stream.peer, question)
        self._heard(stream.peer, question.sender, dialable=True)
        await stream.send(answer, seconds=ASK)
        with suppress(PeerLost):  # who has its answer may be gone
            await stream.end(seconds=ASK)

    async def _answer(self, peer: str, question: messages.Find) -> bytes:
        statements = [*self.own(question.key), *self.shelf.at(question.key, self._now())]
        near = [one for one in self.table.nearest(question.key, BUCKET + 1) if one.peer != peer]
        cards = [contact.card for contact in near if contact.card is not None]
        fresh = [card for card in cards if card.expires > self._now()]
        return messages.found(statements, fresh, await self._card())

    async def _hold(self, peer: str, question: messages.Store) -> bytes:
        statement = self._of(peer, question.statement)
        if statement.kind == "contact":
            raise NotVerified(f"{peer} wants its contact to be held: it goes with its questions")
        held = self.shelf.hold(statement, self._now())
        return messages.held(held, await self._card())

    def _of(self, peer: str, sealed: object) -> Statement:
        """A statement that ``peer`` made itself. Errors: :class:`NotVerified`."""
        # looked at before the signature: nobody shall make this node verify what others signed
        if not isinstance(sealed, str) or not sealed.startswith(self._identity.did_of(peer) + " "):
            raise NotVerified(f"{peer} brings a statement that is not its own")
        return unseal(self._identity, sealed, self._now())

    def _heard(self, peer: str, sealed: object, *, dialable: bool = False) -> None:
        """Note that a peer serves the directory; ``dialable``: only if it says where."""
        card: Statement | None = None
        try:
            if sealed is not None and not (card := self._known_card(sealed)):
                card = self._remember(self._of(peer, sealed))
        except NotVerified as error:
            _log.debug("%s shows a contact that does not hold: %s", peer, error)
        if card is not None and (card.peer != peer or card.kind != "contact"):
            card = None
        if card is not None:
            self._learn(peer, addresses_in(card))
        told = card is not None and addresses_in(card)
        if (told or not dialable) and self.table.heard(peer, card):
            self.met(Contact(peer, position_of(peer), card, trio.current_time()))

    async def _believed(self, sealed: Sequence[object]) -> Sequence[Statement]:
        """Those of an answer's statements that hold. Errors: :class:`NotVerified` for many bad."""
        good, bad = [], 0
        for one in sealed:
            known = self._known_card(one)
            try:
                good.append(known or self._remember(unseal(self._identity, one, self._now())))
            except NotVerified:
                bad += 1
                if bad > BAD:
                    raise
            if known is None:
                await trio.lowlevel.checkpoint()
        return good

    def _known_card(self, sealed: object) -> Statement | None:
        """A contact that was verified before: most of those in an answer are."""
        card = self._cards.get(sealed) if isinstance(sealed, str) else None
        return card if card is not None and card.expires > self._now() else None

    def _remember(self, statement: Statement) -> Statement:
        if statement.kind == "contact":
            self._cards[statement.sealed] = statement
            if len(self._cards) > _CARDS:
                self._cards.popitem(last=False)
        return statement
