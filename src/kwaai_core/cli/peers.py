"""`kwaai peers`: other nodes as the node that runs here sees them, and who may join it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import click

from kwaai_core.config import load_config
from kwaai_core.errors import KwaaiError
from kwaai_core.local import answered, node_client

_PATIENCE = 120.0  # seconds; each step in the node has a shorter deadline of its own
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@click.group()
def peers() -> None:
    """Show other nodes, join them, and keep them out."""


_json = click.option("--json", "as_json", is_flag=True, help="As JSON.")
_peer = click.argument("peer")


@peers.command()
@_json
def ls(as_json: bool) -> None:
    """Show the peers that are connected, known as members, or blocked."""
    found = _ask()
    _say(found, as_json, "\n".join(map(_text, found)))
    if not found:
        click.echo("no peers: kwaai peers invite here, and kwaai peers join there", err=True)


@peers.command()
@_peer
@_json
def show(peer: str, as_json: bool) -> None:
    """Show PEER, which is the peer id or the DID of one of them."""
    found = [one for one in _ask() if peer in (one["peer"], one["did"])]
    if not found:
        raise KwaaiError(f"no peer {peer} is connected or known here: see kwaai peers ls")
    _say(found[0], as_json, _text(found[0]))


def _seconds(context: click.Context, parameter: click.Parameter, value: str) -> int:
    if match := re.fullmatch(r"(\d{1,8})([smhd])", value):
        return int(match[1]) * _UNITS[match[2]]
    raise click.BadParameter("write it like 30m, 12h or 7d")


@peers.command()
@click.option("--group", default="home", show_default=True, help="The group's name.")
@click.option(
    "--for", "seconds", callback=_seconds, default="1d", show_default=True, help="Like 30m, 12h."
)
@click.option("--may-invite", is_flag=True, help="Who takes it may invite others.")
@_json
def invite(group: str, seconds: int, may_invite: bool, as_json: bool) -> None:
    """Print an invitation: one line, good once, and secret until it is used."""
    made = _ask("invite", group=group, seconds=seconds, may_invite=may_invite)
    _say(made, as_json, made["line"])
    until = datetime.fromtimestamp(made["expires"]).astimezone().isoformat(" ", "minutes")
    click.echo(
        f"Whoever has this line can use it, once, until {until}. On the other machine type\n"
        "    kwaai peers join -\nand paste it: an argument can be seen in the list of processes.",
        err=True,
    )


@peers.command()
@click.argument("line")
@_json
def join(line: str, as_json: bool) -> None:
    """Take an invitation.

    LINE is what `kwaai peers invite` has printed elsewhere, or - to read it.
    """
    group = _ask("join", line=sys.stdin.readline() if line == "-" else line)
    _say(group, as_json, f"joined the group {group['name']} of {group['founder']}")


@peers.command()
@_peer
@_json
def ping(peer: str, as_json: bool) -> None:
    """Measure a round trip to PEER."""
    found = _ask("ping", peer=peer)
    _say(found, as_json, _rtt(found["rtt"]))


@peers.command()
@_peer
@_json
def block(peer: str, as_json: bool) -> None:
    """Never deal with PEER, whatever groups it is in."""
    _say(_ask("block", peer=peer), as_json, f"blocked {peer}")


@peers.command()
@_peer
@_json
def unblock(peer: str, as_json: bool) -> None:
    """Take a block back; what [peers] deny in kwaai.toml says stays."""
    _say(_ask("unblock", peer=peer), as_json, f"unblocked {peer}")


def _ask(command: str = "", **about: object) -> Any:
    with node_client(load_config().state, timeout=_PATIENCE) as client:
        if command:
            return answered(client.post(f"/peers/{command}", json=about))
        return answered(client.get("/peers"))


def _say(document: Any, as_json: bool, text: str) -> None:
    if words := json.dumps(document, indent=2) if as_json else text:
        click.echo(words)


def _text(peer: Mapping[str, Any]) -> str:
    state = "  blocked" if peer["blocked"] else "" if peer["admitted"] else "  not dealt with"
    facts = [f"  did      {peer['did']}"]
    if owner := peer["owner"]:
        facts.append(f"  owner    {owner['name']}, {owner['kind']}, {owner['did']}")
    facts += [f"  group    {group['name']} of {group['founder']}" for group in peer["groups"]]
    if peer["address"]:
        way = f"{'in' if peer['inbound'] else 'out'}bound{', relayed' * peer['relayed']}"
        # where one came from is an address, but hardly one under which it can be dialled
        name = "from   " if peer["inbound"] else "address"
        facts += [f"  {name}  {peer['address']}", f"  link     {way}, {_rtt(peer['rtt'])}"]
        if why := peer.get("why_relayed"):
            facts.append(f"  relayed  {why}")
    # what peers call themselves must not steer a terminal
    plain = ["".join(c if c.isprintable() else "?" for c in fact) for fact in facts]
    return "\n".join([click.style(peer["peer"], bold=True) + state, *plain])


def _rtt(seconds: float | None) -> str:
    return "no answer" if seconds is None else f"{seconds * 1000:.1f} ms"
