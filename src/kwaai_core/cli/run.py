"""`kwaai run`: a node that serves until it is told to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from kwaai_core.cli.setting_up import prepare
from kwaai_core.errors import leaf

if TYPE_CHECKING:
    import trio

    from kwaai_core.config import Config
    from kwaai_core.lobes import Lobe


@click.command()
@click.option("--lobes", metavar="A,B", help="The complete set of lobes of this run.")
@click.option("--host", help="The address to listen on (a loopback one).  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="0 takes a free one.  [default: 8000]")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Of the log."
)
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Of the log's lines.")
def run(
    lobes: str | None,
    host: str | None,
    port: int | None,
    log_level: str | None,
    log_format: str | None,
) -> None:
    """Run a node until Ctrl-C or SIGTERM; a second one stops it at once."""
    import trio

    from kwaai_core.logs import set_up
    from kwaai_core.security import require_loopback

    flags = {
        "lobes": lobes,
        "server.host": host,
        "server.port": port,
        "log.level": log_level,
        "log.format": log_format,
    }
    config, chosen = prepare(flags)
    set_up(config.log.level, config.log.format)
    require_loopback(config.server.host)
    try:
        trio.run(_serve, config, chosen)
    except BaseExceptionGroup as group:
        raise leaf(group) from None


async def _serve(config: Config, lobes: Sequence[Lobe]) -> None:
    import trio

    from kwaai_core.node import open_node
    from kwaai_core.server import serve

    bound, stop = trio.Event(), trio.Event()

    def announce(urls: Sequence[str]) -> None:
        bound.set()
        for url in urls:
            click.echo(f"kwaai listens on {url}/v1 (stop with Ctrl-C)")

    async with trio.open_nursery() as nursery:
        await nursery.start(_watch_signals, bound, stop, nursery.cancel_scope)
        async with open_node(config, lobes) as node:
            await serve(node, config.server, config.state, stop=stop, on_bound=announce)
        nursery.cancel_scope.cancel()


async def _watch_signals(
    bound: trio.Event, stop: trio.Event, node: trio.CancelScope, task_status: trio.TaskStatus[None]
) -> None:
    import trio

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            if stop.is_set():
                os._exit(128 + number)  # asked twice: the workers end with our sockets
            click.echo("stopping: answers under way may finish; again to stop at once", err=True)
            stop.set()
            if not bound.is_set():
                node.cancel()  # a lobe may take a minute to open, and nobody waits for it any more
