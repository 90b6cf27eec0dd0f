"""multistream-select 1.0: the two ends of a connection or stream agree on what is spoken there.

The lobe's own, since the library's has no limit on lines, and asks for each in a round trip of its
own: here who opens says both at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from kwaai_core import FrameError, ProtocolRefused

_HELLO = "/multistream/1.0.0"
_REFUSED = "na"
_LONGEST = 256
_QUESTIONS = 8
"""How many protocols may be asked for on one stream."""


class Exact(Protocol):
    """Bytes to and from somewhere."""

    async def read(self, n: int) -> bytes:
        """Exactly as many."""
        ...

    async def write(self, data: bytes) -> None: ...


def line(text: str) -> bytes:
    """A message: its length, of two bytes where one is not enough, itself, and a line feed."""
    data = text.encode() + b"\n"
    size = len(data)
    return (bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])) + data


async def read_line(stream: Exact) -> str:
    """The next message. Errors: :class:`FrameError` for what is none."""
    size = (await stream.read(1))[0]
    if size & 128:
        size = size & 127 | (await stream.read(1))[0] << 7
    if not 0 < size <= _LONGEST:
        raise FrameError("what came is no message of multistream-select")
    data = await stream.read(size)
    if not data.endswith(b"\n") or not data.isascii():
        raise FrameError("what came is no message of multistream-select")
    return data[:-1].decode()


async def _hear_hello(stream: Exact) -> None:
    """Errors: :class:`FrameError` at the first byte, where a key makes noise of it all."""
    expected = line(_HELLO)
    if await stream.read(1) != expected[:1] or await stream.read(len(expected) - 1) != expected[1:]:
        raise FrameError("the other end does not speak multistream-select")


async def propose(stream: Exact, protocol: str) -> None:
    """Ask for a protocol. Errors: :class:`ProtocolRefused`, :class:`FrameError`."""
    await stream.write(line(_HELLO) + line(protocol))
    await _hear_hello(stream)
    if await read_line(stream) != protocol:
        raise ProtocolRefused(f"{protocol} is not served there")


async def agree(
    stream: Exact, serves: Callable[[str], bool], protocols: Callable[[], Collection[str]] = tuple
) -> str:
    """Answer until a protocol is asked for that is served; ``protocols`` may be listed.

    Errors: :class:`FrameError`, :class:`ProtocolRefused` where too many are asked for.
    """
    await stream.write(line(_HELLO))
    await _hear_hello(stream)
    for _ in range(_QUESTIONS):
        asked = await read_line(stream)
        if asked == "ls":
            await stream.write(_listed(protocols()))
        elif serves(asked):
            await stream.write(line(asked))
            return asked
        else:
            await stream.write(line(_REFUSED))
    raise ProtocolRefused("the other end asks for nothing that is served here")


def _listed(protocols: Collection[str]) -> bytes:
    lines = b"".join(map(line, protocols)) + b"\n"
    size = len(lines)
    head = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    return head + lines
