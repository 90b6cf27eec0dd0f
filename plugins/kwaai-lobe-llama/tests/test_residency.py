"""Giving back memory that holds zeros: nothing that was written may change."""

import ctypes
import mmap
import subprocess
import sys


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * mmap.PAGESIZE


SCRIPT = """
import ctypes, sys
sys.path.insert(0, {tests!r})
from test_residency import resident
from kwaai_lobe_llama.worker.residency import release_zero_pages

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
size = 64 << 20
start = libc.malloc(ctypes.c_size_t(size))
ctypes.memset(start, 0, size)
for place in (0, 5 << 20, (9 << 20) + 12345, size - 1):
    ctypes.memset(start + place, 7, 1)
before, content = resident(), ctypes.string_at(start, size)
released = release_zero_pages()
print(released >> 20, (before - resident()) >> 20)
assert ctypes.string_at(start, size) == content
ctypes.memset(start, 9, size)
assert ctypes.string_at(start, size) == bytes([9]) * size
"""


def test_only_zeros_are_given_back() -> None:
    # in a process of its own, as the function is for one without other threads
    script = SCRIPT.format(tests=__file__.rpartition("/")[0])
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    released, freed = map(int, run.stdout.split())
    assert released >= 55 and freed >= 50


def test_a_page_of_zeros_is_what_memory_that_was_given_back_reads_as() -> None:
    with mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE) as pages:
        pages[:] = b"\1" * len(pages)
        address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        libc = ctypes.CDLL(None)
        assert libc.madvise(ctypes.c_void_p(address), 1 << 20, mmap.MADV_DONTNEED) == 0
        assert ctypes.string_at(address, 1 << 20) == bytes(1 << 20)
