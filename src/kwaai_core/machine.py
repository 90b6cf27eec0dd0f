"""What the machine refuses: a full disk, a right that is missing. It is nobody's bug."""

from __future__ import annotations

import errno
import os

from kwaai_core.config import default_state
from kwaai_core.errors import leaf

_ROOM = "make room on the disk that is written to"
_RIGHT = "let the user that kwaai runs as do it"
_DISK = "the disk or its file system fails: the system's log has more"
_FEWER = "end other programs, or raise the limit (ulimit -a shows it)"

_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: _FEWER,
    errno.EACCES: _RIGHT,
    errno.EPERM: _RIGHT,
    errno.EROFS: "choose a place that can be written to",
    errno.EIO: _DISK,
    errno.ESTALE: _DISK,
    errno.EMFILE: _FEWER,
    errno.ENFILE: _FEWER,
    errno.ENOMEM: _FEWER,
}


def refusal(error: BaseException) -> str:
    """What the machine has refused and what helps, in one line; empty for any other error."""
    first = leaf(error)
    if not isinstance(first, OSError) or first.errno not in _REMEDIES:
        return ""
    names = [
        os.fsdecode(n) for n in (first.filename, first.filename2) if isinstance(n, str | bytes)
    ]
    said = f"{' or '.join(names)}{': ' * bool(names)}{first.strerror}: {_REMEDIES[first.errno]}"
    return said if names else f"{said} (the state folder is {default_state()})"
