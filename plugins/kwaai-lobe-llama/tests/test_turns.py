"""Workers that want all cores compute in turn, and nobody waits for one who does not go on."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kwaai_lobe_llama.worker import turns
from kwaai_lobe_llama.worker.turns import Turns, lock_of

HOLDER = """
import sys
from kwaai_lobe_llama.worker.turns import Turns, lock_of
with Turns(lock_of({0, 1}, 2)):
    print("held", flush=True)
    sys.stdin.readline()
print("left", flush=True)
sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@contextmanager
def holder() -> Iterator[subprocess.Popen[str]]:
    """Another process that computes, until it is written a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def is_free() -> bool:
    """Whether anybody could take the lock now."""
    lock = lock_of({0, 1}, 2)
    assert lock is not None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def until_free() -> None:
    deadline = time.monotonic() + 30
    while not is_free():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def when_asked(turns: Turns, act: Callable[[], None]) -> None:
    """Do something as soon as a turn is waited for."""

    def wait() -> None:
        while not turns._asking:
            time.sleep(0.01)
        act()

    threading.Thread(target=wait, daemon=True).start()


def test_two_compute_one_after_the_other() -> None:
    mine = Turns(lock_of({0, 1}, 2))
    with mine:
        assert not mine.waited and not is_free()
    assert is_free()
    with holder() as other:
        when_asked(mine, lambda: go_on(other))
        with mine:
            assert mine.waited
            assert other.stdout is not None and other.stdout.readline() == "left\n"
            assert not is_free()
        assert is_free()


def test_one_who_ends_with_the_turn_in_hand_gives_it_up() -> None:
    mine = Turns(lock_of({0, 1}, 2))
    with holder() as other:
        when_asked(mine, other.kill)
        with mine:
            assert mine.waited and not is_free()


def test_one_who_is_stopped_is_passed_over_and_not_waited_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 60.0)
    monkeypatch.setattr(turns, "LOOK_SECONDS", 1.0)
    mine = Turns(lock_of({0, 1}, 2))
    with holder() as other:
        other.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        with mine:
            assert mine.waited
        first = time.monotonic() - began
        assert first < turns.PATIENCE_SECONDS / 2
        began = time.monotonic()
        for _ in range(5):
            with mine:
                pass
        assert time.monotonic() - began < first
        other.send_signal(signal.SIGCONT)
        go_on(other)
        assert other.stdout is not None and other.stdout.readline() == "left\n"
        for _ in range(3):  # what was asked for in vain comes now, and is not kept
            with mine:
                pass
        until_free()


def test_what_comes_when_nobody_computes_any_more_is_let_go_of() -> None:
    mine = Turns(lock_of({0, 1}, 2))
    with holder() as other:
        other.send_signal(signal.SIGSTOP)
        with mine:
            pass
        other.kill()
        other.wait()
        until_free()


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.1)
    with holder(), Turns(lock_of({0, 1}, 2)) as mine:
        assert mine.waited


def test_who_leaves_half_of_the_cores_to_others_needs_no_turn() -> None:
    assert lock_of({0, 1}, 1) is None
    assert lock_of({0, 1, 2, 3}, 2) is None
    with Turns(lock_of({0, 1}, 1)) as mine:
        assert not mine.waited


def test_other_cores_are_another_lock() -> None:
    with Turns(lock_of({0}, 1)), Turns(lock_of({1}, 1)) as mine:
        assert not mine.waited


def test_a_link_that_somebody_has_put_there_is_not_followed(tmp_path: Path) -> None:
    aim = tmp_path / "precious"
    aim.write_text("kept")
    (tmp_path / "kwaai").mkdir()
    (tmp_path / "kwaai" / "cores-0-1").symlink_to(aim)
    assert lock_of({0, 1}, 2) is None
    assert aim.read_text() == "kept"
