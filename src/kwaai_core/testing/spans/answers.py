"""One answer of the fake's head: a chain of spans, driven as its frames come."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import suppress
from math import inf
from zlib import crc32

import trio

from kwaai_core.errors import KwaaiError, UnsupportedParameter, leaf
from kwaai_core.span.chain import Chain
from kwaai_core.span.frames import Frame
from kwaai_core.span.hop import Blame, Hop, Place, Trouble
from kwaai_core.span.roles import Routing
from kwaai_core.testing.toy import chosen
from kwaai_core.types import (
    Delta,
    FinishReason,
    GenerateRequest,
    HopTiming,
    Prompt,
    Report,
    TokenIds,
    Usage,
)
from kwaai_core.types import Hop as NamedHop

TICK_SECONDS = 0.1


def most_of(request: GenerateRequest, room: int) -> int:
    """How many tokens its answer may have, where there is room for so many."""
    return room if request.max_tokens is None else min(request.max_tokens, room)


def tokens_of(prompt: Prompt) -> list[int]:
    """The toy's tokeniser: a number for each word."""
    if isinstance(prompt, TokenIds):
        return list(prompt.ids) or [0]
    texts = [prompt] if isinstance(prompt, str) else [f"{m.role} {m.content}" for m in prompt]
    return [crc32(word.encode()) % 50_000 for text in texts for word in text.split()] or [0]


class Teller:
    """From tokens to the deltas of an answer, up to a stop string or so many tokens."""

    def __init__(self, request: GenerateRequest, prompt: int, most: int) -> None:
        self._stop = [word for word in request.stop if word]
        self._hold = max(map(len, self._stop), default=1) - 1
        self._prompt, self._most = prompt, most
        self._text, self._told, self._tokens = "", 0, 0
        self._untold = 0
        if request.echo:
            raise UnsupportedParameter("the toy has no text of tokens, so no echo", param="echo")
        self.finish: FinishReason | None = None if most else "length"

    def take(self, token: int) -> Delta:
        """The delta for one more token; :attr:`finish` says whether it was the last."""
        self._text += f" {token}"
        self._tokens += 1
        self._untold += 1
        ends = [at for word in self._stop if (at := self._text.find(word)) >= 0]
        end = len(self._text) - self._hold
        if ends:
            self.finish, end = "stop", min(ends)
        elif self._tokens == self._most:
            self.finish, end = "length", len(self._text)
        text = self._text[self._told : max(end, self._told)]
        self._told = max(end, self._told)
        if not text and self.finish is None:
            return Delta("")
        counted, self._untold = self._untold, 0
        return Delta(text, counted)

    def last(self, report: Report | None = None) -> Delta:
        """What ends the answer."""
        usage = Usage(self._prompt, self._tokens)
        return Delta("", finish=self.finish or "stop", usage=usage, report=report)


class Telling(trio.abc.ReceiveChannel[Delta]):
    """The deltas of an answer, and the error that ends it."""

    def __init__(self) -> None:
        self._put, self._get = trio.open_memory_channel[Delta | Exception](inf)

    def tell(self, what: Delta | Exception) -> None:
        """Give a delta with something in it, or an error, to who reads."""
        if isinstance(what, Exception) or what.text or what.tokens or what.finish:
            with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
                self._put.send_nowait(what)

    def end(self) -> None:
        """Nothing more comes."""
        self._put.close()

    async def receive(self) -> Delta:
        what = await self._get.receive()
        if isinstance(what, Exception):
            raise what
        return what

    async def aclose(self) -> None:
        self._get.close()
        await trio.lowlevel.checkpoint()


class Answer:
    """One session: its chain, its routing, its text. Frames stir it; :meth:`run` does the rest."""

    def __init__(
        self, chain: Chain, prompt: Sequence[int], room: int, teller: Teller, routing: Routing
    ) -> None:
        self.chain = chain
        self.telling = Telling()
        self._prompt, self._room = prompt, room
        self._teller, self._routing = teller, routing
        self._stirred = trio.Event()
        self._asking = False
        self._reported: set[Place] = set()
        self._leaving: list[Place] = []

    def receive(self, link: Hashable, frame: Frame) -> None:
        """Take a frame of a host, if it is of this session and came over the right link."""
        if any(h.session == frame.session and h.place.link == link for h in self.chain.hops):
            self.chain.receive(frame.session, frame, trio.current_time())
            self._stirred.set()

    def lose(self, link: Hashable, reason: str) -> None:
        """A link is gone."""
        self.chain.lose(link, reason)
        self._stirred.set()

    def leave(self, link: Hashable) -> None:
        """The host behind a link is about to leave."""
        self._leaving += [hop.place for hop in self.chain.hops if hop.place.link == link]
        self._stirred.set()

    async def run(self, going: Callable[[], Awaitable[None]]) -> None:
        """Until the answer is complete, or its routing gives it up."""
        try:
            await self._ask([])
            self.chain.add(self._prompt, trio.current_time())
            async with trio.open_nursery() as nursery:
                while self._teller.finish is None:
                    await going()
                    self._look(nursery)
                    with trio.move_on_after(TICK_SECONDS):
                        await self._stirred.wait()
                    self._stirred = trio.Event()
                nursery.cancel_scope.cancel()
            self.telling.tell(self._teller.last(self._report()))
        except* KwaaiError as errors:
            self.telling.tell(leaf_error(errors))
        finally:
            self.chain.close()
            self.telling.end()

    def _look(self, nursery: trio.Nursery) -> None:
        now = trio.current_time()
        self.chain.tick(now)
        while self.chain.outputs and self._teller.finish is None:
            token = chosen(self.chain.outputs.popleft())
            self.telling.tell(self._teller.take(token))
            if self._teller.finish is None:
                self.chain.add([token], now)
        if self._asking or self._teller.finish is not None:
            return
        trouble = list(self.chain.trouble) or self._soft(now)
        if trouble:
            self._asking = True
            nursery.start_soon(self._ask, trouble)

    def _soft(self, now: float) -> list[Trouble]:
        """What is not lost, and has not been reported in this epoch."""
        found = [Trouble(place, Blame.LEAVING, "it is about to leave") for place in self._leaving]
        found += [
            Trouble(place, Blame.SLOW, "it takes long", took=took)
            for place, took in self.chain.slow(now).items()
        ]
        self._leaving.clear()
        fresh = [trouble for trouble in found if trouble.place not in self._reported]
        self._reported.update(trouble.place for trouble in fresh)
        return fresh

    async def _ask(self, trouble: Sequence[Trouble]) -> None:
        route = [hop.place for hop in self.chain.hops]
        places = list(await self._routing(self._room, route, trouble))
        if self.chain.trouble or places != route:
            self.chain.route(places, trio.current_time())
            self._reported.clear()
        self._asking = False
        self._stirred.set()

    def _report(self) -> Report:
        return Report(tuple(map(_timing, self.chain.hops)), True, same_text_guaranteed=True)


def _timing(hop: Hop) -> HopTiming:
    timing = hop.timing
    wire = max(0.0, timing.total - timing.waited - timing.computed)
    named = NamedHop(str(hop.place.link), hop.place.span)
    milliseconds = (seconds * 1e3 for seconds in (timing.waited, timing.computed, wire))
    return HopTiming(named, timing.rows, timing.replayed, *milliseconds)


def leaf_error(error: BaseException) -> Exception:
    """The error that is in a group."""
    found = leaf(error)
    return found if isinstance(found, Exception) else RuntimeError(repr(found))
