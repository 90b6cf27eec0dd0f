"""Frames on a stream of bytes, sans I/O: a length of four bytes, big-endian, then as many bytes.

The length 0xFFFFFFFF stands alone and says that no frame follows. A stream of bytes that is over
without it has been broken off.
"""

from kwaai_core.errors import FrameError, StreamEnded

_HEAD = 4
END = b"\xff" * _HEAD
"""What ends a direction of a stream."""

_NO_MORE = int.from_bytes(END, "big")


def framed(frame: bytes | bytearray | memoryview, max_frame: int) -> bytes:
    """The bytes of one frame, to be written in one piece. Errors: :class:`FrameError`."""
    data = frame.tobytes() if isinstance(frame, memoryview) else frame
    if len(data) > max_frame:
        raise FrameError(
            f"a frame of {len(data)} bytes cannot be sent: here they have at most {max_frame}"
        )
    return b"".join((len(data).to_bytes(_HEAD, "big"), data))


class FrameReader:
    """Finds the frames of at most ``max_frame`` bytes in a stream, however that is cut.

    It keeps what it was fed until that is taken: feed it when there is nothing to take.
    """

    __slots__ = ("_bytes", "_max_frame")

    def __init__(self, max_frame: int) -> None:
        if not 0 <= max_frame < _NO_MORE:
            raise ValueError(f"frames cannot be limited to {max_frame} bytes")
        self._bytes = bytearray()
        self._max_frame = max_frame

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        self._bytes += data

    def take(self) -> bytes | None:
        """The next frame, or None where it needs more bytes.

        Errors, the same at every call from then on:
          StreamEnded: the end was said; what may follow it is never looked at.
          FrameError: the next frame is over the limit.
        """
        if len(self._bytes) < _HEAD:
            return None
        size = int.from_bytes(self._bytes[:_HEAD], "big")
        if size > self._max_frame:
            if size == _NO_MORE:
                raise StreamEnded("the peer has said that it sends no more")
            raise FrameError(
                f"the peer sends a frame of {size} bytes: here they have at most {self._max_frame}"
            )
        end = _HEAD + size
        if len(self._bytes) < end:
            return None
        with memoryview(self._bytes) as view:
            frame = bytes(view[_HEAD:end])
        del self._bytes[:end]
        return frame
