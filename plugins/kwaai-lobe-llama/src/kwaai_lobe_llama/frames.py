"""The binary frames between a node and its llama.cpp worker, over a socket pair.

A frame is a header ``<IBxxxI`` (payload bytes, kind, request) and a payload. Integers are
little-endian, texts UTF-8. Both ends are of one installation, so nothing is negotiated; but what a
broken worker sends is checked all the same, and ends that worker and never the node.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum

HEADER = struct.Struct("<IBxxxI")
MAX_PAYLOAD = 1 << 26


class Kind(IntEnum):
    """What a frame is. The node sends those below 10 and TOKENISE, the worker the others."""

    GENERATE = 1
    CANCEL = 2
    LINK = 3  # JSON: a peer, and how to speak over the socket that was handed over before
    UNLINK = 4
    ROUTE = 5  # JSON: the places over which a session goes from now on
    DRAIN = 6  # take no more sessions, and ask for those there are to be moved
    HOLD = 7  # JSON: slices to load as units
    HEAD = 8  # JSON: the head to load
    RESERVE = 9  # JSON: for how many more sessions of which peers room is to be kept
    READY = 10  # JSON: what was loaded, and how
    LOADING = 11  # a line about progress
    FATAL = 12  # why the worker cannot serve
    ACCEPTED = 13  # a request is queued
    TEXT = 14
    FINISH = 15
    FAILED = 16  # a request is refused or has failed; the worker lives
    LINKED = 17  # the handshake of a link is done
    LOST = 18  # a link is of no use any more; the payload says why
    ASK = 19  # JSON: a session needs a route, or another one
    LOAD = 20  # JSON: how busy the units are
    TIMINGS = 21  # JSON: what each hop of an answer took; before its FINISH
    LOADED = 22  # JSON: what HOLD or HEAD has loaded
    UNFIT = 23  # what HOLD or HEAD asked for cannot be loaded, or not exactly; says why
    LOGPROBS = 24  # JSON: the probabilities of the tokens that the next TEXT covers
    CALLS = 25  # JSON: pieces of calls of tools, which come with the next TEXT
    TOKENISE = 30  # of the node: a question about texts and tokens
    TOKENISED = 31  # JSON: the answer to it


class FrameError(Exception):
    """Bytes that are no frame of this protocol."""


def frame(kind: Kind, request: int, payload: bytes = b"") -> bytes:
    """The bytes of one frame."""
    return HEADER.pack(len(payload), kind, request) + payload


class FrameReader:
    """Cuts a stream of bytes into frames; sans-I/O."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Kind, int, bytes]]:
        """The frames that ``data`` completes, as (kind, request, payload).

        Raises :class:`FrameError` where the bytes are no frame; the stream is then unusable.
        """
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= HEADER.size:
                length, kind, request = HEADER.unpack_from(self._buffer, start)
                if length > MAX_PAYLOAD:
                    raise FrameError(f"a frame of {length} bytes is over the limit {MAX_PAYLOAD}")
                end = start + HEADER.size + length
                if end > len(self._buffer):
                    return
                yield _kind(kind), request, bytes(self._buffer[start + HEADER.size : end])
                start = end
        finally:
            del self._buffer[:start]


def _kind(value: int) -> Kind:
    try:
        return Kind(value)
    except ValueError:
        raise FrameError(f"there is no frame of kind {value}") from None


COUNT = struct.Struct("<I")


def text_field(text: str) -> bytes:
    """A text with its length in front of it, as :meth:`Fields.text` reads it."""
    data = text.encode("utf-8", "surrogatepass")
    return COUNT.pack(len(data)) + data


class Fields:
    """Reads a payload front to back."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._at = 0

    def unpack(self, layout: struct.Struct) -> tuple[int | float, ...]:
        try:
            values = layout.unpack_from(self._payload, self._at)
        except struct.error as error:
            raise FrameError(f"a payload ends early: {error}") from None
        self._at += layout.size
        return values

    def count(self) -> int:
        return int(self.unpack(COUNT)[0])

    def text(self) -> str:
        end = self._at + self.count() + COUNT.size
        if end > len(self._payload):
            raise FrameError("a text goes beyond its payload")
        data = self._payload[self._at : end]
        self._at = end
        return data.decode("utf-8", "replace")

    def rest(self) -> bytes:
        return self._payload[self._at :]


def utf8(data: bytes) -> str:
    """A text that is the rest of a payload; raises :class:`FrameError`."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FrameError(f"a text is not UTF-8: {error}") from None
