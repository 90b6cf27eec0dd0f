"""A short answer over nodes that are far from one another; ``tox -e delays`` measures more."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
from pathlib import Path

import pytest

from kwaai_core.testing.models import write_random_model
from tests.delays.__main__ import SHAPE
from tests.delays.net import far_hosts, missing
from tests.delays.swarm import NAMES, FarSwarm

PACKET_SECONDS = 0.02

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def test_a_packet_takes_its_time_to_a_far_host_and_to_none_that_is_not_there() -> None:
    with far_hosts(["here", "there"], PACKET_SECONDS) as (here, there):
        ask = [sys.executable, "-c", _ROUND_TRIP, there.address]
        answer = [sys.executable, "-c", _ANSWER, there.address]
        inside = ["ip", "netns", "exec"]
        with subprocess.Popen([*inside, there.name, *answer], stdout=subprocess.PIPE) as far:
            assert far.stdout is not None and far.stdout.readline() == b"ready\n"
            took = subprocess.run([*inside, here.name, *ask], capture_output=True, check=True)
            far.kill()
        assert float(took.stdout) >= 2 * PACKET_SECONDS
        nobody = ipaddress.ip_address(there.address) + 1
        ask[-1] = str(nobody)
        gone = subprocess.run([*inside, here.name, *ask], capture_output=True, check=False)
        assert b"TimeoutError" in gone.stderr


async def test_the_text_is_the_same_over_far_nodes_and_a_token_takes_what_was_predicted(
    tmp_path: Path,
) -> None:
    model = write_random_model(tmp_path / "model.gguf", SHAPE)
    with far_hosts(NAMES, PACKET_SECONDS) as places:
        swarm = FarSwarm(tmp_path, places, model, 24, print)
        async with swarm.opened():
            await swarm.cross()  # opens links, and lets nodes measure one another
            calm, struck = await swarm.cross(), await swarm.cross(kill=True)
    assert (calm.answer.error, struck.answer.error) == ({}, {})
    assert (calm.equal, struck.equal) == (True, True)
    assert struck.answer.replayed > 0
    assert sum(peer != "local" for peer in calm.peers) == 2
    trips = 2 * 2 * PACKET_SECONDS
    predicted = calm.plan["latency_ms"] / 1e3
    assert trips < predicted < 2 * trips
    assert trips < calm.token_seconds < 2 * predicted
    assert calm.first_seconds > 1.5 * trips  # the sessions are opened before


_ROUND_TRIP = """
import socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
    ours.settimeout(1)
    began = time.monotonic()
    ours.sendto(b"to you", (sys.argv[1], 9))
    assert ours.recv(9) == b"to you"
    print(time.monotonic() - began)
"""
_ANSWER = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as theirs:
    theirs.bind((sys.argv[1], 9))
    print("ready", flush=True)
    while True:
        theirs.sendto(*theirs.recvfrom(9))
"""
