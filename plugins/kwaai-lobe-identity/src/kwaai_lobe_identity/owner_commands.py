"""`kwaai identity owner`: the key of an owner, and its credential on a node."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kwaai_lobe_identity.surroundings import did_of, folder_here, passphrase_here

if TYPE_CHECKING:
    from kwaai_lobe_identity.credentials import Control

JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


@click.group()
def owner() -> None:
    """Who answers for this node: a person or an organisation, with a key of its own."""


PASSPHRASE_FILE = click.option(
    "--passphrase-file",
    type=click.Path(),
    help="Its first line is the passphrase; without it the passphrase is asked for.",
)


@owner.command()
@click.option("--name", required=True, help="As others shall see it.")
@click.option("--organisation", is_flag=True, help="An organisation, not a person.")
@PASSPHRASE_FILE
@JSON
def create(name: str, organisation: bool, passphrase_file: str | None, as_json: bool) -> None:
    """Make an owner's key on this machine, locked by a passphrase."""
    from kwaai_lobe_identity.owner import OwnerKey

    ask = partial(_asked, passphrase_file, "a new passphrase for the owner's key", confirm=True)
    made = OwnerKey.create(
        folder_here(), name, "organisation" if organisation else "person", ask
    ).owner
    click.echo(json.dumps(asdict(made)) if as_json else f"{made.name} is {made.did}")


@owner.command()
@click.argument("node")
@click.option(
    "--days",
    type=click.IntRange(1, 3660),
    default=365,
    show_default=True,
    help="How long it holds.",
)
@PASSPHRASE_FILE
def sign(node: str, days: int, passphrase_file: str | None) -> None:
    """Print the credential by which the owner answers for NODE, a DID or a peer id.

    Give it to `kwaai identity owner attach` on the node.
    """
    from kwaai_lobe_identity.owner import OwnerKey

    found, did = OwnerKey.find(folder_here()), did_of(node)
    passphrase = _asked(passphrase_file, "the passphrase of the owner's key")
    click.echo(found.sign(did, passphrase, begins=time.time() - 60, days=days))


@owner.command()
@click.argument("credential")
@JSON
def attach(credential: str, as_json: bool) -> None:
    """Let the owner that signed CREDENTIAL answer for this node; - reads standard input."""
    from kwaai_lobe_identity.generations import load
    from kwaai_lobe_identity.owner import Attached

    if credential == "-":
        credential = sys.stdin.read(1 << 16)
    found = load(folder_here(), passphrase_here())
    control = Attached(found.folder).attach("".join(credential.split()), found.names, time.time())
    facts = facts_of(control)
    if as_json:
        click.echo(json.dumps(facts))
    else:
        click.echo(f"{facts['name']} ({facts['did']}) answers for this node until {facts['until']}")


def facts_of(control: Control) -> dict[str, Any]:
    """What is shown of an owner."""
    until = datetime.fromtimestamp(control.expires, UTC).strftime("%Y-%m-%d")
    return asdict(control.owner) | {"until": until}


def _asked(file: str | None, what: str, *, confirm: bool = False) -> bytes:
    """A passphrase from a file or the terminal. Errors: :class:`kwaai_core.ConfigError`."""
    from kwaai_core import ConfigError
    from kwaai_lobe_identity.passphrase import first_line

    if file is not None:
        return first_line(Path(file), "--passphrase-file")
    if not sys.stdin.isatty():
        raise ConfigError("a passphrase is needed: run this on a terminal, or --passphrase-file")
    text: str = click.prompt(what, hide_input=True, confirmation_prompt=confirm, err=True)
    return text.encode()
