"""Where a node listens: its own port or none, and the same one again."""

from __future__ import annotations

import pytest
import trio

from kwaai_core import ConfigError
from kwaai_lobe_libp2p.addresses import of_socket
from kwaai_lobe_libp2p.listening import Ports, listen, reachable

from .conftest import LOOPBACK, Nodes


def port_of(address: str) -> str:
    return address.split("/")[4]


async def test_a_port_that_another_node_has_is_an_error(nodes: Nodes) -> None:
    async with nodes("one") as one:
        taken = one.transport.addresses[0].partition("/p2p/")[0]
        with pytest.raises(ConfigError, match="in use.*another node"):
            async with nodes("two", listen=(taken,)):
                pass


@pytest.mark.parametrize(
    ("address", "cause"),
    [
        ("nonsense", "no address"),
        ("/ip4/127.0.0.1/udp/0", "no address"),
        ("/dns4/localhost/tcp/0", "must be /ip4"),
        ("/ip4/192.0.2.1/tcp/0", "cannot listen on"),
        ("/ip4/127.0.0.1/tcp/70000", "no address"),
    ],
)
async def test_what_cannot_be_listened_on_is_an_error(
    nodes: Nodes, address: str, cause: str
) -> None:
    with pytest.raises(ConfigError, match=cause):
        async with nodes("one", listen=(*LOOPBACK, address)):
            pass


async def test_a_free_port_is_kept_between_runs_and_given_up_to_others(nodes: Nodes) -> None:
    async with nodes("one") as one:
        first = port_of(one.transport.addresses[0])
    async with nodes("one") as one:
        assert port_of(one.transport.addresses[0]) == first
    (other,) = await trio.open_tcp_listeners(int(first), host="127.0.0.1")
    async with other, nodes("one") as one:
        assert port_of(one.transport.addresses[0]) != first


async def test_a_damaged_file_of_ports_only_costs_the_port(nodes: Nodes) -> None:
    (nodes.host("one").state / "ports.json").write_text("[1")
    async with nodes("one") as one:
        assert one.transport.addresses


async def test_all_interfaces_are_told_one_by_one(nodes: Nodes) -> None:
    file = nodes.host("one").state / "ports.json"
    listeners = await listen(["/ip4/0.0.0.0/tcp/0"], Ports(file))
    try:
        bound = [of_socket(one.socket.getsockname()) for one in listeners]
        hosts = [address.host for address in reachable(bound)]
        assert "127.0.0.1" in hosts
        assert "0.0.0.0" not in hosts
    finally:
        listeners[0].socket.close()


async def test_a_node_may_listen_nowhere_and_dial(nodes: Nodes) -> None:
    async with nodes("one", listen=()) as one, nodes("two") as two:
        assert one.transport.addresses == []
        await one.transport.connect(two.transport.addresses)
        assert await two.transport.ping(one.peer) < 5


async def test_announced_addresses_come_first(nodes: Nodes) -> None:
    async with nodes("one", announce=("/dns4/node.example/tcp/4001",)) as one:
        assert one.transport.addresses[0] == f"/dns4/node.example/tcp/4001/p2p/{one.peer}"
