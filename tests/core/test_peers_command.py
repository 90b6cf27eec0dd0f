"""`kwaai peers`: two nodes of a simulated network, each asked over its socket."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from kwaai_core.config import Config, ServerSettings
from kwaai_core.http.server import serve
from kwaai_core.lobes import Lobe
from kwaai_core.node import Node, open_node
from kwaai_core.roles import Host, Offer
from kwaai_core.testing import FakeIdentity, Network, fake_owner
from kwaai_core.testing.network import MemoryTransport
from kwaai_core.types import RoleName

from .conftest import Kwaai


@dataclass
class Place:
    """Where a node runs, and the command line there."""

    state: Path
    kwaai: Kwaai
    node: Node

    async def peers(self, *words: str, said: str = "") -> tuple[int, str, str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KWAAI_STATE", str(self.state))
            patch.setattr(sys, "stdin", io.StringIO(said))
            return await trio.to_thread.run_sync(self.kwaai, "peers", *words)

    async def works(self, *words: str, said: str = "") -> str:
        code, out, err = await self.peers(*words, said=said)
        assert code == 0, err
        return out

    async def fails(self, *words: str) -> str:
        code, out, err = await self.peers(*words)
        assert (code, out) == (1, "")
        return err

    @property
    def peer(self) -> str:
        assert self.node.identity is not None
        return self.node.identity.peer_id


class Home:
    """Opens nodes under a folder."""

    def __init__(self, folder: Path, kwaai: Kwaai) -> None:
        self.folder = folder
        self.kwaai = kwaai
        self.network = Network()

    @asynccontextmanager
    async def hidden(self, host: Host) -> AsyncIterator[Hidden]:
        async with self.network.open(host) as transport:
            yield Hidden(transport)

    @asynccontextmanager
    async def runs(
        self, name: str, who: FakeIdentity | None = None, **offers: Any
    ) -> AsyncIterator[Place]:
        """A node on the network, or with these offers in its stead."""
        state = self.folder / name
        if not offers:

            @asynccontextmanager
            async def open_(host: object) -> AsyncIterator[FakeIdentity]:
                yield who or FakeIdentity(name)

            offers = {"identity": open_, "transport": self.network.open}
        lobes = [
            Lobe(role, "1", object(), {RoleName(role): Offer(role, open_)})
            for role, open_ in offers.items()
        ]
        stop = trio.Event()
        config = Config(self.folder / "kwaai.toml", state)
        async with open_node(config, lobes) as node, trio.open_nursery() as nursery:
            settings = ServerSettings(port=0, grace_seconds=0.0)
            await nursery.start(lambda **status: serve(node, settings, state, stop=stop, **status))
            yield Place(state, self.kwaai, node)
            stop.set()


@pytest.fixture
def home(kwaai_home: Path, kwaai: Kwaai) -> Home:
    return Home(kwaai_home, kwaai)


async def test_invite_and_join_and_both_show_each_other(home: Home) -> None:
    owned = FakeIdentity("one", owner=fake_owner("Ada Lovelace"))
    async with home.runs("one", owned) as one, home.runs("two") as two:
        assert await one.peers("ls") == (
            0,
            "",
            "no peers: kwaai peers invite here, and kwaai peers join there\n",
        )
        code, line, err = await one.peers("invite", "--group", "club", "--for", "30m")
        assert code == 0
        assert line.count("\n") == 1
        assert "kwaai peers join -" in err
        assert (await two.works("join", "-", said=line)).startswith("joined the group club of did:")
        for here, there in ((one, two), (two, one)):
            (seen,) = json.loads(await here.works("ls", "--json"))
            assert there.node.identity is not None
            assert (seen["peer"], seen["did"]) == (there.peer, there.node.identity.did)
            assert seen["groups"] == [{"founder": owned.did, "name": "club"}]
            assert there.node.transport is not None
            assert [seen["address"]] == list(there.node.transport.addresses)
            assert seen["rtt"] >= 0
            assert seen["inbound"] == (here is one)
            assert not seen["relayed"]
        (from_two,) = json.loads(await one.works("ls", "--json"))
        assert f"  from     {from_two['address']}\n  link     inbound" in await one.works("ls")
        shown = await two.works("show", one.peer)
        assert shown == await two.works("ls")
        for fact in (
            owned.did,
            "Ada Lovelace, person",
            "club of",
            "outbound, ",
            " ms",
            seen["did"],
        ):
            assert fact in shown
        assert json.loads(await two.works("show", owned.did, "--json"))["owner"]["kind"] == "person"
        assert (await two.works("ping", one.peer)).endswith(" ms\n")
        assert json.loads(await two.works("ping", one.peer, "--json"))["rtt"] >= 0


async def test_the_name_of_an_owner_does_not_steer_a_terminal(home: Home) -> None:
    owned = FakeIdentity("one", owner=fake_owner("Ada\x1b[2J\u202e\nLovelace"))
    async with home.runs("one", owned) as one, home.runs("two") as two:
        await two.works("join", (await one.works("invite")).strip())
        assert "  owner    Ada?[2J??Lovelace, person, did:" in await two.works("ls")


async def test_what_may_be_done_with_an_invitation(home: Home) -> None:
    async with home.runs("one") as one, home.runs("two") as two, home.runs("three") as three:
        made = json.loads(await one.works("invite", "--may-invite", "--json"))
        assert made["group"]["name"] == "home"
        await two.works("join", made["line"])
        assert "was used before, or has expired" in await three.fails("join", made["line"])
        further = (await two.works("invite")).strip()
        await three.works("join", further)
        assert len(json.loads(await two.works("ls", "--json"))) == 2
        assert "no invitation" in await three.fails("join", "please")
        assert "may not invite into the group home" in await three.fails("invite")
        late = await FakeIdentity("one", now=lambda: 0.0).invite("home", ["/x"], seconds=1)
        assert "expired" in await three.fails("join", late.line)
        gone = await FakeIdentity("gone").invite("home", ["/ip4/10.0.0.9/tcp/1"], seconds=60)
        assert "/ip4/10.0.0.9/tcp/1" in await three.fails("join", gone.line)


async def test_block_and_unblock(home: Home) -> None:
    async with home.runs("one") as one, home.runs("two") as two:
        await two.works("join", (await one.works("invite")).strip())
        assert await one.works("block", two.peer) == f"blocked {two.peer}\n"
        assert "blocked" in await one.works("show", two.peer)
        assert "is blocked here" in await one.fails("ping", two.peer)
        assert "does not let" in await two.fails("ping", one.peer)
        assert json.loads(await one.works("unblock", two.peer, "--json")) == {
            "peer": two.peer,
            "blocked": False,
        }
        assert (await two.works("ping", one.peer)).endswith(" ms\n")


async def test_errors_say_what_to_do(home: Home) -> None:
    async with home.runs("one") as one:
        nobody = FakeIdentity("nobody").peer_id
        assert "kwaai peers ls" in await one.fails("show", nobody)
        assert nobody in await one.fails("ping", nobody)
        assert "'me' is no peer id" in await one.fails("block", "me")
        code, _, err = await one.peers("invite", "--for", "tomorrow")
        assert (code, "30m, 12h or 7d" in err) == (2, True)
        code, _, err = await one.peers("invite", "--for", "0s")
        assert (code, "seconds must be from 1" in err) == (1, True)
    async with home.runs("alone", router=_no_router) as alone:
        for words in (["ls"], ["invite"], ["join", "x"], ["block", nobody], ["ping", nobody]):
            assert "pip install kwaai-lobe-libp2p" in await alone.fails(*words)
    async with home.runs("hidden", identity=_nobody, transport=home.hidden) as hidden:
        assert "listens nowhere" in await hidden.fails("invite")
    async with home.runs("anonymous", transport=home.network.open) as anonymous:
        assert "install kwaai-lobe-identity" in await anonymous.fails("ls")


class Hidden:
    """A transport that nobody can dial."""

    addresses = ()

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@asynccontextmanager
async def _nobody(host: object) -> AsyncIterator[FakeIdentity]:
    yield FakeIdentity("nobody")


@asynccontextmanager
async def _no_router(host: object) -> AsyncIterator[object]:
    yield object()


async def test_an_unknown_command_is_refused(home: Home) -> None:
    async with home.runs("one") as one:
        transport = trio.SocketStream(trio.socket.socket(trio.socket.AF_UNIX))
        await transport.socket.connect(str(one.state / "node.sock"))
        async with transport:
            await transport.send_all(
                b"POST /peers/charm HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
            )
            assert (await transport.receive_some(12)).endswith(b"404")


def test_without_a_node(kwaai: Kwaai) -> None:
    for words in (["ls"], ["invite"], ["join", "x"], ["show", "x"], ["ping", "x"], ["block", "x"]):
        code, out, err = kwaai("peers", *words)
        assert (code, out) == (1, "")
        assert "no node runs here" in err
