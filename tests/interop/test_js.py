"""js-libp2p and a node: each dials the other, pings it, asks who it is, has something echoed."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from kwaai_core import Stream, StreamEnded, Transport
from kwaai_core.testing.nodes import load_lobe, open_test_node

HERE = Path(__file__).parent
ECHO = "/kwaai/echo/1"
SIZES = (0, 1, 4096, 1_000_000)

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node.js here"),
    pytest.mark.skipif(
        not (HERE / "node_modules").is_dir(),
        reason="the npm packages are not installed: tox -e js does it",
    ),
]


class Js:
    """A js-libp2p node in a process of its own; see ``peer.mjs``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        said = self._answer()
        self.peer: str = said["peer"]
        self.address: str = said["addresses"][0]

    def _answer(self) -> dict[str, Any]:
        if self._process.stdout is None:
            raise EOFError
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found

    async def ask(self, do: str, **about: object) -> dict[str, Any]:
        """Have it do something; its errors are failures of the test."""

        def asking() -> dict[str, Any]:
            print(json.dumps({"do": do, **about}), file=self._process.stdin, flush=True)
            return self._answer()

        with trio.fail_after(30):
            answer = await trio.to_thread.run_sync(asking, abandon_on_cancel=True)
        assert "error" not in answer, answer
        return answer


@pytest.fixture
def js() -> Iterator[Js]:
    process = subprocess.Popen(
        ["node", "peer.mjs"],
        cwd=HERE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Js(process)
        finally:
            process.kill()


@pytest.fixture
async def transport(tmp_path: Path) -> AsyncIterator[Transport]:
    """The transport of a node that is open to anyone, and serves an echo."""
    settings = {"peers": {"open_to": "anyone"}, "libp2p": {"listen": ["/ip4/127.0.0.1/tcp/0"]}}
    lobes = [load_lobe("identity"), load_lobe("libp2p")]
    async with open_test_node(tmp_path, lobes, settings) as node:
        assert node.transport is not None
        async with node.transport.serve(ECHO, echo):
            yield node.transport


async def echo(stream: Stream) -> None:
    while True:
        try:
            await stream.send(await stream.receive())
        except StreamEnded:
            await stream.end()
            return


def said(size: int) -> bytes:
    return bytes(at % 251 for at in range(size))


async def test_js_dials_a_node(js: Js, transport: Transport) -> None:
    address = transport.addresses[0]
    me = address.rpartition("/")[2]
    assert (await js.ask("dial", address=address))["peer"] == me
    assert (await js.ask("ping", address=address))["ms"] < 1000
    who = await js.ask("identify", address=address)
    assert who["peer"] == me
    assert ECHO in who["protocols"]
    for size in SIZES:
        assert (await js.ask("echo", address=address, size=size))["echoed"] == size


async def test_a_node_dials_js(js: Js, transport: Transport) -> None:
    with trio.fail_after(60):
        assert await transport.connect([js.address]) == js.peer
        assert await transport.ping(js.peer) < 1
        assert js.peer in [link.peer for link in transport.links()]
        async with transport.open(js.peer, ECHO) as stream:
            for size in SIZES:
                await stream.send(said(size))
                assert await stream.receive() == said(size)
    seen = await js.ask("peers")
    assert transport.addresses[0].rpartition("/")[2] in seen["peers"]
    assert seen["served"] == sum(SIZES) + 4 * len(SIZES)
