"""The command `kwaai`. Its commands import what they need when they run: help has to be fast."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NoReturn

import click

from kwaai_core.cli.chat import chat
from kwaai_core.cli.keys import keys
from kwaai_core.cli.peers import peers
from kwaai_core.cli.run import run
from kwaai_core.cli.show import config, lobes
from kwaai_core.errors import ConfigError, KwaaiError, cause_of
from kwaai_core.lobes import find_lobes, hook_of
from kwaai_core.machine import refusal

__all__ = ["cli", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("kwaai-core"), prog_name="kwaai", message="%(prog)s %(version)s")
def cli() -> None:
    """A decentralised AI node behind an OpenAI-compatible API."""


@cli.command("version")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def version_(as_json: bool) -> None:
    """Show the versions of kwaai and of every lobe."""
    versions = {"kwaai-core": version("kwaai-core")}
    versions |= {f"lobe {lobe.name}": lobe.version for lobe in find_lobes()}
    if as_json:
        click.echo(json.dumps(versions))
    else:
        click.echo("\n".join(f"{name} {number}" for name, number in versions.items()))


for command in (run, chat, keys, peers, lobes, config):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point. Exit codes: 1 failed, 2 usage or settings, 70 a bug, 130 interrupted.

    Errors are lines on stderr, or after ``--json`` one JSON object there.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    colour = False if os.environ.get("NO_COLOR") else None  # None: where it is a terminal

    def fail(error: object, code: int) -> NoReturn:
        if "--json" in words:
            click.echo(json.dumps({"error": {"message": str(error)}}, ensure_ascii=False), err=True)
        else:
            for line in str(error).splitlines():
                click.echo(f"{click.style('error:', fg='red')} {line}", err=True, color=colour)
        sys.exit(code)

    try:
        _add_commands_of_lobes(cli)
        code = cli.main(words, standalone_mode=False, color=colour)
        sys.exit(code if isinstance(code, int) else 0)  # what a command gave to Context.exit
    except click.ClickException as error:
        if "--json" in words:
            fail(error.format_message(), error.exit_code)
        error.show()
        if "No such command" in error.format_message():
            click.echo("It may be that of a lobe: pip install kwaai-lobe-<its name>", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except KwaaiError as error:
        fail(error, 2 if isinstance(error, ConfigError) else 1)
    except Exception as error:  # our own bug: a user gets a line, whoever mends it the traceback
        if said := refusal(error):
            _drop_output()
            fail(said, 1)
        if os.environ.get("KWAAI_STRICT") == "1":
            raise
        fail(f"this is a bug in kwaai: {error!r} (KWAAI_STRICT=1 shows where)", 70)


def _add_commands_of_lobes(group: click.Group) -> None:
    for lobe in find_lobes():
        hook: Any = None if lobe.error else hook_of(lobe, "add_commands")
        if hook is None:
            continue
        try:
            hook(group)
        except Exception as error:  # noqa: BLE001 - foreign code: kwaai goes on without its commands
            line = f"lobe {lobe.name}: its commands are left out: {cause_of(error)}"
            click.echo(line, err=True)


def _drop_output() -> None:
    """Give up what could not be written, or Python would try again, and end with 120."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
