"""Give back memory that holds only zeros.

llama.cpp clears its KV cache by writing to all of it, so a cache for eight long conversations
takes its whole size before the first token. A page of a private anonymous mapping that holds
zeros can be given back (``MADV_DONTNEED``): it reads as zeros again, and takes memory when it is
written. What is read here is checked page by page, so nothing can be lost.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator

_SMALLEST = 16 << 20  # above a thread's stack, which its thread may be writing
_STEP = 1 << 20


def release_zero_pages() -> int:
    """Give back zero pages of large private anonymous mappings; returns how many bytes.

    Call it where no other thread writes memory. Linux only; elsewhere it does nothing.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    zeros = ctypes.create_string_buffer(_STEP)
    released = 0
    for start, end in _anonymous():
        for at in range(start, end - _STEP + 1, _STEP):
            address, size = ctypes.c_void_p(at), ctypes.c_size_t(_STEP)
            if libc.memcmp(address, zeros, size) == 0:
                released += _STEP * (libc.madvise(address, size, mmap.MADV_DONTNEED) == 0)
    return released


def _anonymous() -> Iterator[tuple[int, int]]:
    try:
        with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:
            lines = maps.read().splitlines()
    except OSError:
        return
    for line in lines:
        addresses, access, _, _, inode, *path = line.split()
        start, end = (int(x, 16) for x in addresses.split("-"))
        if access == "rw-p" and inode == "0" and not path and end - start >= _SMALLEST:
            yield start, end
