"""Where one answer goes: planned first, and again whenever a part of its route is of no use.

Only the peer whose own link failed is left for it. The rest of the route stays where it is, and
what is missing is planned anew among those who are known to be there, which takes no word of
anybody: the gap is that of the replay.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import trio

from kwaai_core import Hop, KwaaiError, NoPeerAvailable, UpstreamLost
from kwaai_core.span.hop import Blame, Place, Trouble
from kwaai_lobe_router.gateways import Gateway
from kwaai_lobe_router.knowing import Neighbourhood
from kwaai_lobe_router.leaving import Left, lacks_room
from kwaai_lobe_router.linking import Linking
from kwaai_lobe_router.planning import backup, mend, plan
from kwaai_lobe_router.progress import Progress
from kwaai_lobe_router.refusals import Late, Refusal, Uncovered
from kwaai_lobe_router.swarm import LOCAL, Candidate, Plan, Swarm, TierOf, Wish

log = logging.getLogger(__name__)

PATIENCE_SECONDS, FULL_PATIENCE_SECONDS = 10.0, 30.0
"""For how long a path is looked for, and where all that is missing is room."""

_SERVING = (Blame.SLOW, Blame.LEAVING)
"""For these a place is left only if there is a better one."""

_LOOK_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class View:
    """A model's holders as a session sees them; ``mine`` are this node's own units."""

    model: str
    blocks: int
    others: Neighbourhood | None
    mine: Callable[[], Candidate | None]
    tier_of: TierOf

    def swarm(self) -> Swarm:
        """What is known now."""
        mine = self.mine()
        others = self.others.candidates() if self.others is not None else []
        return Swarm(self.model, self.blocks, (*([mine] if mine else []), *others))


class SessionRouting:
    """The :class:`kwaai_core.span.roles.Routing` of one answer.

    ``same_text``: all that computed for it until now was exact and of one fingerprint. ``blamed``
    is called with each peer whose own link failed. It began at ``began``, and whoever made it says
    in ``progress`` what has come, and calls :meth:`close`. ``limit`` is how many tokens the answer
    may have, where the request says.
    """

    def __init__(
        self,
        view: View,
        gateway: Gateway,
        wish: Wish,
        blamed: Callable[[str, str], None],
        limit: int | None = None,
    ) -> None:
        self.same_text = True
        self.plan: Plan | None = None
        self.backup: Plan | None = None
        self._view = view
        self._gateway = gateway
        self._wish = wish
        self._blamed = blamed
        self._limit = limit
        self.began = trio.current_time()
        self.progress = Progress(self.began)
        self._left = Left()
        self._held: list[str] = []
        self._spare: set[str] = set()
        self._slow: dict[str, int] = {}
        self._linking = Linking(gateway, view.others, self._left)
        if view.others is not None:
            view.others.users += 1

    async def __call__(
        self, tokens: int, route: Sequence[Place], trouble: Sequence[Trouble]
    ) -> Sequence[Place]:
        """See :class:`kwaai_core.span.roles.Routing`."""
        if not route:
            self._count(tokens)
        trouble = [*trouble, *self._gone(route, trouble)]
        hard = [t for t in trouble if t.blame not in _SERVING]
        for one in trouble:
            self._note(one)
        if route and not hard:
            return await self._better(route, trouble)
        if not self.progress.started and any(one.blame is Blame.FULL for one in hard):
            raise self._left.no_room(self._view.model)
        failed = {one.place for one in hard}
        return await self._found([place for place in route if place not in failed], first=not route)

    def _count(self, tokens: int) -> None:
        """The head's worker has counted ``tokens`` for prompt and answer together. Where it was
        told how long the answer may be, and that was not cut, the rest is the prompt."""
        limit, cells = self._limit, self._gateway.head.facts.cells
        prompt = tokens - limit if limit is not None and limit < tokens < cells else None
        self._wish = replace(self._wish, tokens=tokens, prompt=prompt or self._wish.prompt)
        self.progress.prompt = self._wish.prompt
        self.progress.most = tokens - self._wish.prompt

    def _gone(self, route: Sequence[Place], trouble: Sequence[Trouble]) -> list[Trouble]:
        """The places whose link was lost a moment after that of another: to link to them anew, as
        to those that serve on, would take until they do not answer."""
        told = {one.place for one in trouble if one.blame not in _SERVING}
        return [
            Trouble(place, Blame.LOST, "the link to it is lost")
            for place in route
            if place not in told and self._gateway.gone(place.link)
        ]

    def _note(self, trouble: Trouble) -> None:
        peer = self._gateway.peer_of(trouble.place.link)
        self._left.note(peer, trouble, self.progress.tokens)
        if trouble.blame is Blame.LOST:
            self._blamed(peer, trouble.reason)
            if self._view.others is not None:
                self._view.others.forget(peer)

    def _wish_now(self) -> Wish:
        return replace(self._wish, excluded=self._left.now())

    def _wish_again(self) -> Wish:
        """The same with those who were lost once and heard since: the lost link may have been all
        that was wrong. They are taken only where there is nobody else."""
        asked = self._view.others.asked if self._view.others is not None else None
        return replace(self._wish, excluded=self._left.now(asked))

    # -- a route

    async def _found(self, living: Sequence[Place], *, first: bool) -> Sequence[Place]:
        """Places for the whole model, as soon as there are any. Errors: see :class:`Routing`."""
        asked = trio.current_time()
        began = self.began if first else asked
        while True:
            wish, again = self._wish_now(), self._wish_again()
            found = self._planned(living, wish, first=first)
            if not isinstance(found, Plan) and again != wish:
                found = self._planned(living, again, first=first)
            if isinstance(found, Plan):
                places = await self._linking.places(found)
                if places is not None:
                    self._take(found)
                    return places
                if trio.current_time() - asked > PATIENCE_SECONDS:
                    raise self._given_up(found, first=first, full=bool(self._left.full))
                continue
            full = bool(self._left.full) or lacks_room(found)
            if full and living and not self.progress.started:
                raise self._left.no_room(self._view.model)
            most = FULL_PATIENCE_SECONDS if full else PATIENCE_SECONDS
            late = isinstance(found, Late) and not self._linking.opening
            if late or trio.current_time() - began > most:
                raise self._given_up(found, first=first, full=full)
            await self._wait()

    def _planned(self, living: Sequence[Place], wish: Wish, *, first: bool) -> Plan | Refusal:
        swarm = self._view.swarm()
        if first:
            return plan(swarm, wish, self._view.tier_of)
        hops = [Hop(self._gateway.peer_of(place.link), place.span) for place in living]
        return mend(swarm, wish, hops, (), self._view.tier_of)

    def _take(self, found: Plan) -> None:
        """Go by this plan, and keep another warm."""
        self.plan = found
        self._left.back(hop.peer for hop in found.hops)
        if self.progress.started:
            self._left.full.clear()
        self.same_text = self.same_text and found.same_text
        wish = self._wish_now()
        self.backup = backup(self._view.swarm(), wish, found, self._view.tier_of)
        spare = self.backup.hops if self.backup else ()
        self._hold({hop.peer for hop in (*found.hops, *spare)})
        self._stand_by({hop.peer for hop in spare} - {hop.peer for hop in found.hops})
        for hop in spare:
            self._gateway.warm(hop.peer)

    def _hold(self, peers: set[str]) -> None:
        self._gateway.users.subtract(self._held)
        self._held = sorted(peers)
        self._gateway.users.update(self._held)

    def _stand_by(self, peers: set[str]) -> None:
        """Have room kept at those to whom it would move, and at no others."""
        peers.discard(LOCAL)
        if self._view.others is not None:
            self._view.others.stand_by(peers, self._spare)
        self._spare = peers

    async def _wait(self) -> None:
        if self._view.others is not None:
            await self._view.others.until_news(_LOOK_SECONDS)
        else:
            await trio.sleep(_LOOK_SECONDS)

    def _given_up(self, found: Plan | Refusal, *, first: bool, full: bool) -> KwaaiError:
        refusal = self._linking.failed() if isinstance(found, Plan) else str(found)
        if first and self._left.full:
            room = self._left.no_room(self._view.model)
            return NoPeerAvailable(f"{room.message}; {refusal}", retry_after=room.retry_after)
        if first:
            return NoPeerAvailable(refusal, retry_after=1.0 if full else None)
        lost = ", ".join(self._left.lost())
        who = f"; lost during this answer: {lost}" if lost else ""
        uncovered = isinstance(found, Uncovered)
        again = "ask again once a node with these blocks is back; " if uncovered else ""
        return UpstreamLost(
            f"a part of the route was lost, and there is no other: {refusal}{who}; {again}"
            f"who holds what is shown by: kwaai swarm status {self._view.model}"
        )

    # -- what serves until there is better

    async def _better(self, route: Sequence[Place], trouble: Sequence[Trouble]) -> Sequence[Place]:
        """A route without those who leave, or are slow, if there is one and it is sooner."""
        left = {one.place for one in trouble}
        kept = [place for place in route if place not in left]
        peers = {self._gateway.peer_of(place.link) for place in left}
        slow = all(one.blame is Blame.SLOW for one in trouble)
        with self._left.without(peers | self._slow_until_now() if slow else peers):
            found = self._planned(kept, self._wish_now(), first=False)
        took = max(one.took for one in trouble) * 1e9
        if not isinstance(found, Plan) or (slow and not self._sooner(found, kept, took)):
            return list(route)
        places = await self._linking.places(found)
        if places is None:
            return list(route)
        self._take(found)
        if slow:
            self._slow |= dict.fromkeys(peers, self.progress.tokens + self.progress.ahead)
        return places

    def _slow_until_now(self) -> set[str]:
        """Whom it has left as slow, and not come far enough since to try again: else it would go to
        and fro where all are slow."""
        return {peer for peer, until in self._slow.items() if self.progress.tokens < until}

    def _sooner(self, found: Plan, kept: Sequence[Place], took: float) -> bool:
        rows = self._gateway.head.facts.replay_rows
        replay = self.progress.replay(found, kept, self._view.swarm().candidates, rows)
        return self.progress.sooner(found, replay, took)

    def close(self) -> None:
        """The answer has ended."""
        self._hold(set())
        self._stand_by(set())
        if self._view.others is not None:
            self._view.others.users -= 1
            self._view.others.wanted = trio.current_time()
