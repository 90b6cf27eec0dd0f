"""How two nodes agree on a link, and what carries it: ``/kwaai/span/1``.

::

    gateway → host   {"model": digest, "exact": true}
    host → gateway   {"refused": words, "retry_after": seconds}      and the end, or
                     {"accepted": true}, then its slow facts, then its fast facts

Then both ask the transport for a data channel beside the stream. Its socket goes to the worker of
each side, and the stream, on which nothing more is said, is the link's life line: who loses it
closes the socket, and who loses the socket closes it. Where there is no direct way, the stream
carries the bytes of the frames itself.
"""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import trio

from kwaai_core import DataChannel, KwaaiError, NotVerified, PeerLost, Stream, Transport
from kwaai_lobe_router.facts import FastFacts, SlowFacts, read_fast, read_slow
from kwaai_lobe_router.tasks import tasks

STATUS = "/kwaai/spans-status/1"
MAX_FRAME = 1 << 18
"""Of both protocols: an announcement has at most 16 KiB, a piece of frames less than this."""

STEP_SECONDS = 5.0
"""How long each step of an agreement may take."""

_PIECE = 1 << 16
_LONGEST = 4096
_MOST_RESERVED = 1 << 16


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a gateway asks for; ``reserve`` is for how many more sessions room shall be kept, and
    counts where a status is asked for."""

    model: str
    exact: bool
    reserve: int = 0

    def encode(self) -> bytes:
        """As a frame."""
        wanted = {"model": self.model, "exact": self.exact, "reserve": self.reserve}
        return json.dumps(wanted).encode()


@dataclass(frozen=True, slots=True)
class Told:
    """What a host says of itself."""

    slow: SlowFacts
    fast: FastFacts


class Refused(KwaaiError):
    """A host takes no link now; the message is its own, ``retry_after`` in seconds."""


def read_wanted(frame: bytes) -> Wanted:
    """Errors: :class:`NotVerified`."""
    fields = _object(frame)
    model, exact = fields.get("model"), fields.get("exact")
    if not isinstance(model, str) or len(model) > 128 or not isinstance(exact, bool):
        raise NotVerified("a wish for a link must have a model and exact")
    reserve = fields.get("reserve", 0)
    if type(reserve) is not int or not 0 <= reserve <= _MOST_RESERVED:
        raise NotVerified(f"“reserve” of a wish must be a whole number from 0 to {_MOST_RESERVED}")
    return Wanted(model, exact, reserve)


def refusal(words: str, retry_after: float = 0.0) -> bytes:
    """The frame that refuses a link."""
    return json.dumps({"refused": words, "retry_after": retry_after}).encode()


ACCEPTED = json.dumps({"accepted": True}).encode()


async def agreed(stream: Stream, wanted: Wanted) -> Told:
    """The gateway's side. Errors: :class:`Refused`, :class:`NotVerified`, those of a stream."""
    await stream.send(wanted.encode(), seconds=STEP_SECONDS)
    fields = _object(await stream.receive(seconds=STEP_SECONDS))
    if fields.get("accepted") is not True:
        words, retry = fields.get("refused"), fields.get("retry_after")
        after = float(retry) if isinstance(retry, int | float) and 0 <= retry <= 600 else 0.0
        said = words[:200] if isinstance(words, str) and words.isprintable() else "no reason"
        raise Refused(f"{stream.peer} takes no link: {said}", retry_after=after)
    return await told(stream, wanted.model)


async def told(stream: Stream, model: str) -> Told:
    """What a host tells of a model. Errors: :class:`NotVerified`, those of a stream."""
    slow = read_slow(await stream.receive(seconds=STEP_SECONDS))
    if slow.digest != model:
        raise NotVerified(f"{stream.peer} was asked for one model and tells of another")
    return Told(slow, read_fast(await stream.receive(seconds=STEP_SECONDS), slow))


def _object(frame: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(frame) if len(frame) <= _LONGEST else None
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise NotVerified("what came is not a JSON object")
    return fields


@asynccontextmanager
async def carried(transport: Transport, stream: Stream) -> AsyncIterator[DataChannel]:
    """The socket for the worker of this side, which closes it, while the life line holds.

    When that is lost the block is cancelled. Errors: :class:`PeerLost`, those of ``data_channel``.
    """
    channel = await transport.data_channel(stream, seconds=2 * STEP_SECONDS)
    watch: Callable[[Stream], Awaitable[None]] = _silent
    if channel is None:
        near, far = socket.socketpair()
        channel, watch = DataChannel(near, b"", b"", b"", server=False), partial(_pumped, far=far)
    lost = False
    async with tasks() as nursery:

        async def until_lost() -> None:
            nonlocal lost
            await watch(stream)
            lost = True
            nursery.cancel_scope.cancel()

        nursery.start_soon(until_lost)
        yield channel
    if lost:
        raise PeerLost(f"the stream to {stream.peer} is gone")


_ENDS = (KwaaiError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)


async def _silent(stream: Stream) -> None:
    with suppress(*_ENDS):
        await stream.receive(seconds=inf)  # nothing comes before its end


async def _pumped(stream: Stream, far: socket.socket) -> None:
    """Carry bytes between a socket and a stream, each no faster than the other takes them."""
    near = trio.SocketStream(trio.socket.from_stdlib_socket(far))
    async with near, trio.open_nursery() as nursery:
        nursery.start_soon(_out, stream, near, nursery.cancel_scope)
        with suppress(*_ENDS):
            while True:
                await near.send_all(await stream.receive(seconds=inf))
        nursery.cancel_scope.cancel()


async def _out(stream: Stream, near: trio.SocketStream, scope: trio.CancelScope) -> None:
    with suppress(*_ENDS):
        while data := await near.receive_some(_PIECE):
            await stream.send(bytes(data), seconds=inf)
    scope.cancel()
