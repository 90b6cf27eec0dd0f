"""Each remedy is needed, and works: a process with it does what one without it fails to do."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from kwaai_core import ConfigError
from kwaai_lobe_libp2p.remedies import MENDS, check_version
from kwaai_lobe_libp2p.remedies.outbox import Outbox

CASES = Path(__file__).with_name("remedy_cases.py")
NAMES = [
    "a_cancelled_read_loses_nothing",
    "a_cancelled_write_harms_no_other_stream",
    "a_frozen_peer_is_noticed",
    "a_huge_frame_is_not_awaited",
    "a_reset_comes_after_what_was_written",
    "a_window_is_kept",
    "a_writer_waits_as_long_as_it_likes",
    "what_arrived_outlives_the_connection",
    "who_reads_no_answers_is_left",
]


async def run(case: str, library: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, str(CASES), case, library]
    with trio.fail_after(60):
        return await trio.run_process(command, capture_stderr=True, check=False)


@pytest.mark.parametrize("case", NAMES)
async def test_it_fails_on_the_stock_library_and_holds_with_its_remedy(case: str) -> None:
    ended: dict[str, subprocess.CompletedProcess[bytes]] = {}

    async def keep(library: str) -> None:
        ended[library] = await run(case, library)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(keep, "stock"))
        nursery.start_soon(partial(keep, "mended"))
    assert ended["mended"].returncode == 0, ended["mended"].stderr.decode()
    stock = ended["stock"].stderr.decode()
    assert ended["stock"].returncode == 1, stock
    assert "ImportError" not in stock
    assert "NameError" not in stock


def test_there_is_no_other_case() -> None:
    listed = subprocess.run([sys.executable, CASES], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == NAMES


def test_another_version_is_refused() -> None:
    check_version(MENDS)
    with pytest.raises(ConfigError, match=r"pip install libp2p==0\.8\.1"):
        check_version("0.8.2")


async def test_frames_that_fit_leave_together_and_in_order() -> None:
    outbox = Outbox()
    frames = [bytes([n]) * 20_000 for n in range(4)]
    for frame in frames:
        await outbox.put(frame)
    assert await outbox.take() == b"".join(frames[:3])
    assert await outbox.take() == frames[3]


async def test_a_frame_with_a_body_waits_for_room() -> None:
    outbox = Outbox()
    for _ in range(4):
        await outbox.put(bytes(65519))
    with trio.move_on_after(0.01) as scope:
        await outbox.put(b"x" * 100)
    assert scope.cancelled_caught
    await outbox.take()
    await outbox.put(b"x" * 100)
