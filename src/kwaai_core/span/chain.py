"""The owner's side of a session: its steps through the hops of a route, whatever happens to them.

There is one rule for prefill, decoding and replay. A hop has to apply every recorded step that its
host does not hold yet, in order; the input of a step comes from the journal of its boundary, or
from the hop before, which is asked for its output only where somebody needs it. So a lost hop is
brought back by sending what its journal has, silently; two lost neighbours rebuild each other; a
hole where no journal lives is filled by running the spans before it again, from the tokens on.

When the route changes, the epoch is raised, and every host acknowledges that *before* anything else
is sent: what an old host or an old frame still says is then dropped everywhere.

One who has links and a head drives it: :meth:`Chain.route`, :meth:`Chain.add`,
:meth:`Chain.receive`, :meth:`Chain.beat`, :meth:`Chain.lose`, :meth:`Chain.tick`. It answers
through ``send``, :attr:`Chain.outputs` and :attr:`Chain.trouble`. Times are seconds of one clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kwaai_core.span.frames import FaultCode, Flags, Frame, Kind, Opening
from kwaai_core.span.hop import Blame, Flight, Hop, Place, Trouble
from kwaai_core.span.host import SendFrame
from kwaai_core.span.journal import Budget, Journal
from kwaai_core.span.recording import Recording
from kwaai_core.span.tags import PrefixTags
from kwaai_core.span.watch import PAUSE_SECONDS, Pace

ANSWER_SECONDS = 5.0
"""How long a host may owe an answer while it is not seen to compute anything."""

STAND_SECONDS = 60.0
"""How long a host may take to stand at an epoch, however much it computes: the answer stands still
meanwhile, and nobody may hold it up with heartbeats alone."""

_REPLAYS = 2


@dataclass(frozen=True, slots=True)
class Settings:
    """Of a session. ``width``: of a hidden state. ``room``: tokens it may grow to. ``chunk``: rows
    of a prefill step. ``window``: steps under way at one host, so that the next waits there while
    one is computed."""

    width: int
    room: int
    chunk: int
    window: int = 4


class Chain:
    """One session. ``embed`` gives the hidden states that go into block 0 for some tokens.
    ``replay_rows`` says how many lone rows may be replayed at a place in one call.

    Whoever made it calls :meth:`close`, which frees what the hosts hold.
    """

    def __init__(
        self,
        settings: Settings,
        embed: Callable[[Sequence[int]], bytes],
        send: SendFrame,
        budget: Budget,
        *,
        pace: Callable[[Place], Pace] = lambda _: Pace(),
        replay_rows: Callable[[Place], int] = lambda _: 1,
        tags: PrefixTags | None = None,
    ) -> None:
        self._settings = settings
        self._steps = Recording(embed, tags or PrefixTags())
        self._send = send
        self._budget = budget
        self._pace = pace
        self._replay_rows = replay_rows
        self._journals: dict[int, Journal] = {}
        self._headed = 0
        self._broken = True
        self._lost: dict[Hashable, str] = {}
        self._ticked: float | None = None
        self._paused = False
        self.hops: list[Hop] = []
        self.epoch = 0
        self.trouble: list[Trouble] = []
        """Places that fell out since the last :meth:`route`; nothing goes on until the next."""
        self.outputs: deque[bytes] = deque()
        """What the head shall see, in order: the hidden state of the last row of each
        :meth:`add`, or, a step at a time, those of every row of it."""

    @property
    def tokens(self) -> Sequence[int]:
        """Every token that was given so far."""
        return self._steps.tokens

    @property
    def settled(self) -> bool:
        """Whether every hop has acknowledged the epoch, and nothing is in the way."""
        return not self._broken and not any(hop.awaited for hop in self.hops)

    @property
    def recovered(self) -> bool:
        """Whether every hop has again what it, or the one in its place, had before."""
        return self.settled and all(hop.done >= hop.furthest for hop in self.hops)

    # -- the route

    def route(self, places: Sequence[Place], now: float) -> None:
        """Go over these places from now on, which cover all blocks in order; the same place as
        before keeps what it holds, unless it is in :attr:`trouble`. Where a link of them is lost
        already, there is trouble again at once."""
        failed = {trouble.place for trouble in self.trouble}
        kept = {
            hop.place: hop for hop in self.hops if hop.place in places and hop.place not in failed
        }
        self._keep_journals({place.span.lo for place in places})
        self.epoch += 1
        for hop in self.hops:
            if hop.place not in kept:  # where a link is gone, nobody hears it
                self._send(hop.place.link, Frame(Kind.CLOSE, hop.session, self.epoch))
        self.hops = [kept.get(place) or self._hop(place) for place in places]
        self.trouble.clear()
        self._broken = False
        self._fence()
        for link in self._lost.keys() & {place.link for place in places}:
            self.lose(link, self._lost[link])

    def _keep_journals(self, boundaries: set[int]) -> None:
        for boundary in [lo for lo in self._journals if lo not in boundaries]:
            self._journals.pop(boundary).close()

    def _hop(self, place: Place) -> Hop:
        journal = self._journals.setdefault(place.span.lo, Journal(self._budget))
        furthest = max((max(hop.sent, hop.furthest) for hop in self.hops), default=0)
        most = min(self._replay_rows(place), self._settings.chunk)
        return Hop(place, journal, self._pace(place), furthest, replay_rows=most)

    def _fence(self) -> None:
        """Ask every host to stand at this epoch; the fresh ones have no session yet."""
        for hop in self.hops:
            hop.fence()
            kind, payload = Kind.FENCE, b""
            if hop.fresh:
                kind = Kind.OPEN
                payload = Opening(hop.place.span, self._settings.room).encode()
            self._send(hop.place.link, Frame(kind, hop.session, self.epoch, payload=payload))

    def _acknowledged(self, hop: Hop, held: int, now: float) -> None:
        if not hop.awaited:
            return
        hop.acknowledged(held)
        if not self.settled:
            return
        self._rewind()
        for index in range(len(self.hops)):
            self._pump(index, now)

    def _rewind(self) -> None:
        """What a hop has computed and nobody has kept, it computes again."""
        last = self.hops[-1]
        lost = [step for step in range(self._headed, last.done) if self._steps[step].outputs]
        if lost:
            last.rewind(lost[0])
        for before, after in reversed(list(pairwise(self.hops))):
            missing = after.journal.first_missing(after.done, before.done)
            if missing < before.done:
                before.rewind(missing)

    # -- steps

    def add(self, tokens: Sequence[int], now: float, *, every: bool = False) -> None:
        """More tokens: a prompt, which is cut into chunks, or the one that was chosen last.
        ``every``: the head shall see all rows of it."""
        self._steps.add(tokens, self._settings.chunk, every=every)
        self._pump(0, now)

    def _pump(self, index: int, now: float) -> None:
        """Send a hop what it lacks, as far as there is input and it has room."""
        if index >= len(self.hops) or not self.settled:
            return
        hop = self.hops[index]
        while len(hop.flying) < self._settings.window:
            flight = self._next(index, now)
            if flight is None:
                return
            hop.take_off(flight)
            tags = self._steps.tags(flight.position, flight.rows)
            frame = Frame(
                Kind.STEP,
                hop.session,
                self.epoch,
                flight.end - 1,
                flight.position,
                flight.rows,
                flight.flags,
                payload=tags + self._states(index, flight),
            )
            self._send(hop.place.link, frame)

    def _next(self, index: int, now: float) -> Flight | None:
        """The next steps for a hop that may be one call: one step, or lone rows of a replay."""
        first = self.hops[index].sent
        if not self._available(index, first):
            return None
        position, rows, _ = self._steps[first]
        silent = not self._wanted(index, first)
        end = first + 1
        while (
            rows == end - first < self.hops[index].replay_rows
            and self._available(index, end)
            and self._steps[end].rows == 1
            and self._wanted(index, end) != silent
        ):
            rows, end = rows + 1, end + 1
        flags = Flags.FLOAT32
        if silent:
            flags |= Flags.SILENT
        elif index + 1 == len(self.hops) and rows > end - first and self._steps[first].outputs == 1:
            flags |= Flags.LAST
        return Flight(first, end, position, rows, flags, now)

    def _available(self, index: int, step: int) -> bool:
        if step >= len(self._steps):
            return False
        return index == 0 or self.hops[index].journal.get(step) is not None

    def _wanted(self, index: int, step: int) -> bool:
        """Whether anybody needs a hop's output of a step."""
        if index + 1 == len(self.hops):
            return step >= self._headed and bool(self._steps[step].outputs)
        after = self.hops[index + 1]
        return after.done <= step and after.journal.get(step) is None

    def _states(self, index: int, flight: Flight) -> bytes:
        if index == 0:
            return self._steps.states(flight.position, flight.rows)
        journal = self.hops[index].journal
        return b"".join(journal.get(step) or b"" for step in range(flight.first, flight.end))

    # -- what comes back

    def receive(self, session: int, frame: Frame, now: float) -> None:
        """Take a frame of the host that knows this session as ``session``. Whoever calls has seen
        that it came over the link of that hop: a name alone proves nothing."""
        index = next((i for i, hop in enumerate(self.hops) if hop.session == session), None)
        if index is None or frame.epoch != self.epoch:
            return
        hop = self.hops[index]
        if frame.kind is Kind.RESULT:
            self._result(index, frame, now)
        elif frame.kind is Kind.OPENED:
            self._acknowledged(hop, 0, now)
        elif frame.kind is Kind.FENCED:
            self._acknowledged(hop, self._steps.held(frame), now)
        elif frame.kind is Kind.FAULT:
            self._fault(hop, frame, now)
        else:
            self._fall_out(hop, Blame.LOST, f"it sent a {frame.kind.name} frame of a session")

    def _result(self, index: int, frame: Frame, now: float) -> None:
        hop = self.hops[index]
        if frame.step < hop.done:
            return  # a repeated one
        wrong = hop.wrong(frame)
        if wrong:
            self._fall_out(hop, Blame.LOST, wrong)
            return
        flight = hop.land(frame, now)
        if not flight.flags & Flags.SILENT:
            self._pass_on(index, flight, frame.payload)
        hop.journal.passed(hop.done)
        self._pump(index, now)
        self._pump(index + 1, now)

    def _pass_on(self, index: int, flight: Flight, states: bytes) -> None:
        """Give the output of some steps to the next hop's journal, or to the head."""
        if flight.flags & Flags.LAST:
            self._headed = flight.end
            self.outputs.append(states)
            return
        row = self._settings.width * 4
        at = 0
        for step in range(flight.first, flight.end):
            end = at + self._steps[step].rows * row
            if index + 1 < len(self.hops):
                self.hops[index + 1].journal.put(step, states[at:end])
            else:
                self._headed = step + 1
                self.outputs.append(states[end - self._steps[step].outputs * row : end])
            at = end

    def _fault(self, hop: Hop, frame: Frame, now: float) -> None:
        said = frame.payload[:512].decode("utf-8", "replace")
        words = "".join(c if c.isprintable() else "?" for c in said)  # they go to a log
        if frame.rows == FaultCode.NEED_REPLAY:
            hop.refused += 1
            if hop.refused <= _REPLAYS:
                hop.fresh = hop.fresh or not frame.position
                self.epoch += 1
                self._fence()
            else:
                self._fall_out(hop, Blame.LOST, f"it asked for {hop.refused} replays in a row")
        elif frame.rows == FaultCode.CAPACITY:
            self._fall_out(hop, Blame.FULL, words, frame.position / 1000)
        elif frame.rows == FaultCode.REQUEST:
            self._fall_out(hop, Blame.REFUSED, words)
        else:
            self._fall_out(hop, Blame.LOST, words)

    # -- what goes wrong

    def lose(self, link: Hashable, reason: str) -> None:
        """A link is gone, or silent, and does not come back."""
        self._lost[link] = reason
        for hop in self.hops:
            if hop.place.link == link:
                self._fall_out(hop, Blame.LOST, reason)

    def _fall_out(self, hop: Hop, blame: Blame, reason: str, retry: float = 0.0) -> None:
        self._broken = True
        if all(trouble.place != hop.place for trouble in self.trouble):
            self.trouble.append(Trouble(hop.place, blame, reason, retry))

    def beat(self, link: Hashable, frame: Frame) -> None:
        """Take a HEARTBEAT of the host at the other end of a link."""
        for hop in self.hops:
            if hop.place.link == link:
                hop.beat(frame)

    def tick(self, now: float) -> None:
        """Look at the time, several times a second: hosts that live, compute nothing and do not
        answer fall out."""
        since = 0.0 if self._ticked is None else now - self._ticked
        self._paused = self._ticked is None or since > PAUSE_SECONDS
        self._ticked = now
        for hop in self.hops:
            if hop.owes(min(since, PAUSE_SECONDS)) > ANSWER_SECONDS:
                self._fall_out(hop, Blame.LOST, f"it has not answered for {ANSWER_SECONDS:.0f} s")
            elif hop.awaited and hop.waited > STAND_SECONDS:
                reason = f"it has not stood at the epoch for {STAND_SECONDS:.0f} s"
                self._fall_out(hop, Blame.LOST, reason)

    def slow(self, now: float) -> dict[Place, float]:
        """Places where a step, or the opening, takes longer than those before let expect, and for
        how many seconds it is under way. No fault. After a pause of one's own nobody is slow before
        the next :meth:`tick`."""
        if self._paused:
            return {}
        return {hop.place: taking for hop in self.hops if (taking := hop.slow(now))}

    def close(self) -> None:
        """End the session at every host."""
        self.epoch += 1
        for hop in self.hops:
            self._send(hop.place.link, Frame(Kind.CLOSE, hop.session, self.epoch))
        self._keep_journals(set())
        self.trouble.clear()
        self.hops = []
        self._broken = True
