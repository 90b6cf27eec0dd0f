"""Routes over the blocks of models that peers hold, and what this node holds for theirs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from kwaai_core import Host, Offer, Router, hookimpl
from kwaai_lobe_router.settings import SpansSettings

if TYPE_CHECKING:
    import click
    from starlette.routing import BaseRoute


@hookimpl
def provide_router() -> Offer[Router]:
    """A router over the whole models of this node and over spans that it and its peers hold."""
    return Offer("spans", _open, SpansSettings)


@hookimpl
def add_routes(host: Host) -> Sequence[BaseRoute]:
    """What `kwaai swarm` asks."""
    from kwaai_lobe_router.routes import routes

    return routes(host)


@hookimpl
def add_commands(cli: click.Group) -> None:
    """`kwaai swarm` and `kwaai demo`."""
    from kwaai_lobe_router.commands import swarm
    from kwaai_lobe_router.demo.command import demo

    cli.add_command(swarm)
    cli.add_command(demo)


def _open(host: Host) -> AbstractAsyncContextManager[Router]:
    from kwaai_lobe_router.router import open_router

    return open_router(host)
