"""`kwaai run`: a node that serves until it is told to stop."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from kwaai_core.cli.setting_up import log, prepare
from kwaai_core.errors import leaf

if TYPE_CHECKING:
    import trio

    from kwaai_core.config import Config
    from kwaai_core.lobes import Lobe


@click.command()
@click.option("--lobes", metavar="A,B", help="The complete set of lobes of this run.")
@click.option(
    "--host",
    "server_host",
    help="The address to listen on; one that others reach needs a key.  [default: 127.0.0.1]",
)
@click.option(
    "--port",
    "server_port",
    type=click.IntRange(0, 65535),
    help="0 takes a free one.  [default: 8000]",
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Of the log."
)
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Of the log's lines.")
def run(**given: Any) -> None:
    """Run a node until Ctrl-C or SIGTERM; a second one stops it at once."""
    import trio

    flags = {name.replace("_", ".", 1): value for name, value in given.items()}
    config, chosen = prepare(flags, logged=True)
    try:
        trio.run(_serve, config, chosen)
    except BaseExceptionGroup as group:
        raise leaf(group) from None


async def _serve(config: Config, lobes: Sequence[Lobe]) -> None:
    import trio

    from kwaai_core.http.app import NO_EXECUTOR
    from kwaai_core.http.server import serve
    from kwaai_core.node import open_node

    bound, stop = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(_watch_signals, bound, stop, nursery.cancel_scope)
        for lobe in lobes:
            if lobe.error:
                log.error("lobe %s (failed): %s", lobe.name, lobe.error)
        async with open_node(config, lobes) as node, trio.open_nursery() as serving:
            if not node.executors:
                log.warning("%s", NO_EXECUTOR)
            start = partial(serve, node, config.server, config.state, stop=stop)
            for url in await serving.start(start):
                line = f"kwaai listens on {url}/v1"
                facts = json.dumps({"message": line, "url": f"{url}/v1"})
                click.echo(facts if config.log.format == "json" else f"{line} (stop with Ctrl-C)")
            bound.set()
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
            log.info("stopping: answers under way may finish; again to stop at once")
            stop.set()
            if not bound.is_set():
                node.cancel()  # a lobe may take a minute to open, and nobody waits for it any more
