"""Topics: messages to everyone who subscribes, passed on from neighbour to neighbour.

As in GossipSub (Vyzovitis et al., 2020) a message is pushed to a few neighbours, and only its id is
told to the others, who ask for what they miss. There is no mesh that is grafted and pruned: the few
are drawn anew for each message, so nobody can take a place in it and stay silent there. Only who
subscribes to a topic passes its messages on.
"""

from __future__ import annotations

import logging
import random
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from kwaai_core import Broadcast, Busy, FrameError, Identity, KwaaiError, RequestError, Stream
from kwaai_core.peering import HELLO
from kwaai_lobe_libp2p import gossip
from kwaai_lobe_libp2p.carrier import Streams
from kwaai_lobe_libp2p.gossip import Message
from kwaai_lobe_libp2p.neighbours import Neighbour, Subscription
from kwaai_lobe_libp2p.rates import Rates
from kwaai_lobe_libp2p.seen import Seen
from kwaai_lobe_libp2p.tasks import background

PUSHED = 8
"""To how many neighbours a message goes at once; the others are told that it is there."""

LOOK = 0.25
"""How many seconds pass between two looks at who is connected, and between two lists of ids."""

REMEMBERED = 256
"""How many messages are kept for neighbours that ask for them."""

SEEN = 1 << 16
"""Of how many messages it is known that they were there, whoever brought them."""

SEND = 10.0
RETRY = 1.0, 60.0
OWN_RATE, OWN_BURST = 20.0, 100.0
AUTHOR_RATE, AUTHOR_BURST = 40.0, 200.0
"""Messages a second of one author that are passed on, in the long run and at once."""

PEER_RATE, PEER_BURST = 1 << 20, 8 << 20
"""Bytes a second that are read from one neighbour, in the long run and at once."""

FRAME_COST = 2048
"""What a frame costs besides its bytes: however short it is, it is work."""

_log = logging.getLogger(__name__)


class Topics:
    """Subscriptions of this node and messages between neighbours; made by :func:`open_topics`."""

    def __init__(
        self,
        identity: Identity,
        streams: Streams,
        nursery: trio.Nursery,
        *,
        allows: Callable[[str, str], bool],
        now: Callable[[], float],
    ) -> None:
        self._identity = identity
        self._streams = streams
        self._nursery = nursery
        self._allows = allows
        self._now = now
        self._subscriptions: dict[str, list[Subscription]] = {}
        self._neighbours: dict[str, Neighbour] = {}
        self._seen = Seen(SEEN)
        self._recent: OrderedDict[bytes, Message] = OrderedDict()
        self._number = 0
        self._used = trio.Event()
        self._own = Rates(OWN_RATE, OWN_BURST, clock=trio.current_time)
        self._authors = Rates(AUTHOR_RATE, AUTHOR_BURST, clock=trio.current_time)
        self._peers = Rates(PEER_RATE, PEER_BURST, clock=trio.current_time)

    @asynccontextmanager
    async def subscribe(self, topic: str) -> AsyncIterator[trio.abc.ReceiveChannel[Broadcast]]:
        """See :meth:`kwaai_core.Transport.subscribe`. Errors: :class:`RequestError`."""
        if not gossip.fit_topic(topic):
            raise RequestError(f"{topic!r} cannot be a topic: 1 to {gossip.MAX_TOPIC} characters")
        if topic not in self._subscriptions and len(self._subscriptions) >= gossip.MAX_TOPICS:
            raise RequestError(f"{gossip.MAX_TOPICS} topics are subscribed to: too many for more")
        subscription = Subscription()
        self._subscriptions.setdefault(topic, []).append(subscription)
        self._used.set()
        try:
            yield subscription
        finally:
            self._subscriptions[topic].remove(subscription)
            if not self._subscriptions[topic]:
                del self._subscriptions[topic]
            subscription.close()

    async def broadcast(self, topic: str, body: bytes) -> None:
        """See :meth:`kwaai_core.Transport.broadcast`; it is on its way when this returns.

        Errors: :class:`FrameError`, :class:`RequestError`; :class:`Busy` for too many at once.
        """
        if len(body) > gossip.MAX_BODY:
            raise FrameError(f"a message of {len(body)} bytes: {gossip.MAX_BODY} are allowed")
        if not gossip.fit_topic(topic):
            raise RequestError(f"{topic!r} cannot be a topic: 1 to {gossip.MAX_TOPIC} characters")
        if not self._own.take(""):
            raise Busy(f"more than {OWN_RATE:g} messages a second", retry_after=1 / OWN_RATE)
        self._used.set()
        self._number += 1
        made = gossip.message(self._identity, topic, body, at=self._now(), number=self._number)
        self._spread(made, sender=None)
        await trio.lowlevel.checkpoint()

    def facts(self) -> dict[str, object]:
        """What there is to see of it."""
        return {"topics": sorted(self._subscriptions), "neighbours": len(self._neighbours)}

    def _spread(self, message: Message, sender: str | None) -> None:
        """Give a new message to its readers here, and to neighbours."""
        self._seen.add(message.id, sender or "", self._now())
        self._recent[message.id] = message
        if len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)
        for subscription in self._subscriptions.get(message.topic, ()):
            subscription.put(Broadcast(message.peer, message.body))
        others = [
            one
            for one in self._neighbours.values()
            if message.topic in one.topics and one.peer not in (sender, message.peer)
        ]
        random.shuffle(others)
        for number, neighbour in enumerate(others):
            if number < PUSHED:
                neighbour.push(message.frame)
            else:
                neighbour.tell(message.id)

    async def look(self) -> None:
        """Speak to who is connected, and leave who is not; from the first use of topics on."""
        await self._used.wait()
        while True:
            links = self._streams.links()
            # what is said on topics is for those whom the door lets in, whoever dialled
            linked = {link.peer for link in links if self._allows(link.peer, gossip.PROTOCOL)}
            mine = gossip.subscriptions(self._subscriptions)
            for peer in linked:
                neighbour = self._neighbours.setdefault(peer, Neighbour(peer))
                if neighbour.speaking is None:
                    neighbour.speaking = trio.CancelScope()
                    self._nursery.start_soon(self._speak, neighbour, neighbour.speaking)
                if neighbour.subscribed not in (None, mine):
                    neighbour.subscribed = mine
                    neighbour.push(mine)
                neighbour.flush()
            for peer in [peer for peer in self._neighbours if peer not in linked]:
                self._leave(self._neighbours.pop(peer))
            self._seen.forget(self._now() - 3 * gossip.OLD)  # by then it is not taken again
            await trio.sleep(LOOK * random.uniform(0.8, 1.2))

    def _leave(self, neighbour: Neighbour) -> None:
        for scope in (neighbour.speaking, neighbour.listening):
            if scope is not None:
                scope.cancel()

    async def _speak(self, neighbour: Neighbour, scope: trio.CancelScope) -> None:
        """Send to a neighbour for as long as it is connected."""
        first, longest = RETRY
        pause = first
        with scope:
            while True:
                began = trio.current_time()
                try:
                    await self._speak_once(neighbour)
                except KwaaiError as error:
                    _log.debug("%s takes no part in topics: %s", neighbour.peer, error)
                neighbour.subscribed = None
                pause = first if trio.current_time() > began + longest else min(2 * pause, longest)
                await trio.sleep(pause * random.uniform(0.5, 1.0))

    async def _speak_once(self, neighbour: Neighbour) -> None:
        opened = self._streams.open(
            neighbour.peer, gossip.PROTOCOL, max_frame=gossip.MAX_FRAME, seconds=SEND
        )
        async with opened as stream:
            mine = gossip.subscriptions(self._subscriptions)
            await stream.send(mine, seconds=SEND)
            neighbour.subscribed = mine
            while True:
                await stream.send(await neighbour.next(), seconds=SEND)

    async def listen(self, stream: Stream) -> None:
        """Take what a neighbour sends. Its newest stream counts."""
        self._used.set()
        peer = stream.peer
        neighbour = self._neighbours.setdefault(peer, Neighbour(peer))
        if neighbour.listening is not None:
            neighbour.listening.cancel()
        with trio.CancelScope() as scope:
            neighbour.listening = scope
            try:
                while True:
                    frame = await stream.receive(seconds=float("inf"))
                    await trio.sleep(self._peers.overdraw(peer, len(frame) + FRAME_COST))
                    self._take(neighbour, frame)
            finally:
                if neighbour.listening is scope:
                    neighbour.listening = None
                    neighbour.topics = frozenset()

    def _take(self, neighbour: Neighbour, frame: bytes) -> None:
        """Errors: :class:`FrameError`, :class:`NotVerified`: the stream is then given up."""
        kind, told = frame[:1], frame[1:]
        if kind == b"S":
            neighbour.topics = gossip.read_subscriptions(told)
        elif kind == b"M":
            self._take_message(neighbour, told)
        elif kind == b"H":
            missing = [one for one in gossip.read_ids(told) if one not in self._seen]
            if missing:
                neighbour.push(gossip.wanting(missing))
        elif kind == b"W":
            for one in gossip.read_ids(told):
                if one in self._recent:
                    neighbour.push(self._recent[one].frame)
        else:
            raise FrameError(f"{neighbour.peer} sends to the topics what they do not know")

    def _take_message(self, neighbour: Neighbour, told: bytes) -> None:
        if gossip.identify(told) in self._seen:
            return
        if gossip.topic_of(told) not in self._subscriptions:
            return  # it was subscribed to until now
        message = gossip.verified(self._identity, told)
        if not message.is_recent(self._now()):
            return  # for who passed it on it may just not have been old
        if not self._allows(message.peer, HELLO):  # blocked here, whoever passes it on
            self._seen.add(message.id, neighbour.peer, self._now())
            return
        if not self._authors.take(message.peer):
            _log.info("%s says too much; a message on %s is dropped", message.peer, message.topic)
            self._seen.add(message.id, neighbour.peer, self._now())
            return
        self._spread(message, sender=neighbour.peer)


@asynccontextmanager
async def open_topics(
    identity: Identity,
    streams: Streams,
    *,
    allows: Callable[[str, str], bool] = lambda peer, protocol: True,
    now: Callable[[], float] = time.time,
) -> AsyncIterator[Topics]:
    """Take part in topics while the context is open, with those peers that ``allows`` lets in."""
    async with background() as nursery:
        topics = Topics(identity, streams, nursery, allows=allows, now=now)
        serve = streams.serve(gossip.PROTOCOL, topics.listen, max_frame=gossip.MAX_FRAME)
        async with serve:
            nursery.start_soon(topics.look)
            yield topics
