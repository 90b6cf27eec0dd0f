"""The hooks: cheap, synchronous functions that open nothing and return typed offers.

All are called at start-up, in a process that may only be printing its help: import heavy things
inside ``open``, never at the top of a lobe's module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click
    from starlette.routing import BaseRoute

    from kwaai_core.peering import Identity, Transport
    from kwaai_core.roles import (
        Catalog,
        Embedder,
        Executor,
        Host,
        KnowledgeStore,
        Offer,
        Router,
        Settlement,
        TrustPolicy,
    )

PROJECT = "kwaai"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def provide_identity() -> Offer[Identity] | None:
    """Offer the role identity: who this node is."""


@hookspec
def provide_transport() -> Offer[Transport] | None:
    """Offer the role transport: streams and records between peers."""


@hookspec
def provide_trust() -> Offer[TrustPolicy] | None:
    """Offer the role trust: how far this node trusts a peer."""


@hookspec
def provide_settlement() -> Offer[Settlement] | None:
    """Offer the role settlement: who owes whom."""


@hookspec
def provide_catalog() -> Offer[Catalog] | None:
    """Offer a catalog, beside any others: which models exist, and their bytes."""


@hookspec
def provide_embedder() -> Offer[Embedder] | None:
    """Offer the role embedder: text to vectors."""


@hookspec
def provide_store() -> Offer[KnowledgeStore] | None:
    """Offer a store, beside any others: private knowledge."""


@hookspec
def provide_executor() -> Offer[Executor] | None:
    """Offer an executor, beside any others: runs a model."""


@hookspec
def provide_router() -> Offer[Router] | None:
    """Offer the role router: from an intent to something that can execute it."""


@hookspec
def add_routes(host: Host) -> Sequence[BaseRoute]:  # type: ignore[empty-body]
    """Routes of the lobe's own, mounted under ``/lobes/<name>/`` when the app is built."""


@hookspec
def add_commands(cli: click.Group) -> None:
    """Add commands to ``kwaai``; called at every start of the command line, so keep it cheap."""
