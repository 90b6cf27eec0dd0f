"""Ten real nodes and what one of them has published, also when four of them were killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

NODES = 10
LIMIT_S = 1.0
SCRIPT = Path(__file__).with_name("peer_process.py")


class Peer:
    """One process."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()

    def hello(self) -> None:
        self.peer, self.addresses = self.read()

    def read(self) -> Any:
        if self.process.stdout is None or not (line := self.process.stdout.readline()):
            raise AssertionError(f"the process ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self, *words: object) -> tuple[Any, float]:
        """The answer, and how many seconds it took."""
        if self.process.stdin is None:
            raise AssertionError("it hears nothing")
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        answer = self.read()
        assert "error" not in answer, answer
        return answer["answer"], answer["seconds"]


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[list[Peer]]:
    """Ten nodes that each were told of the first, and know one another by now."""
    with ExitStack() as stack:
        started = [stack.enter_context(Peer(tmp_path / f"{n}")) for n in range(NODES)]
        for peer in started:
            peer.hello()
        for peer in started[1:]:
            peer.ask("connect", started[0].addresses)
        deadline = time.monotonic() + 30
        while not all(len(peer.ask("nearest", "", NODES)[0]) == NODES - 1 for peer in started):
            assert time.monotonic() < deadline, "they do not get to know one another"
        yield started


def late(tmp_path: Path, knows: Peer) -> Peer:
    """A node that has just come, and asked nothing yet."""
    peer = Peer(tmp_path / "late")
    peer.hello()
    peer.ask("connect", knows.addresses)
    return peer


def test_a_record_is_read_cold_also_after_four_of_ten_were_killed(
    peers: list[Peer], tmp_path: Path
) -> None:
    publisher = peers[3]
    publisher.ask("publish", "status", "free")
    publisher.ask("provide", "model x")

    found, seconds = peers[7].ask("lookup", publisher.peer, "status")
    assert found[0] == "free"
    print(f"read cold: {1000 * seconds:.0f} ms")
    assert seconds <= LIMIT_S

    for peer in (publisher, peers[0], peers[5], peers[8]):
        peer.process.kill()
        peer.process.wait()
    found, seconds = peers[9].ask("lookup", publisher.peer, "status")
    assert found[0] == "free"
    print(f"read after 4 of 10 were killed: {1000 * seconds:.0f} ms")
    assert seconds <= LIMIT_S

    with late(tmp_path, peers[2]) as newcomer:
        found, seconds = newcomer.ask("lookup", publisher.peer, "status")
        assert found[0] == "free"
        print(f"read by a newcomer, after 4 of 10 were killed: {1000 * seconds:.0f} ms")
        assert seconds <= LIMIT_S
        found, _ = newcomer.ask("providers", "model x")
        assert found == [publisher.peer]


def test_a_republished_record_goes_on_counting_after_a_restart(
    peers: list[Peer], tmp_path: Path
) -> None:
    publisher = peers[3]
    publisher.ask("publish", "status", "before")
    (_, before), _ = peers[7].ask("lookup", publisher.peer, "status")
    publisher.process.kill()
    publisher.process.wait()
    with Peer(tmp_path / "3") as again:
        again.hello()
        assert again.peer == publisher.peer
        again.ask("connect", peers[1].addresses)
        again.ask("publish", "status", "after")
        (body, after), _ = peers[7].ask("lookup", publisher.peer, "status")
    assert body == "after" and after > before
