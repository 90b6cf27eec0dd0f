"""Two nodes of one machine over libp2p: invited, joined, seen, blocked, started again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from real_kwaai import Home, Running

SETTINGS = '[libp2p]\nlisten = ["/ip4/127.0.0.1/tcp/0"]\n'
LOBES = ("--lobes", "identity,libp2p")


@pytest.fixture
def homes(tmp_path: Path) -> tuple[Home, Home]:
    made = Home(tmp_path / "one"), Home(tmp_path / "two")
    for home in made:
        home.folder.mkdir()
        (home.folder / "kwaai.toml").write_text(SETTINGS)
    return made


@contextmanager
def both(one: Home, two: Home) -> Iterator[tuple[Running, Running]]:
    with one.run(*LOBES, ready=False) as first, two.run(*LOBES, ready=False) as second:
        yield first, second


def kwaai(home: Home, *words: str, said: str = "") -> str:
    done = home.kwaai(*words, stdin=said)
    assert done.returncode == 0, done.stderr
    return done.stdout


def peers(home: Home) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(kwaai(home, "peers", "ls", "--json"))
    return found


def identity(home: Home) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kwaai(home, "identity", "show", "--json"))
    return found


def test_two_nodes_join_and_show_each_other(homes: tuple[Home, Home]) -> None:
    one, two = homes
    with both(one, two):
        made = one.kwaai("peers", "invite", "--group", "club")
        assert (made.returncode, made.stdout.count("\n")) == (0, 1)
        assert "joined the group club" in kwaai(two, "peers", "join", "-", said=made.stdout)
        for here, there in ((one, two), (two, one)):
            (seen,) = peers(here)
            who = identity(there)
            assert (seen["peer"], seen["did"]) == (who["peer_id"], who["did"])
            assert [group["name"] for group in seen["groups"]] == ["club"]
            assert seen["address"].startswith("/ip4/127.0.0.1/tcp/")
            assert 0 < seen["rtt"] < 1
            assert seen["inbound"] == (here is one)
            assert kwaai(here, "peers", "ping", who["peer_id"]).endswith(" ms\n")
        again = two.kwaai("peers", "join", "-", stdin=made.stdout)
        assert (again.returncode, again.stdout) == (1, "")
        assert "was used before, or has expired" in again.stderr


def test_members_find_each_other_again(homes: tuple[Home, Home]) -> None:
    one, two = homes
    with both(one, two):
        kwaai(two, "peers", "join", "-", said=kwaai(one, "peers", "invite"))
    with both(one, two) as (first, _):
        first.wait_for(lambda: any(peer["admitted"] and peer["address"] for peer in peers(one)))


def test_a_block_outlives_the_node(homes: tuple[Home, Home]) -> None:
    one, two = homes
    with both(one, two):
        kwaai(two, "peers", "join", "-", said=kwaai(one, "peers", "invite"))
        peer = identity(two)["peer_id"]
        assert kwaai(one, "peers", "block", peer) == f"blocked {peer}\n"
    with both(one, two):
        denied = one.kwaai("peers", "ping", peer)
        assert (denied.returncode, "is blocked here" in denied.stderr) == (1, True)
        (seen,) = peers(one)
        assert (seen["blocked"], seen["admitted"]) == (True, False)
        kwaai(one, "peers", "unblock", peer)
        kwaai(two, "peers", "join", "-", said=kwaai(one, "peers", "invite"))
        (seen,) = peers(one)
        assert (seen["blocked"], seen["admitted"]) == (False, True)


def test_an_inviter_that_is_gone_is_said_with_the_cause(homes: tuple[Home, Home]) -> None:
    one, two = homes
    with one.run(*LOBES, ready=False):
        line = kwaai(one, "peers", "invite")
    with two.run(*LOBES, ready=False):
        failed = two.kwaai("peers", "join", "-", stdin=line)
    assert failed.returncode == 1
    assert "/ip4/127.0.0.1/tcp/" in failed.stderr
    assert "refused" in failed.stderr
