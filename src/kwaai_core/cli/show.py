"""`kwaai lobes` and `kwaai config`: what there is, and why."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from kwaai_core.cli.setting_up import prepare, tables_of
from kwaai_core.config import CORE_TABLES, default_file, default_state, load_config
from kwaai_core.lobes import find_lobes, statuses_of


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON array of objects.")
def lobes(as_json: bool) -> None:
    """Show every lobe, its roles, its state and, where it failed, the cause.

    States are live where a node runs.
    """
    statuses = _live()
    if statuses is None:
        statuses = _idle()
    if as_json:
        click.echo(json.dumps(statuses, indent=2))
        return
    if not statuses:
        click.echo("no lobes are installed: pip install kwaai-lobe-llama kwaai-lobe-smollm2")
    for status in statuses:
        state = click.style(status["state"], fg=_COLOURS.get(status["state"]))
        line = f"{status['lobe']:<12} {status['version']:<8} {status['role']:<11} {state}"
        click.echo(f"{line}  {status['cause']}".rstrip())


_COLOURS = {"ready": "green", "failed": "red", "waiting": "yellow", "opening": "yellow"}


def _live() -> list[dict[str, Any]] | None:
    from kwaai_core.local import node_client, node_runs

    state = default_state()
    if not node_runs(state):
        return None
    with node_client(state) as client:
        return list(client.get("/lobes").raise_for_status().json())


def _idle() -> list[dict[str, Any]]:
    used = {lobe.name for lobe in prepare()[1]}
    why = {True: "no node runs", False: "not among the lobes in kwaai.toml"}
    return [
        asdict(status)
        for lobe in find_lobes()
        for status in statuses_of(lobe, why[lobe.name in used])
    ]


@click.group()
def config() -> None:
    """Show and check the settings."""


@config.command()
def path() -> None:
    """Print where the settings and the state are."""
    file, named = default_file(), os.environ.get("KWAAI_CONFIG")
    missing = "  (does not exist; %s)" % ("KWAAI_CONFIG names it" if named else "that is fine")
    click.echo(f"settings {file}{missing * (not file.exists())}\nstate    {default_state()}")


@config.command()
def check() -> None:
    """Check kwaai.toml and the environment; exit code 2 where something cannot be used."""
    file = prepare()[0].file
    click.echo(f"{file}: all good" if file.exists() else "all defaults: all good")


@config.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(as_json: bool) -> None:
    """Print every setting with its value and where that comes from."""
    loaded, settings = load_config(), dict[str, dict[str, tuple[Any, str]]]()
    tables: Mapping[str, type[Any]] = {**CORE_TABLES, **tables_of(find_lobes())}
    lobes, source = loaded.sourced_lobes()
    settings[""] = {"lobes": (lobes, source)}
    settings["roles"] = {role: (name, str(loaded.file)) for role, name in loaded.roles.items()}
    settings |= {name: loaded.sourced(name, kind) for name, kind in tables.items()}
    if as_json:
        plain: dict[str, Any] = {
            table: {key: {"value": v, "source": s} for key, (v, s) in keys.items()}
            for table, keys in settings.items()
        }
        click.echo(json.dumps(plain.pop("") | plain, indent=2))
        return
    for table, keys in settings.items():
        if table and keys:
            click.echo(f"\n[{table}]")
        for key, (value, source) in keys.items():
            line = f"# {key} is not set" if value is None else f"{key} = {json.dumps(value)}"
            click.echo(f"{line}  # {source}")
