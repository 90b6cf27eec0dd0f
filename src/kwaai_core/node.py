"""A node: the offers of its lobes opened in the order of the roles, and closed in reverse."""

from __future__ import annotations

import fcntl
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kwaai_core import roles
from kwaai_core.config import Config, PeersSettings
from kwaai_core.door import Gate
from kwaai_core.errors import ConfigError, NodeRunning, cause_of
from kwaai_core.lobes import CORE, Lobe, claimants, fill_roles, hook_of, statuses_of
from kwaai_core.peering import Identity, Transport
from kwaai_core.roles import Describes, Offer
from kwaai_core.supervise import Supervised
from kwaai_core.types import MANY, LobeStatus, RoleName

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

log = logging.getLogger(__name__)
S = TypeVar("S")
_ORDER = list(RoleName)
_FILLED = "its role is filled by another lobe"


def _one(role: RoleName) -> Any:
    return property(lambda self: self.one(role))


def _all(role: RoleName) -> Any:
    return property(lambda self: self.all(role))


class _Roles(ABC):
    """The roles as the properties of :class:`Host`."""

    __slots__ = ()

    @abstractmethod
    def one(self, role: RoleName) -> Any:
        """The filling of a single role, None where nobody offers it; raises LobeFailed."""

    @abstractmethod
    def all(self, role: RoleName) -> list[Any]:
        """Every filling of a role."""

    identity: Identity | None = _one(RoleName.IDENTITY)
    transport: Transport | None = _one(RoleName.TRANSPORT)
    trust: roles.TrustPolicy | None = _one(RoleName.TRUST)
    settlement: roles.Settlement | None = _one(RoleName.SETTLEMENT)
    catalogs: Sequence[roles.Catalog] = _all(RoleName.CATALOG)
    embedder: roles.Embedder | None = _one(RoleName.EMBEDDER)
    stores: Sequence[roles.KnowledgeStore] = _all(RoleName.STORE)
    executors: Sequence[roles.Executor] = _all(RoleName.EXECUTOR)
    router: roles.Router | None = _one(RoleName.ROUTER)


@dataclass(eq=False)
class Node(_Roles):
    """The roles of a running node; what the app is built over."""

    config: Config
    lobes: Sequence[Lobe]
    filled: dict[RoleName, list[Supervised]] = field(default_factory=dict)
    routes: list[tuple[str, Sequence[BaseRoute]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = self.config.table("peers", PeersSettings)
        self.gate = Gate(settings, self.config.state / "peers.json")

    def one(self, role: RoleName) -> Any:
        for supervised in self.filled.get(role, ()):
            supervised.get()  # raises where it failed: whoever needs it has to wait
            return supervised.role
        return None

    def all(self, role: RoleName) -> list[Any]:
        return [supervised.role for supervised in self.filled.get(role, ())]

    @property
    def state(self) -> Path:
        return self.config.state

    def settings(self, kind: type[S]) -> S:
        raise ConfigError(f"the node itself has no settings of the kind {kind.__name__}")

    def ready(self) -> bool:
        """Whether a request for some model would be answered now, without waiting for it."""
        routers = self.filled.get(RoleName.ROUTER, [])
        executors = self.filled.get(RoleName.EXECUTOR, [])
        return any(r.state == "ready" for r in routers) and any(
            e.state == "ready" and e.current.ready() for e in executors
        )

    def statuses(self) -> list[LobeStatus]:
        """Every offer of every lobe of this run, and the lobes that could not be loaded."""
        live = {(s.lobe, role.value): s for role, all_ in self.filled.items() for s in all_}
        found = []
        for status in (s for lobe in [*self.lobes, CORE] for s in statuses_of(lobe, _FILLED)):
            if supervised := live.get((status.lobe, status.role)):
                facts = _facts(supervised)
                status = replace(
                    status, state=supervised.state, cause=supervised.cause, facts=facts
                )
            if status.lobe != CORE.name or supervised:
                found.append(status)
        return found


def _facts(supervised: Supervised) -> Mapping[str, Any]:
    now = supervised.current
    try:
        return now.describe() if isinstance(now, Describes) else {}
    except Exception as error:  # noqa: BLE001  # a lobe is foreign code: its states are shown nevertheless
        return {"error": cause_of(error)}


@dataclass(frozen=True, slots=True)
class _LobeHost(_Roles):
    """What one lobe sees: the first ``limit`` roles, its own folder, its own settings."""

    node: Node
    lobe: str
    table: str
    limit: int

    def one(self, role: RoleName) -> Any:
        return self.node.one(self._reached(role))

    def all(self, role: RoleName) -> list[Any]:
        return self.node.all(self._reached(role))

    def _reached(self, role: RoleName) -> RoleName:
        if _ORDER.index(role) < self.limit:
            return role
        raise ConfigError(
            f"the lobe “{self.lobe}” reaches for the role {role.value}, which opens after "
            "its own: a lobe may use only the roles before it"
        )

    @property
    def state(self) -> Path:
        folder = self.node.config.state / "lobes" / self.lobe
        for path in (folder.parent, folder):
            path.mkdir(mode=0o700, exist_ok=True)
        return folder

    def settings(self, kind: type[S]) -> S:
        return self.node.config.table(self.table, kind)


@asynccontextmanager
async def open_node(config: Config, lobes: Sequence[Lobe]) -> AsyncIterator[Node]:
    """Open a node over the state folder of ``config``, with the lobes of this run.

    A lobe that fails is a status, never an error. Errors: :class:`ConfigError` and its kinds,
    :class:`NodeRunning`. Leaving closes the offers in reverse.
    """
    filled = fill_roles(lobes, config.roles)
    node = Node(config, lobes)

    def retry() -> None:
        for waiting in (one for fillings in node.filled.values() for one in fillings):
            waiting.retry()

    with _locked(config.state):
        async with AsyncExitStack() as stack:
            for role in _ORDER:
                fillings = node.filled[role] = []
                for lobe, offer in [(lobe, offer) for of, lobe, offer in filled if of is role]:
                    if role is RoleName.TRANSPORT:
                        offer = replace(offer, open=partial(node.gate.opened, offer))
                    supervised = Supervised(lobe.name, offer, retry, package=lobe.package)
                    host = _LobeHost(node, lobe.name, offer.name, _ORDER.index(role))
                    await stack.enter_async_context(supervised.supervised(host))
                    fillings.append(supervised)
                if role in MANY or not fillings:
                    fillings += map(_failed, claimants(role, lobes, config.roles))
            node.routes += _routes(node)
            yield node


def _failed(lobe: Lobe) -> Supervised:
    """The filling of a role whose lobe could not be loaded: never open, and not empty either."""
    supervised = Supervised(lobe.name, Offer(lobe.name, lambda host: nullcontext()))
    supervised.state, supervised.cause = "failed", lobe.error
    return supervised


def _routes(node: Node) -> Iterator[tuple[str, Sequence[BaseRoute]]]:
    for lobe in node.lobes:
        hook = None if lobe.error else hook_of(lobe, "add_routes")
        if hook is None:
            continue
        table = next((offer.name for offer in lobe.offers.values()), lobe.name)
        try:
            yield lobe.name, list(hook(_LobeHost(node, lobe.name, table, len(_ORDER))))
        except Exception as error:  # noqa: BLE001 - foreign code: the node goes on without it
            log.error("lobe %s: its routes are left out: %s", lobe.name, cause_of(error))


@contextmanager
def _locked(state: Path) -> Iterator[None]:
    """One node on a state folder; the lock ends with the process, however that ends."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(state / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"the state folder {state} cannot be used: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(lock, 20).decode("ascii", "replace").strip() or "unknown"
            raise NodeRunning(
                f"a node runs already on {state} (process {pid}): stop it, or set KWAAI_STATE to "
                "another folder for a second node"
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        yield
    finally:
        os.close(lock)
