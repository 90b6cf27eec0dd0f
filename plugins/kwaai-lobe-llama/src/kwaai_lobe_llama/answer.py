"""The receiving end of one answer: deltas that came, and the error that ended them, if any."""

from __future__ import annotations

from collections import deque

import trio

from kwaai_core import Delta, KwaaiError


class Answer(trio.abc.ReceiveChannel[Delta]):
    """Filled by the worker's reader, read by one task; closed by the context that opened it.

    Holds at most the text of one context, however slowly it is read.
    """

    def __init__(self) -> None:
        self._deltas: deque[Delta] = deque()
        self._error: KwaaiError | None = None
        self._ended = False
        self._closed = False
        self._news = trio.Event()

    def put(self, delta: Delta) -> None:
        """Another delta; one with ``finish`` is the last. Nobody reads it after :meth:`aclose`."""
        if not self._closed:
            self._deltas.append(delta)
        self._ended = self._ended or delta.finish is not None
        self._news.set()

    def fail(self, error: KwaaiError) -> None:
        """End with an error, after what came before it; nothing happens to an ended answer."""
        if not self._ended:
            self._error, self._ended = error, True
            self._news.set()

    @property
    def ended(self) -> bool:
        """Whether the last delta, or the error, has come; closing does not end the work."""
        return self._ended

    def check(self) -> None:
        """Raise the error that came before anything else, if one did."""
        if self._error is not None and not self._deltas:
            raise self._error

    def receive_nowait(self) -> Delta:
        """The next delta if it is here, else ``trio.WouldBlock``; only :meth:`receive` ends."""
        if not self._deltas:
            raise trio.WouldBlock
        return self._deltas.popleft()

    async def receive(self) -> Delta:
        """The next delta. Errors: what ended the answer; ``trio.EndOfChannel``, or
        ``trio.ClosedResourceError`` after :meth:`aclose`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._deltas:
            if self._closed:
                raise trio.ClosedResourceError
            self.check()
            if self._ended:
                raise trio.EndOfChannel
            self._news = trio.Event()
            await self._news.wait()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return self._deltas.popleft()

    async def aclose(self) -> None:
        """Drop what was not read, and what still comes."""
        self._deltas.clear()
        self._closed = True
        self._news.set()
        await trio.lowlevel.checkpoint()
