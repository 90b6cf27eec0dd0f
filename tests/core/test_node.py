"""A node: what is opened in which order, what a lobe sees of it, and one node on a folder."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from starlette.routing import Route

from kwaai_core import (
    ConfigError,
    Host,
    LobeFailed,
    ModelNotFound,
    NoSettings,
    Offer,
    RoleConflict,
    RoleName,
)
from kwaai_core.config import Config
from kwaai_core.errors import NodeRunning
from kwaai_core.hookspecs import hookimpl
from kwaai_core.lobes import Lobe
from kwaai_core.node import open_node
from kwaai_core.testing import FakeIdentity, Network, ScriptedExecutor
from kwaai_core.types import MANY, Intent

SINGLE = {*RoleName} - MANY - {RoleName.TRANSPORT}
"""The single roles that need no other; a transport needs an identity."""


@dataclass
class Diary:
    """What happened, in order, and the host of each lobe."""

    events: list[str] = field(default_factory=list)
    hosts: dict[str, Host] = field(default_factory=dict)

    def offer(
        self, name: str, filling: Any = None, error: Exception | None = None, kind: Any = NoSettings
    ) -> Offer[Any]:
        @asynccontextmanager
        async def open_(host: Host) -> AsyncIterator[Any]:
            self.hosts[name] = host
            if error is not None:
                raise error
            self.events.append(f"open {name}")
            yield filling
            self.events.append(f"close {name}")

        return Offer(name, open_, kind)

    def lobe(self, name: str, *roles: str, **more: Any) -> Lobe:
        offers = {RoleName(role): self.offer(name, **more) for role in roles}
        return Lobe(name, "1.0", object(), offers)


def config(folder: Path, document: Mapping[str, Any] | None = None) -> Config:
    return Config(folder / "kwaai.toml", folder / "state", document or {})


async def test_offers_open_in_the_order_of_the_roles_and_close_in_reverse(tmp_path: Path) -> None:
    diary, identity = Diary(), FakeIdentity()
    async with Network().node(identity) as transport:
        real = {RoleName.IDENTITY: identity, RoleName.TRANSPORT: transport}
        lobes = [diary.lobe(role, role, filling=real.get(role)) for role in reversed(RoleName)]
        async with open_node(config(tmp_path), lobes):
            assert diary.events == [f"open {role}" for role in RoleName]
            diary.events.clear()
        assert diary.events == [f"close {role}" for role in reversed(RoleName)]


async def test_a_single_role_is_one_object_and_the_others_are_lists(tmp_path: Path) -> None:
    diary = Diary()
    lobes = [
        diary.lobe("id", "identity", filling="me"),
        diary.lobe("a", "store", filling="x"),
        diary.lobe("b", "store", filling="y"),
    ]
    async with open_node(config(tmp_path), lobes) as node:
        assert node.identity is not None
        assert node.identity.upper() == "ME"  # type: ignore[attr-defined]
        assert [store.upper() for store in node.stores] == ["X", "Y"]  # type: ignore[attr-defined]
        assert node.transport is None
        assert node.catalogs == []


@pytest.mark.parametrize("reached", list(RoleName))
async def test_a_lobe_reaches_only_roles_before_its_own(tmp_path: Path, reached: RoleName) -> None:
    diary = Diary()
    attribute = {"catalog": "catalogs", "store": "stores", "executor": "executors"}
    async with open_node(config(tmp_path), [diary.lobe("mine", "catalog")]):
        host = diary.hosts["mine"]
        name = attribute.get(reached.value, reached.value)
        order = list(RoleName)
        if order.index(reached) < order.index(RoleName.CATALOG):
            assert getattr(host, name) is None
        else:
            with pytest.raises(ConfigError, match=f"“mine” reaches for the role {reached.value}"):
                getattr(host, name)


async def test_a_host_has_nothing_else(tmp_path: Path) -> None:
    diary = Diary()
    async with open_node(config(tmp_path), [diary.lobe("mine", "catalog")]):
        assert not hasattr(diary.hosts["mine"], "filled")


@dataclass(frozen=True, slots=True)
class Threads:
    threads: int = 1


async def test_a_lobe_has_a_folder_and_settings_of_its_own(tmp_path: Path) -> None:
    diary = Diary()
    document = {"mine": {"threads": 7}}
    async with open_node(config(tmp_path, document), [diary.lobe("mine", "store", kind=Threads)]):
        host = diary.hosts["mine"]
        assert host.settings(Threads) == Threads(7)
        assert host.state == tmp_path / "state" / "lobes" / "mine"
        assert permissions(host.state) == 0o700
    assert permissions(tmp_path / "state") == 0o700


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_a_lobe_that_fails_is_a_status(tmp_path: Path) -> None:
    diary = Diary()
    lobes = [
        diary.lobe("broken", "identity", error=OSError("no disk")),
        diary.lobe("fine", "store"),
        Lobe("unloadable", "2.0", claims=frozenset({RoleName.TRUST}), error="ImportError: x"),
        Lobe("commands", "3.0", object()),
    ]
    async with open_node(config(tmp_path), lobes) as node:
        found = {(s.lobe, s.version, s.role, s.state, s.cause) for s in node.statuses()}
        assert found == {
            ("broken", "1.0", "identity", "failed", "OSError: no disk"),
            ("fine", "1.0", "store", "ready", ""),
            ("unloadable", "2.0", "trust", "failed", "ImportError: x"),
            ("commands", "3.0", "-", "ready", ""),
            ("core", "", "router", "ready", ""),
        }
        with pytest.raises(LobeFailed, match="no disk"):
            getattr(node.identity, "did")  # noqa: B009 - it is the looking that raises
        with pytest.raises(LobeFailed, match="“unloadable” failed: ImportError: x"):
            _ = node.trust


async def test_a_lobe_that_needs_a_failed_one_waits_for_it(tmp_path: Path) -> None:
    diary = Diary()

    @asynccontextmanager
    async def needy(host: Host) -> AsyncIterator[str]:
        assert host.identity is not None
        _ = host.identity.did
        yield "never"

    lobes = [
        diary.lobe("broken", "identity", error=OSError("no disk")),
        Lobe("needy", "1.0", object(), {RoleName.STORE: Offer("needy", needy)}),
    ]
    async with open_node(config(tmp_path), lobes) as node:
        (status,) = [s for s in node.statuses() if s.lobe == "needy"]
        assert status.state == "waiting"
        assert status.cause == "broken failed: OSError: no disk"


@pytest.mark.parametrize("role", sorted(SINGLE))
async def test_two_lobes_for_a_single_role_are_a_conflict(tmp_path: Path, role: RoleName) -> None:
    diary = Diary()
    lobes = [diary.lobe("b", role.value), diary.lobe("a", role.value)]
    with pytest.raises(RoleConflict) as caught:
        async with open_node(config(tmp_path), lobes):
            pass
    assert "“a” and “b”" in str(caught.value)
    assert f'{role.value} = "a"' in str(caught.value)
    assert diary.events == []
    async with open_node(config(tmp_path, {"roles": {role.value: "b"}}), lobes) as node:
        states = {(s.lobe, s.state) for s in node.statuses() if s.lobe != "core"}
        assert states == {("a", "idle"), ("b", "ready")}
    assert diary.events == ["open b", "close b"]


async def test_core_s_own_router_finds_the_model_of_an_executor(tmp_path: Path) -> None:
    diary, executor = Diary(), ScriptedExecutor()
    lobes = [diary.lobe("fake", "executor", filling=executor)]
    async with open_node(config(tmp_path), lobes) as node:
        assert node.ready()
        assert node.router is not None
        (card,) = executor.cards
        route = await node.router.route(Intent(card.id))
        assert (route.model, route.executor) == (card, node.executors[0])
        assert (await node.router.route(Intent(card.digest))).model == card
        with pytest.raises(ModelNotFound) as caught:
            await node.router.route(Intent("other"))
        assert caught.value.available == (card.id,)
        executor.is_ready = False
        assert not node.ready()


async def test_nothing_stands_in_for_a_router_that_failed(tmp_path: Path) -> None:
    claimed = Lobe("mine", "1.0", claims=frozenset({RoleName.ROUTER}), error="ImportError: x")
    async with open_node(config(tmp_path), [claimed]) as node:
        assert not node.ready()
        with pytest.raises(LobeFailed, match="“mine” failed"):
            _ = node.router


async def test_the_folder_has_one_node(tmp_path: Path) -> None:
    async with open_node(config(tmp_path), []):
        with pytest.raises(NodeRunning, match=rf"\(process {os.getpid()}\)") as caught:
            async with open_node(config(tmp_path), []):
                pass
        assert str(tmp_path / "state") in str(caught.value)
        assert "KWAAI_STATE" in str(caught.value)
    async with open_node(config(tmp_path), []):
        pass


async def test_a_lock_left_by_a_dead_process_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "lock").write_text("999999999999")
    async with open_node(config(tmp_path), []):
        assert (tmp_path / "state" / "lock").read_text() == str(os.getpid())


async def test_a_state_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(ConfigError, match="the state folder .* cannot be used"):
        async with open_node(config(tmp_path), []):
            pass


async def test_a_child_process_does_not_hold_the_lock(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        async with open_node(config(tmp_path), []):
            await nursery.start(trio.run_process, ["sleep", "600"])
        async with open_node(config(tmp_path), []):
            nursery.cancel_scope.cancel()


class WithRoutes:
    """A lobe with routes; they may see every role, since all are open by then."""

    @hookimpl
    def add_routes(self, host: Host) -> list[Route]:
        assert host.router is not None
        assert host.executors == []
        return [Route("/page", endpoint=lambda request: None)]


class WithBrokenRoutes:
    @hookimpl
    def add_routes(self, host: Host) -> list[Route]:
        raise OSError("no page")


async def test_routes_of_lobes_are_collected_and_broken_ones_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lobes = [Lobe("broken", "1.0", WithBrokenRoutes()), Lobe("paged", "1.0", WithRoutes())]
    async with open_node(config(tmp_path), lobes) as node:
        ((name, routes),) = node.routes
        assert name == "paged"
        assert [route.path for route in routes if isinstance(route, Route)] == ["/page"]
    logged = [record.getMessage() for record in caplog.records]
    assert logged == ["lobe broken: its routes are left out: OSError: no page"]


async def test_the_node_itself_has_a_folder_and_no_settings(tmp_path: Path) -> None:
    async with open_node(config(tmp_path), []) as node:
        assert node.state == tmp_path / "state"
        with pytest.raises(ConfigError, match="no settings of the kind Threads"):
            node.settings(Threads)


async def test_a_role_tells_facts_and_one_that_cannot_is_shown_all_the_same(tmp_path: Path) -> None:
    class Telling:
        def describe(self) -> dict[str, object]:
            return {"answer": 42}

    class Stumbling:
        def describe(self) -> dict[str, object]:
            raise OSError("no disk")

    diary = Diary()
    lobes = [
        diary.lobe("telling", "catalog", filling=Telling()),
        diary.lobe("stumbling", "executor", filling=Stumbling()),
    ]
    async with open_node(config(tmp_path), lobes) as node:
        facts = {status.lobe: status.facts for status in node.statuses()}
    assert facts["telling"] == {"answer": 42}
    assert facts["stumbling"] == {"error": "OSError: no disk"}
