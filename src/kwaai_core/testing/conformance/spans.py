"""What every executor that runs spans must do."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import trio

from kwaai_core.errors import PeerLost, UpstreamLost
from kwaai_core.peering import DataChannel
from kwaai_core.span.hop import Blame, Place, Trouble
from kwaai_core.span.roles import LOCAL, SpanExecutor, SpanHead, SpanHost
from kwaai_core.testing.conformance.rules import SECONDS, hold, require
from kwaai_core.types import GenerateRequest, ModelCard, Prompt, Sampling, Span

OpenSpans = Callable[[], AbstractAsyncContextManager[SpanExecutor]]


@dataclass(frozen=True, slots=True)
class SpanSubject:
    """An executor under test: ``open`` gives a fresh one each time, as another node would have it.

    It runs ``card``, of two blocks or more, ``exact``, and answers ``prompt`` with at least
    ``tokens`` tokens, 12 or more.
    """

    open: OpenSpans
    card: ModelCard
    prompt: Prompt
    tokens: int = 24

    def request(self) -> GenerateRequest:
        """A greedy request."""
        greedy = Sampling(temperature=0.0)
        return GenerateRequest(self.card, self.prompt, greedy, max_tokens=self.tokens, exact=True)

    @property
    def halves(self) -> tuple[Span, Span]:
        """The blocks of the model in two spans."""
        middle = self.card.blocks // 2
        return Span(0, middle), Span(middle, self.card.blocks)


async def check_spans(subject: SpanSubject, *, seconds: float = SECONDS) -> None:
    """Check every rule of :class:`kwaai_core.span.roles.SpanExecutor`.

    ``seconds`` is how long one rule may take. Errors: :class:`Nonconformance`.
    """
    for rule in SPAN_RULES:
        await hold(partial(rule, subject), rule.__name__, seconds)


@dataclass(eq=False)
class _Linked:
    """A link from a head to a host, and how to break it."""

    number: int
    host: SpanHost
    served: trio.CancelScope = field(default_factory=trio.CancelScope)


@dataclass(eq=False)
class _Rig:
    """A head, hosts, and the places where its next sessions shall go."""

    subject: SpanSubject
    stack: AsyncExitStack
    nursery: trio.Nursery
    head: SpanHead
    executor: SpanExecutor
    asked: list[Sequence[Trouble]] = field(default_factory=list)

    async def host(self, *units: Span) -> SpanHost:
        """Units held by another node."""
        other = await self.stack.enter_async_context(self.subject.open())
        held = other.hold(self.subject.card, units, exact=True)
        return await self.stack.enter_async_context(held)

    async def link(self, host: SpanHost) -> _Linked:
        near, far = _channels()
        linked = _Linked(-1, host)
        self.nursery.start_soon(self._serve, linked, far)
        linked.number = await self.stack.enter_async_context(
            self.head.link("host", near, replay_rows=host.facts.replay_rows)
        )
        return linked

    async def _serve(self, linked: _Linked, channel: DataChannel) -> None:
        with linked.served, suppress(PeerLost):
            await linked.host.serve("owner", channel)

    async def text(self, *routes: Sequence[Place], at: int = -1, then: object = None) -> str:
        """The text of an answer over the first route, then, each time that it is asked, the next.

        After ``at`` deltas ``then`` is called.
        """
        left = list(routes)

        async def routing(
            tokens: int, route: Sequence[Place], trouble: Sequence[Trouble]
        ) -> Sequence[Place]:
            if trouble and all(one.blame is Blame.SLOW for one in trouble):
                return route  # no fault, and nothing that a rule is about: the machine is busy
            self.asked.append(list(trouble))
            if not left:
                raise UpstreamLost("there is no other place")
            return left.pop(0)

        text, count = "", 0
        async with self.head.generate(self.subject.request(), routing) as deltas:
            async for delta in deltas:
                text, count = text + delta.text, count + 1
                if count == at and callable(then):
                    then()
        return text


def _channels() -> tuple[DataChannel, DataChannel]:
    near, far = socket.socketpair()
    clear = b"", b"", b""
    return DataChannel(near, *clear, server=False), DataChannel(far, *clear, server=True)


@asynccontextmanager
async def _rig(subject: SpanSubject, *local: Span) -> AsyncIterator[_Rig]:
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        stack.callback(nursery.cancel_scope.cancel)
        executor = await stack.enter_async_context(subject.open())
        if local:
            await stack.enter_async_context(executor.hold(subject.card, local, exact=True))
        head = await stack.enter_async_context(executor.head(subject.card, exact=True))
        rig = _Rig(subject, stack, nursery, head, executor)
        yield rig


async def _undivided(subject: SpanSubject) -> str:
    whole = Span(0, subject.card.blocks)
    async with _rig(subject, whole) as rig:
        text = await rig.text([Place(LOCAL, whole)])
    require(bool(text), "the units of the node itself gave no text")
    return text


async def spans_give_the_text_of_the_undivided_run(subject: SpanSubject) -> None:
    """Over two other nodes, and over one and this node's own units."""
    expected = await _undivided(subject)
    first, second = subject.halves
    async with _rig(subject, first) as rig:
        one = await rig.link(await rig.host(first))
        two = await rig.link(await rig.host(second))
        for at in (one.number, LOCAL):
            text = await rig.text([Place(at, first), Place(two.number, second)])
            require(text == expected, f"over link {at} came {text!r}, not {expected!r}")


async def a_lost_link_is_asked_about_and_changes_no_text(subject: SpanSubject) -> None:
    """The routing hears of the lost place and of no other, and the text goes on elsewhere."""
    expected = await _undivided(subject)
    first, second = subject.halves
    for lost in (0, 1):
        async with _rig(subject) as rig:
            links = [await rig.link(await rig.host(span)) for span in (first, second)]
            spare = await rig.link(await rig.host(first, second))
            route = [Place(links[0].number, first), Place(links[1].number, second)]
            other = list(route)
            other[lost] = Place(spare.number, route[lost].span)
            text = await rig.text(route, other, at=5, then=links[lost].served.cancel)
            require(text == expected, f"after a lost link came {text!r}, not {expected!r}")
            told = {(trouble.place, trouble.blame) for trouble in rig.asked[-1]}
            require(told == {(route[lost], Blame.LOST)}, f"the routing was told {told}")
            require(rig.head.lost(links[lost].number), "the link that was lost is not said to be")
            require(not rig.head.lost(spare.number), "a link that works is said to be lost")


async def who_is_given_up_hears_why(subject: SpanSubject) -> None:
    """What a routing raises ends the answer, and comes out of it."""
    whole = Span(0, subject.card.blocks)
    async with _rig(subject) as rig:
        link = await rig.link(await rig.host(whole))
        why = ""
        try:
            await rig.text([Place(link.number, whole)], at=5, then=link.served.cancel)
        except UpstreamLost as error:
            why = error.message
        require("no other place" in why, f"the answer ended with {why!r}")


async def a_host_that_drains_is_left_first(subject: SpanSubject) -> None:
    """Its owner is asked, and ``drain`` returns once the sessions are gone; the text is equal."""
    expected = await _undivided(subject)
    whole = Span(0, subject.card.blocks)
    async with _rig(subject) as rig:
        leaving, spare = [await rig.link(await rig.host(whole)) for _ in range(2)]
        drained = trio.Event()

        async def drain() -> None:
            await leaving.host.drain()
            drained.set()

        begin = partial(rig.nursery.start_soon, drain)
        routes = [[Place(link.number, whole)] for link in (leaving, spare)]
        text = await rig.text(*routes, at=5, then=begin)
        await drained.wait()
        require(text == expected, f"after a drain came {text!r}, not {expected!r}")
        told = {trouble.blame for trouble in rig.asked[-1]}
        require(told == {Blame.LEAVING}, f"the routing was told {told}")
        require(leaving.host.load().sessions == 0, "there are sessions after a drain")


async def foreign_bytes_end_their_own_link_only(subject: SpanSubject) -> None:
    """Who sends what is no frame is left, and the sessions of others go on."""
    expected = await _undivided(subject)
    whole = Span(0, subject.card.blocks)
    async with _rig(subject) as rig:
        link = await rig.link(await rig.host(whole))
        near, far = _channels()
        bad = _Linked(-1, link.host)
        rig.nursery.start_soon(rig._serve, bad, far)  # noqa: SLF001
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(near.socket))
        async with stream:
            await stream.send_all(b"GET / HTTP/1.1\r\n" * 8)
            with suppress(trio.BrokenResourceError):
                while await stream.receive_some():
                    pass  # until it is closed
        text = await rig.text([Place(link.number, whole)])
        require(text == expected, f"beside foreign bytes came {text!r}, not {expected!r}")


async def the_end_of_an_answer_frees_its_sessions(subject: SpanSubject) -> None:
    """Read to its end or left in the middle."""
    whole = Span(0, subject.card.blocks)

    async with _rig(subject) as rig:
        host = await rig.host(whole)
        link = await rig.link(host)
        free = host.load().free

        async def routing(
            tokens: int, route: Sequence[Place], trouble: Sequence[Trouble]
        ) -> Sequence[Place]:
            return [Place(link.number, whole)]

        await rig.text([Place(link.number, whole)])
        async with rig.head.generate(subject.request(), routing) as deltas:
            await deltas.receive()
        while host.load().sessions or host.load().free != free:  # noqa: ASYNC110
            await trio.sleep(0.05)


async def room_that_is_reserved_is_for_its_peer_only(subject: SpanSubject) -> None:
    """Who has none of it is told that the host is full, until it is free again."""
    expected = await _undivided(subject)
    whole = Span(0, subject.card.blocks)
    async with _rig(subject) as rig:
        link = await rig.link(await rig.host(whole))
        free = link.host.load().free
        link.host.reserve({"owner": 1, "another": free - 1})
        text = await rig.text([Place(link.number, whole)])
        require(text == expected, f"in the room that was reserved came {text!r}, not {expected!r}")
        link.host.reserve({"another": free})
        refused = False
        with suppress(UpstreamLost):
            await rig.text([Place(link.number, whole)])
            refused = True
        told = {trouble.blame for trouble in rig.asked[-1]}
        require(told == {Blame.FULL} and not refused, f"where all was reserved it was told {told}")
        link.host.reserve({})
        require(await rig.text([Place(link.number, whole)]) == expected, "the room is not free")


SPAN_RULES: tuple[Callable[[SpanSubject], Awaitable[None]], ...] = (
    spans_give_the_text_of_the_undivided_run,
    a_lost_link_is_asked_about_and_changes_no_text,
    who_is_given_up_hears_why,
    a_host_that_drains_is_left_first,
    foreign_bytes_end_their_own_link_only,
    the_end_of_an_answer_frees_its_sessions,
    room_that_is_reserved_is_for_its_peer_only,
)
