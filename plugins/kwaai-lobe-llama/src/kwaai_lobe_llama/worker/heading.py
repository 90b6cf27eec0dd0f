"""The owner's half of a span worker: answers over chains of spans, and the head that ends them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from kwaai_core.span.chain import Chain, Settings
from kwaai_core.span.frames import Frame
from kwaai_core.span.hop import Blame, Hop, Place, Trouble
from kwaai_core.span.host import SendFrame
from kwaai_core.span.journal import Budget
from kwaai_core.span.watch import Pace
from kwaai_lobe_llama.worker.span_engine import HeadEngine
from kwaai_lobe_llama.worker.telling import Session, Sink, Teller


class Ask(Protocol):
    """Asks for the places of a session of so many tokens."""

    def __call__(
        self, number: int, tokens: int, route: Sequence[Place], trouble: Sequence[Trouble]
    ) -> None: ...


AGAIN_SECONDS = 2.0
"""After how long the router is asked again about a place that it had nothing better for."""


class _Reported(NamedTuple):
    """When a place was said to be slow, or leaving, and after how many steps, that took so many
    seconds together. It still is if steps since then take longer than ``limit``."""

    at: float
    blame: Blame
    limit: float
    steps: int
    total: float


@dataclass(slots=True, eq=False)
class Answer:
    """One answer in the making. ``asked``: its router has still to say where it goes;
    ``reported`` are the places of this epoch that were said to be slow, or leaving; ``seen`` is how
    many rows of a prompt that is scored the head has run."""

    session: Session
    chain: Chain
    room: int
    asked: bool = False
    seen: int = 0
    reported: dict[Place, _Reported] = field(default_factory=dict)

    @property
    def scoring(self) -> bool:
        """Whether rows of its prompt come through, all of which are wanted."""
        return self.session.scored and self.seen < len(self.session.prompt)


class Heading:
    """Answers of one model. One thread calls all of it."""

    def __init__(
        self,
        head: HeadEngine,
        embed: Callable[[Sequence[int]], bytes],
        settings: Settings,
        budget: Budget,
        send: SendFrame,
        sink: Sink,
        ask: Ask,
        replay_rows: Callable[[Place], int],
        new_pace: Callable[[Place], Pace],
    ) -> None:
        self._head = head
        self._embed = embed
        self._settings = settings
        self._budget = budget
        self._send = send
        self._ask_for_route = ask
        self._replay_rows = replay_rows
        self._new_pace = new_pace
        self._teller = Teller(head, sink)
        self._paces: dict[Place, Pace] = {}
        self._answers: dict[int, Answer] = {}
        self._hops: dict[tuple[int, int], Answer] = {}
        self._leaving: set[int] = set()

    def ready(self) -> bool:
        """Whether hidden states have come through, of which :meth:`step` makes tokens."""
        return any(answer.chain.outputs for answer in self._answers.values())

    def hops(self, number: int) -> Sequence[Hop]:
        """The hops of an answer, with what they took so far."""
        return self._answers[number].chain.hops

    def open(self, session: Session) -> None:
        """Begin an answer, as soon as there is a route for it."""
        if session.cancelled:
            session.sampler.close()
            return
        room = len(session.prompt) + max(session.limit, 1) - 1  # the last token is told, not run
        chain = Chain(
            replace(self._settings, room=room),
            self._embed,
            self._send,
            self._budget,
            pace=self._pace,
            replay_rows=self._replay_rows,
        )
        answer = self._answers[session.number] = Answer(session, chain, room)
        self._ask(answer, [])

    def _pace(self, place: Place) -> Pace:
        if place not in self._paces:
            self._paces[place] = self._new_pace(place)
        return self._paces[place]

    def route(self, number: int, places: Sequence[Place]) -> None:
        """An answer goes over these places from now on."""
        answer = self._answers.get(number)
        if answer is None:
            return
        chain, answer.asked = answer.chain, False
        failed = {trouble.place for trouble in chain.trouble}
        if chain.hops and not failed and [hop.place for hop in chain.hops] == list(places):
            return  # what is slow is still the best there is
        first = not chain.hops
        chain.route(places, time.monotonic())
        answer.reported.clear()
        self._name_hops(answer)
        if first:
            session = answer.session
            chain.add(session.prompt, time.monotonic(), every=session.scored)

    def _name_hops(self, answer: Answer) -> None:
        for key in [key for key, other in self._hops.items() if other is answer]:
            del self._hops[key]
        for hop in answer.chain.hops:
            self._hops[_link(hop.place), hop.session] = answer

    def receive(self, link: int, frame: Frame) -> None:
        """Take a frame of a host."""
        answer = self._hops.get((link, frame.session))
        if answer is not None:
            answer.chain.receive(frame.session, frame, time.monotonic())
            self._look_at(answer)

    def beat(self, link: int, frame: Frame) -> None:
        """Take a heartbeat of a host."""
        for answer in self._answers.values():
            answer.chain.beat(link, frame)

    def lose(self, link: int, reason: str) -> None:
        """A link is gone."""
        self._leaving.discard(link)
        for answer in list(self._answers.values()):
            answer.chain.lose(link, reason)
            self._look_at(answer)
        for place in [place for place in self._paces if _link(place) == link]:
            del self._paces[place]

    def leave(self, link: int) -> None:
        """The host at the other end of a link is about to leave. It says so once: who is asking
        already, or goes there later, reports it with the next :meth:`tick`."""
        self._leaving.add(link)
        for answer in list(self._answers.values()):
            self._report_leaving(answer)

    def _report_leaving(self, answer: Answer) -> None:
        there = [hop for hop in answer.chain.hops if _link(hop.place) in self._leaving]
        # one that has no session there yet gets none, and is told that there is no room
        places = {hop.place: 0.0 for hop in there if not hop.fresh}
        self._report(answer, places, Blame.LEAVING)

    def tick(self) -> None:
        """Look at the time."""
        now = time.monotonic()
        for answer in list(self._answers.values()):
            answer.chain.tick(now)
            self._look_at(answer)
            self._report_leaving(answer)
            self._report(answer, answer.chain.slow(now), Blame.SLOW)
            for blame in _REASONS:
                self._report(answer, self._still(answer, blame, now), blame)

    def _look_at(self, answer: Answer) -> None:
        if answer.chain.trouble and not answer.asked:
            self._ask(answer, answer.chain.trouble)

    def _report(self, answer: Answer, places: Mapping[Place, float], blame: Blame) -> None:
        """Tell its router of places, and what a step takes there, unless that is known."""
        known = {p for p, said in answer.reported.items() if said.blame in (blame, Blame.LEAVING)}
        fresh = [place for place in places if place not in known]
        if not fresh or answer.asked:
            return
        now = time.monotonic()
        for hop in answer.chain.hops:
            if hop.place in fresh:
                limit = hop.pace.limit(1) if blame is Blame.SLOW else 0.0
                steps, total = hop.timing.steps, hop.timing.total
                answer.reported[hop.place] = _Reported(now, blame, limit, steps, total)
        reason = _REASONS[blame]
        self._ask(answer, [Trouble(each, blame, reason, took=places[each]) for each in fresh])

    def _still(self, answer: Answer, blame: Blame, now: float) -> Mapping[Place, float]:
        """The places that were kept although they were reported, and are to be again; and how many
        seconds a step has taken there since."""
        found: dict[Place, float] = {}
        if answer.asked:
            return found
        for hop in answer.chain.hops:
            before, timing = answer.reported.get(hop.place), hop.timing
            if before is None or before.blame is not blame or now - before.at < AGAIN_SECONDS:
                continue
            steps = timing.steps - before.steps
            took = (timing.total - before.total) / max(steps, 1)
            if steps and took > before.limit:
                del answer.reported[hop.place]
                found[hop.place] = took
        return found

    def _ask(self, answer: Answer, trouble: Sequence[Trouble]) -> None:
        answer.asked = True
        route = [hop.place for hop in answer.chain.hops]
        self._ask_for_route(answer.session.number, answer.room, route, trouble)

    def step(self) -> bool:
        """The next tokens of the answers whose hidden states have come through, and what there is
        to tell of a prompt; False where there are none."""
        every = [answer for answer in self._answers.values() if answer.chain.outputs]
        ready = [answer for answer in every if not answer.scoring]
        most = min(self._head.plan.max_rows, self._head.plan.streams)
        for start in range(0, len(ready), most):
            group = ready[start : start + most]
            self._head.run_head([answer.chain.outputs.popleft() for answer in group])
            for row, answer in enumerate(group):
                self._take(answer, row)
        scoring = [answer for answer in every if answer.scoring]
        if scoring:  # one at a time, so that they hold up nobody's tokens for long
            self._score(min(scoring, key=lambda answer: answer.seen))
        return bool(every)

    def _take(self, answer: Answer, row: int) -> None:
        if self._teller.take(answer.session, row, hold=True):
            self._end(answer)
        elif not answer.session.cancelled:  # else it has no token, and ends with its errand
            answer.chain.add([answer.session.token], time.monotonic())

    def _score(self, answer: Answer) -> None:
        """Tell the probabilities of the next tokens of a prompt, and draw what follows its last."""
        width, outputs = self._head.width * 4, answer.chain.outputs
        states = memoryview(outputs.popleft())
        most = self._head.scored_rows * width
        if len(states) > most:
            outputs.appendleft(bytes(states[most:]))
            states = states[:most]
        rows = len(states) // width
        self._head.score(states)
        self._teller.score(answer.session, range(rows))
        answer.seen += rows
        if not answer.scoring:
            self._take(answer, rows - 1)

    def cancel(self, session: Session) -> None:
        """End an answer that nobody wants any more."""
        answer = self._answers.get(session.number)
        if answer is not None:
            self._end(answer)

    def _end(self, answer: Answer) -> None:
        del self._answers[answer.session.number]
        for hop in answer.chain.hops:
            self._hops.pop((_link(hop.place), hop.session), None)
        answer.chain.close()
        answer.session.sampler.close()


_REASONS = {Blame.SLOW: "it takes long", Blame.LEAVING: "it is about to leave"}


def _link(place: Place) -> int:
    if not isinstance(place.link, int):
        raise TypeError(f"the links of a worker have numbers, not {place.link!r}")
    return place.link
