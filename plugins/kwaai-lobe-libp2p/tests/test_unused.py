"""Why parts of the library are left unused: what the lobe does here, and they do not."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import trio

from kwaai_core import PeerLost, Stream
from kwaai_lobe_libp2p.negotiation import line, read_line

from .conftest import ECHO, Node, Nodes

CASES = Path(__file__).with_name("unused_cases.py")


@pytest.mark.parametrize(
    ("case", "fault"),
    [
        ("a_port_that_is_taken_is_an_error", "two hosts listen on one port"),
        ("an_address_of_another_machine_is_an_error", "nothing says that nobody listens"),
        ("an_error_in_a_handler_ends_its_own_stream", "ValueError: on purpose"),
        ("connections_do_not_use_up_a_node", "TooSlowError|Swarm|StreamFailure"),
        ("every_address_is_tried", "SwarmDialAllFailedError"),
        ("plaintext_is_refused", "a plaintext connection was taken"),
    ],
)
async def test_the_library_s_own_has_the_fault(case: str, fault: str) -> None:
    with trio.fail_after(60):
        command = [sys.executable, str(CASES), case]
        ended = await trio.run_process(command, capture_stderr=True, check=False)
    assert ended.stderr is not None
    assert ended.returncode == 1
    assert re.search(fault, ended.stderr.decode())


async def answers(one: Node, two: Node) -> None:
    async with one.transport.open(two.peer, ECHO) as stream:
        await stream.send(b"hello")
        assert await stream.receive() == b"hello"


async def test_an_error_in_a_handler_ends_its_own_stream(nodes: Nodes) -> None:
    async def fail(stream: Stream) -> None:
        raise ValueError("on purpose")

    async with nodes.pair() as (one, two), two.transport.serve("/fail/1", fail):
        async with one.transport.open(two.peer, "/fail/1") as stream:
            with pytest.raises(PeerLost):
                await stream.receive()
        await answers(one, two)


async def test_connections_do_not_use_up_a_node(nodes: Nodes) -> None:
    async with nodes("hub", max_connections=10) as hub:
        for number in range(14):
            async with nodes(f"n{number}") as other:
                await other.transport.connect(hub.transport.addresses)
                await other.transport.ping(hub.peer)


@pytest.mark.parametrize("protocol", ["/plaintext/2.0.0", "/secio/1.0.0", "/tls/1.0.0"])
async def test_nothing_but_noise_is_spoken(nodes: Nodes, protocol: str) -> None:
    async with nodes("one") as one:
        port = int(one.transport.addresses[0].split("/")[4])
        async with await trio.open_tcp_stream("127.0.0.1", port) as tcp:
            await tcp.send_all(line("/multistream/1.0.0") + line(protocol))
            assert await read_line(Buffered(tcp)) == "/multistream/1.0.0"
            assert await read_line(Buffered(tcp)) == "na"


class Buffered:
    """Exact reads of a TCP stream."""

    def __init__(self, tcp: trio.SocketStream) -> None:
        self._tcp = tcp

    async def read(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            data += await self._tcp.receive_some(n - len(data))
        return data

    async def write(self, data: bytes) -> None:
        await self._tcp.send_all(data)
