"""Nodes on one machine, on hosts with addresses of their own, and behind routers of their own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.system.hosts import Host, Net, missing, this_machine

LOBES = ("--lobes", "identity,libp2p")


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    if why := missing():
        pytest.skip(why)
    with Net(tmp_path) as made:
        yield made


@pytest.fixture(params=["one machine", "two namespaces"])
def two(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Host, Host]:
    if request.param == "one machine":
        hosts = this_machine(tmp_path / "one"), this_machine(tmp_path / "two")
        for host in hosts:
            host.settings(listen=["/ip4/127.0.0.1/tcp/0"])
        return hosts
    found: Net = request.getfixturevalue("net")
    return found.host("one"), found.host("two")


def join(inviting: Host, joining: Host, *options: str) -> None:
    line = inviting.kwaai("peers", "invite", *options).splitlines()[0]
    joining.kwaai("peers", "join", line)


def facts(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.kwaai("identity", "show", "--json"))
    return found


def seen(host: Host, did: str, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """What a host shows of a peer, once the condition holds for it."""
    deadline = time.monotonic() + 30
    while True:
        shown = [peer for peer in host.peers() if peer["did"] == did]
        if shown and condition(shown[0]):
            return shown[0]
        assert time.monotonic() < deadline, f"{did} is not shown so: {host.peers()}"
        time.sleep(0.2)


def own(*hosts: Host) -> None:
    """Let one organisation answer for these hosts; its key is made on the first."""
    passphrase = hosts[0].home.folder / "passphrase"
    passphrase.write_text("the owner's\n")
    with_it = ("--passphrase-file", str(passphrase))
    owner = hosts[0]
    owner.kwaai("identity", "owner", "create", "--name", "Aldo", "--organisation", *with_it)
    for host in hosts:
        credential = owner.kwaai("identity", "owner", "sign", facts(host)["did"], *with_it)
        host.kwaai("identity", "owner", "attach", credential.strip())


def test_two_nodes_that_joined_show_each_other(two: tuple[Host, Host]) -> None:
    own(*two)
    one, other = two
    with one.run(*LOBES), other.run(*LOBES):
        join(one, other, "--group", "workshop")
        founder = facts(one)["did"]
        for here, there in (two, two[::-1]):
            shown = seen(here, facts(there)["did"], lambda peer: peer["rtt"] is not None)
            assert shown["peer"] == facts(there)["peer_id"]
            assert shown["admitted"]
            assert shown["groups"] == [{"founder": founder, "name": "workshop"}]
            assert (shown["owner"]["name"], shown["owner"]["kind"]) == ("Aldo", "organisation")
            assert f"/ip4/{there.address}/tcp/" in shown["address"]
            assert not shown["relayed"]
            assert 0 < shown["rtt"] < 1


@contextmanager
def behind_routers(
    net: Net, *, router: str = "masquerade", **libp2p: object
) -> Iterator[tuple[Host, Host, Host]]:
    """A node that all can reach, which relays, and two behind routers that have joined it.

    ``router`` is what the routers do, in the words of nftables; ``libp2p`` are further settings.
    """
    if why := missing(routers=True):
        pytest.skip(why)
    relay = net.host("relay")
    relay.settings(relay=True, listen=["/ip4/0.0.0.0/tcp/4001"])
    address = f"/ip4/{relay.address}/tcp/4001/p2p/{facts(relay)['peer_id']}"
    hidden = [net.host_behind_router(name, router) for name in ("one", "two")]
    for host in hidden:
        host.settings(relays=[address], bootstrap=[address], **libp2p)
    with ExitStack() as stack:
        for host in (relay, *hidden):
            stack.enter_context(host.run(*LOBES))
        for host in hidden:
            join(relay, host, "--group", "home")
        one, other = hidden
        yield relay, one, other


def ping(here: Host, there: Host) -> float:
    """The round trip in seconds, once there is a way.

    A relay that refused a place before its asker had joined is asked again half a minute later.
    """
    words = ("peers", "ping", facts(there)["peer_id"], "--json")
    deadline = time.monotonic() + 100
    while (done := here.call(*words)).returncode:
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.5)
    seconds: float = json.loads(done.stdout)["rtt"]
    return seconds


def test_nodes_behind_routers_join_one_that_can_be_reached(net: Net) -> None:
    with behind_routers(net) as (relay, *hidden):
        for host in hidden:
            shown = seen(relay, facts(host)["did"], lambda peer: peer["rtt"] is not None)
            assert shown["admitted"]
            assert shown["inbound"]
            assert host.address not in shown["address"]  # it is the router's that is seen
            assert seen(host, facts(relay)["did"], lambda peer: peer["rtt"] is not None)["admitted"]


def test_two_nodes_behind_routers_meet_over_a_relay(net: Net) -> None:
    with behind_routers(net, hole_punching=False) as (_, one, other):
        for here, there in ((one, other), (other, one)):
            assert 0 < ping(here, there) < 5
            assert seen(here, facts(there)["did"], lambda peer: peer["relayed"])["admitted"]


def test_two_nodes_behind_routers_punch_holes_through_them(net: Net) -> None:
    with behind_routers(net) as (_, one, other):
        assert 0 < ping(one, other) < 5
        for here, there in ((one, other), (other, one)):
            direct = seen(
                here, facts(there)["did"], lambda peer: peer["address"] and not peer["relayed"]
            )
            assert "p2p-circuit" not in direct["address"]
            assert direct["admitted"]
            assert there.address not in direct["address"]  # it is the router's that is seen
            # at the first try
            assert "no hole was punched" not in (here.home.folder / "run.log").read_text()
        assert 0 < ping(other, one) < 5


def test_a_router_that_draws_ports_keeps_a_link_relayed_and_it_is_said_why(net: Net) -> None:
    with behind_routers(net, router="masquerade fully-random") as (_, one, other):
        assert 0 < ping(one, other) < 5
        for here, there in ((one, other), (other, one)):
            did = facts(there)["did"]
            shown = seen(here, did, lambda peer: peer.get("why_relayed"))
            assert shown["relayed"]
            assert "no hole was punched" in here.kwaai("peers", "show", did)
        assert 0 < ping(other, one) < 5
