"""From the bytes of tokens to whole code points, held back where a stop string may begin."""

from __future__ import annotations

import codecs


class TextAssembler:
    """Turns pieces of bytes into text that may be shown.

    A code point that is split over tokens waits for its rest; bytes that are no UTF-8 become
    U+FFFD. Text that could be the beginning of a stop string is held back until it is decided.
    """

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def before(self, data: bytes) -> str:
        """Take bytes that come before the answer, in which stop strings do not count; their text.

        Bytes at the end that begin a code point are the answer's.
        """
        return self._decoder.decode(data)

    def push(self, piece: bytes, *, final: bool = False) -> str:
        """Take the bytes of one token; the text that is now certain.

        After a stop string was met ``stopped`` is True and what followed it is gone.
        """
        text = self._held + self._decoder.decode(piece, final)
        self._held = ""
        if not self._stops or self.stopped:
            return "" if self.stopped else text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        if final:
            return text
        keep = max(_overlap(text, stop) for stop in self._stops)
        if keep:
            self._held = text[-keep:]
            return text[:-keep]
        return text

    def flush(self) -> str:
        """The answer is over: what was held back, and U+FFFD for an unfinished code point."""
        return self.push(b"", final=True)


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` are a proper beginning of ``stop``."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
