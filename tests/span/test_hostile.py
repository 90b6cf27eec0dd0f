"""Peers that send whatever they like: typed refusals, bounded memory, and nobody else is hurt."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kwaai_core.errors import FrameError
from kwaai_core.span.frames import (
    MAX_TEXT,
    TAG_SIZE,
    FaultCode,
    Flags,
    Frame,
    FrameReader,
    Kind,
    Opening,
    encode,
)
from kwaai_core.span.hop import Blame
from kwaai_core.testing.toy import ROW, WIDTH, plain
from kwaai_core.types import Span
from tests.span.rigs import CHUNK, LIMITS, ChainRig, HostRig

SMALL = st.integers(0, 6)
NUMBERS = st.one_of(SMALL, st.integers(0, 2**32 - 1))
WAVES = st.integers(0, 3)


def filled(size: int, filler: bytes) -> bytes:
    return (filler * (size // len(filler) + 1))[:size] if filler else bytes(size)


@st.composite
def sendable(draw: st.DrawFn, kinds: st.SearchStrategy[Kind], session: int) -> Frame:
    """A frame that a reader lets through, with whatever in it."""
    kind = draw(kinds)
    rows, flags = draw(st.integers(0, 2**16 - 1)), Flags.NONE
    payload = draw(st.binary(max_size=64))
    if kind in (Kind.STEP, Kind.RESULT):
        rows = draw(st.integers(1, CHUNK + 2))
        more = draw(st.sampled_from([Flags.NONE, Flags.SILENT, Flags.LAST]))
        flags = Flags.FLOAT32 | more
        size = rows * ROW + (rows + 1) * TAG_SIZE * (kind is Kind.STEP)
        if kind is Kind.RESULT and more:
            size = ROW if more is Flags.LAST else 0
        payload = filled(size, payload)
    elif kind is Kind.OPEN and draw(st.booleans()):
        lo = draw(st.sampled_from([0, 4, 6]))
        payload = Opening(Span(lo, lo + draw(st.sampled_from([2, 4]))), draw(NUMBERS)).encode()
    epoch, step, position = draw(st.tuples(NUMBERS, NUMBERS, NUMBERS))
    return Frame(kind, session, epoch, step, position, rows, flags, payload=payload)


OF_OWNERS = st.sampled_from([Kind.OPEN, Kind.STEP, Kind.STEP, Kind.STEP, Kind.FENCE, Kind.CLOSE])


class HostUnderFire(RuleBasedStateMachine):
    """``bob`` does what he likes; ``ann`` has an honest session, whose answers must be right."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = HostRig()
        self.rig.open(1, link="ann")
        self.number = self.position = 0
        self.answers: list[Frame] = []
        self.expected = HostRig()
        self.expected.open(1, link="ann")

    @rule(data=st.data(), session=st.integers(1, 6), link=st.sampled_from(["bob", "bob 2"]))
    def fire(self, data: st.DataObject, session: int, link: str) -> None:
        self.rig.host.attach("bob 2", "bob")
        for frame in FrameReader(WIDTH, 64).feed(encode(data.draw(sendable(OF_OWNERS, session)))):
            for answer in self.rig.give(frame, link):
                assert answer.kind in (Kind.OPENED, Kind.RESULT, Kind.FENCED, Kind.FAULT)
                assert answer.session == session

    @rule(kind=st.sampled_from(Kind), session=st.integers(0, 6))
    def talk_like_a_host(self, kind: Kind, session: int) -> None:
        try:
            self.rig.give(Frame(kind, session), "bob")
        except FrameError:
            assert kind not in (Kind.OPEN, Kind.STEP, Kind.FENCE, Kind.CLOSE)

    @rule(position=st.integers(0, 20), rows=st.integers(1, 4), number=SMALL, epoch=WAVES)
    def nearly_honest(self, position: int, rows: int, number: int, epoch: int) -> None:
        step = self.rig.step(number, position, rows, session=2, epoch=epoch)
        self.rig.give(step, "bob")

    @rule(link=st.sampled_from(["bob", "bob 2"]))
    def hang_up(self, link: str) -> None:
        self.rig.host.attach(link, "bob")
        self.rig.host.detach(link, self.rig.now)
        self.rig.host.attach(link, "bob")

    @rule(rows=st.integers(1, 4))
    @precondition(lambda self: self.position < 90)
    def honest_step(self, rows: int) -> None:
        step = self.rig.step(self.number, self.position, rows)
        assert self.rig.give(step) == self.expected.give(step) == []
        self.number, self.position = self.number + 1, self.position + rows
        assert [f for f in self.rig.compute() if f.session == 1] == self.expected.compute()

    @rule(count=st.integers(1, 3))
    def compute(self, count: int) -> None:
        for _ in range(count):
            for session, _ in self.rig.host.ready()[:1]:
                if self.rig.host.start(session):
                    states = self.rig.cache.run(session)
                    self.rig.host.finish(session, states, waited=0, computed=0)

    @rule(seconds=st.floats(0, 700))
    def time_goes_by(self, seconds: float) -> None:
        self.rig.now += seconds
        self.rig.host.sessions[0].used = self.rig.now  # ann's own is in use
        self.rig.host.tick(self.rig.now)

    @invariant()
    def it_keeps_no_more_than_it_admits(self) -> None:
        host = self.rig.host
        assert len(host.sessions) + host.free == LIMITS.streams
        assert sum(session.owner == "bob" for session in host.sessions) <= LIMITS.per_peer
        for session in host.sessions:
            assert len(session.pending) <= LIMITS.window
            assert len(session.tags) <= session.room + 1
            assert session.held <= session.planned <= session.room
        streams = [session.stream for session in host.sessions]
        assert len(set(streams)) == len(streams)
        for (_, stream), rows in self.rig.cache.rows.items():
            assert not rows or stream in streams


TestHostUnderFire = pytest.mark.hypothesis(HostUnderFire.TestCase)


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_a_reader_takes_any_bytes(pieces: list[bytes]) -> None:
    reader = FrameReader(WIDTH, CHUNK)
    try:
        for piece in pieces:
            for frame in reader.feed(piece):
                assert len(frame.payload) <= MAX_TEXT
    except FrameError as error:
        assert error.message


OF_HOSTS = st.sampled_from([*Kind, Kind.RESULT, Kind.FENCED, Kind.FAULT, Kind.OPENED])


@settings(deadline=None)
@given(st.data())
def test_a_chain_survives_a_host_that_says_anything(data: st.DataObject) -> None:
    """The liar is in the middle; once it is replaced, the text is what it would have been."""
    rig = ChainRig("abcB")
    rig.route("abc")
    rig.chain.add(list(range(20)), 0.0)
    rig.run(2)
    for _ in range(data.draw(st.integers(1, 12))):
        hop = rig.chain.hops[1]
        frame = data.draw(sendable(OF_HOSTS, hop.session))
        if data.draw(st.booleans()):
            frame = frame._replace(epoch=rig.chain.epoch)
        if frame.kind is Kind.FAULT:
            frame = frame._replace(rows=data.draw(st.sampled_from([*FaultCode, 0, 9])))
        if frame.kind is Kind.RESULT and hop.flying:
            continue  # what has the right shape is believed: another test's matter
        rig.chain.receive(hop.session, frame, rig.now)
        rig.chain.beat("b", frame)
        rig.chain.tick(rig.now)
    assert all(t.place.link == "b" and isinstance(t.blame, Blame) for t in rig.chain.trouble)
    outputs = len(rig.chain.outputs)
    rig.kill("b")
    rig.route("aBc")
    assert not rig.chain.trouble and outputs <= 1
    rig.run(8)
    assert rig.text == plain(list(range(20)), len(rig.text))
    rig.chain.close()
    assert rig.budget.used == 0


@settings(deadline=None)
@given(st.data())
def test_an_honest_session_beside_a_liar_is_answered(data: st.DataObject) -> None:
    """Frames for one owner's chain that come over a link where it has no hop change nothing."""
    rig = ChainRig()
    rig.route("abc")
    rig.chain.add([1, 2, 3], 0.0)
    for _ in range(data.draw(st.integers(1, 6))):
        rig.chain.receive(data.draw(NUMBERS), data.draw(sendable(OF_HOSTS, 5)), rig.now)
    rig.run(4)
    assert rig.text == plain([1, 2, 3], len(rig.text))
