"""`kwaai keys`: who may use this node's API from elsewhere, and how much."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from kwaai_core.config import load_config
from kwaai_core.errors import KeyDamaged

if TYPE_CHECKING:
    from kwaai_core.http.keys import Key, Keys


@click.group()
def keys() -> None:
    """Show, make and revoke the keys of the HTTP API.

    A node that runs goes by them at once.
    """


_json = click.option("--json", "as_json", is_flag=True, help="As JSON.")
_limit = click.IntRange(1, 60_000)


@keys.command()
@click.argument("name")
@click.option("--requests-per-minute", type=_limit, metavar="N", help="In any 60 seconds.")
@click.option("--concurrent", type=_limit, metavar="N", help="Requests at a time.")
@_json
def create(
    name: str, requests_per_minute: int | None, concurrent: int | None, as_json: bool
) -> None:
    """Make a key called NAME, and print it, this once.

    From the first key on, every route of the port but /health needs one.
    """
    made, shown = _keys().create(name, requests_per_minute, concurrent)
    click.echo(json.dumps(_facts(made) | {"key": shown}, indent=2) if as_json else shown)
    click.echo(
        "Keep it now: nothing can show it again. Clients send it as their API key.", err=True
    )


@keys.command()
@_json
def ls(as_json: bool) -> None:
    """Show the keys: name, when made and last used, limits."""
    of_node = _keys()
    found = [_read(of_node, name) for name in of_node.names()]
    if words := json.dumps(found, indent=2) if as_json else "\n".join(map(_text, found)):
        click.echo(words)
    if not found:
        closed = "no keys, and so nobody comes in by the port" if of_node.needed() else "no keys"
        click.echo(f"{closed}: kwaai keys create NAME", err=True)


@keys.command()
@click.argument("name")
@_json
def revoke(name: str, as_json: bool) -> None:
    """Let nobody in with the key NAME any more.

    After the last one the port stays closed, until there is a new key.
    """
    of_node = _keys()
    of_node.revoke(name)
    click.echo(json.dumps({"name": name, "revoked": True}) if as_json else f"revoked {name}")
    if not of_node.names():
        click.echo(
            "That was the last one: nobody comes in by the port until there is a new one. To do "
            f"without keys on loopback again, stop the node and remove {of_node.folder}",
            err=True,
        )


def _keys() -> Keys:
    from kwaai_core.http.keys import Keys

    return Keys(load_config().state)


def _facts(key: Key) -> dict[str, Any]:
    return {name: value for name, value in asdict(key).items() if name != "sha256"}


def _read(of_node: Keys, name: str) -> dict[str, Any]:
    try:
        return _facts(of_node.read(name))
    except KeyDamaged as error:
        return {"name": name, "error": error.message}
    except FileNotFoundError:  # revoked meanwhile
        return {"name": name, "error": "revoked"}


def _text(key: Mapping[str, Any]) -> str:
    name = click.style(f"{key['name']:<20}", bold=True)
    if "error" in key:
        return f"{name}  {key['error']}"
    rate, most = key["requests_per_minute"], key["concurrent"]
    limits = [f"{rate} a minute"] * bool(rate) + [f"{most} at a time"] * bool(most)
    used = f"used {_when(key['used'])}" if key["used"] else "never used"
    return f"{name}  made {_when(key['created'])}  {used}  {', '.join(limits) or 'no limits'}"


def _when(seconds: int) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "minutes")
