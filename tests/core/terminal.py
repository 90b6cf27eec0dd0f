"""A command on a terminal of its own, driven as a user drives it."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

SECONDS = 30.0
CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """What was typed goes to the command; ``shown`` is all that it has printed."""

    def __init__(self, process: subprocess.Popen[bytes], end: int) -> None:
        self.process = process
        self.shown = ""
        self._end = end
        self._seen = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def wait_for(self, text: str, seconds: float = SECONDS) -> None:
        """Until this was printed, after what was waited for before."""
        deadline = time.monotonic() + seconds
        while (at := self.shown.find(text, self._seen)) < 0:
            assert self._read(deadline), f"no {text!r} in {self.shown!r}"
        self._seen = at + len(text)

    def press_until(self, key: str, text: str) -> None:
        """Press a key until it helps: python's input() may sleep through a signal as it begins."""
        for _ in range(int(SECONDS)):
            self.type(key)
            with suppress(AssertionError):
                self.wait_for(text, seconds=1)
                return
        self.wait_for(text)

    def wait_for_end(self) -> int:
        """Read all there is until the command ends; its exit code."""
        deadline = time.monotonic() + SECONDS
        while self._read(deadline):
            pass
        assert time.monotonic() < deadline, f"it does not end: {self.shown!r}"
        return self.process.wait(5)

    def _read(self, deadline: float) -> bool:
        left = max(0.0, deadline - time.monotonic())
        if not select.select([self._end], [], [], left)[0]:
            return False
        with suppress(OSError):  # which is how Linux says that nobody has the other end
            if data := os.read(self._end, 65536):
                self.shown += self._decoder.decode(data)
                return True
        return False


@contextmanager
def kwaai_on_terminal(*words: str) -> Iterator[Terminal]:
    """``kwaai`` with these words; killed at the end of the block if it still runs."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "kwaai_core", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: (
            fcntl.ioctl(0, termios.TIOCSCTTY, 0) and None
        ),  # so that Ctrl-C reaches it
        env={**os.environ, "TERM": "dumb", "NO_COLOR": "1"},
    ) as process:
        os.close(theirs)
        try:
            yield Terminal(process, ours)
        finally:
            process.kill()
            os.close(ours)
