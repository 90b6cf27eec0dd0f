"""`kwaai identity`: show, keep, rotate this node's identity; its owner; revoke memberships."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from kwaai_core.config import Config
    from kwaai_lobe_identity.folder import Folder
    from kwaai_lobe_identity.generations import Generations, Passphrase

JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


@click.group()
def identity() -> None:
    """Show and keep who this node is."""


@identity.command()
@JSON
def show(as_json: bool) -> None:
    """Show the DID, the peer id, the owner, the groups; with --json the DID document too.

    Where this node has no identity yet, it is made.
    """
    from kwaai_lobe_identity.generations import load
    from kwaai_lobe_identity.names import document

    facts = _facts(load(_folder(), _passphrase()))
    if as_json:
        click.echo(json.dumps(facts | {"document": document(facts["did"])}, indent=2))
        return
    owner = facts["owner"]
    said = f"{owner['name']} ({owner['kind']}, {owner['did']})" if owner else "nobody yet"
    click.echo(f"did      {facts['did']}\npeer id  {facts['peer_id']}\nowner    {said}")
    for group in facts["groups"]:
        click.echo(f"group    {group['name']}, founded by {group['founder']}")
    for former in facts["formerly"]:
        click.echo(f"formerly {former}")
    if facts["frozen"]:
        click.echo(click.style("frozen: this key has named two successors", fg="red"), err=True)


def _facts(found: Generations) -> dict[str, Any]:
    from dataclasses import asdict

    from kwaai_lobe_identity.members import Members
    from kwaai_lobe_identity.names import peer_of_key
    from kwaai_lobe_identity.owner import Attached

    members, now = Members(found, time.time), time.time()
    state = members.circle.state()
    control = Attached(found.folder).now(found.names, now)
    owner = None if control is None else asdict(control.owner) | {"until": _date(control.expires)}
    return {
        "did": found.did,
        "peer_id": peer_of_key(found.file.public),
        "owner": owner,
        "groups": [asdict(group) for group in members.groups(state)],
        "formerly": list(found.names[1:]),
        "frozen": found.did in state.frozen,
        "locked": found.file.locked,
        "key": str(found.path),
    }


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


@identity.command()
@JSON
def path(as_json: bool) -> None:
    """Print where the key is; nothing is made."""
    from kwaai_lobe_identity.generations import find

    folder = _folder()
    found = find(folder)
    facts = {
        "folder": str(folder.path),
        "key": str(found.path) if found else None,
        "next_key": str(found.next_path) if found else None,
    }
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo(f"folder   {facts['folder']}")
    click.echo(
        f"key      {facts['key'] or 'none yet: kwaai identity show, or kwaai run, makes it'}"
    )
    if found:
        there = "" if found.next_path.exists() else "  (kept elsewhere)"
        click.echo(f"next key {facts['next_key']}{there}")


@identity.command()
@click.argument("file", type=click.Path())
@JSON
def export(file: str, as_json: bool) -> None:
    """Write the identity with all of its keys to FILE, which must not be there yet.

    Whoever has FILE, and the passphrase if there is one, is this node.
    """
    from kwaai_lobe_identity.folder import Folder
    from kwaai_lobe_identity.generations import exported, load

    found = load(_folder(), _passphrase())
    path = Path(file).expanduser().absolute()
    Folder(path.parent).create(path.name, exported(found))
    facts = {"did": found.did, "file": str(path), "locked": found.file.locked}
    if as_json:
        click.echo(json.dumps(facts))
    else:
        click.echo(f"{found.did} is in {click.format_filename(str(path))}")
    if not found.file.locked:
        click.echo("warning: no passphrase locks its keys: keep the file secret", err=True)


@identity.command()
@click.argument("file", type=click.Path())
def restore(file: str) -> None:
    """Become the identity in FILE, which `export` wrote; this node must have none."""
    from kwaai_core import RequestError
    from kwaai_lobe_identity.generations import restored

    try:
        content = Path(file).expanduser().read_bytes()
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error.strerror}") from None
    click.echo(f"this node is {restored(_folder(), content).did}")


@identity.command()
@JSON
def rotate(as_json: bool) -> None:
    """Give up the key in use for the next one, which was committed to in advance.

    The node must be stopped. Groups and owner stay; the DID and the peer id are others.
    """
    from kwaai_lobe_identity.admission import Admission
    from kwaai_lobe_identity.generations import rotated

    passphrase = _passphrase()
    found = rotated(_folder(), passphrase, int(time.time()))
    Admission(found, found.key(passphrase), 0, time.time).renew()
    if as_json:
        click.echo(json.dumps(_facts(found), indent=2))
    else:
        click.echo(f"{found.names[1]}\nis given up for\n{found.did}")


@identity.command()
@click.argument("peer")
@click.option("--group", default="home", show_default=True, help="A group that this node founded.")
def revoke(peer: str, group: str) -> None:
    """End what PEER, a DID or a peer id, has in a group, and what others have through it."""
    from kwaai_lobe_identity.admission import Admission
    from kwaai_lobe_identity.generations import load

    did, passphrase = _did(peer), _passphrase()
    found = load(_folder(), passphrase)
    Admission(found, found.key(passphrase), 0, time.time).revoke(group, did)
    click.echo(
        f"{peer} is no longer in {group}; peers learn of it as they meet this node's members"
    )


@identity.group()
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
    from dataclasses import asdict

    from kwaai_lobe_identity.owner import OwnerKey

    ask = partial(_asked, passphrase_file, "a new passphrase for the owner's key", confirm=True)
    made = OwnerKey.create(_folder(), name, "organisation" if organisation else "person", ask).owner
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

    found, did = OwnerKey.find(_folder()), _did(node)
    passphrase = _asked(passphrase_file, "the passphrase of the owner's key")
    click.echo(found.sign(did, passphrase, begins=time.time() - 60, days=days))


@owner.command()
@click.argument("credential")
@JSON
def attach(credential: str, as_json: bool) -> None:
    """Let the owner that signed CREDENTIAL answer for this node; - reads standard input."""
    from dataclasses import asdict

    from kwaai_lobe_identity.generations import load
    from kwaai_lobe_identity.owner import Attached

    if credential == "-":
        credential = sys.stdin.read(1 << 16)
    found = load(_folder(), _passphrase())
    control = Attached(found.folder).attach("".join(credential.split()), found.names, time.time())
    facts = asdict(control.owner) | {"until": _date(control.expires)}
    if as_json:
        click.echo(json.dumps(facts))
    else:
        click.echo(f"{facts['name']} ({facts['did']}) answers for this node until {facts['until']}")


def _config() -> Config:
    from kwaai_core.config import load_config

    return load_config()


def _folder() -> Folder:
    from kwaai_lobe_identity.folder import Folder

    return Folder(_config().state / "lobes" / "identity")


def _did(name: str) -> str:
    """The DID of a DID or a peer id. Errors: :class:`kwaai_core.NotVerified`."""
    from kwaai_lobe_identity.names import METHOD, did_of_key, key_of_did, key_of_peer

    return did_of_key(key_of_did(name) if name.startswith(METHOD) else key_of_peer(name))


def _passphrase() -> Passphrase:
    from kwaai_lobe_identity import IdentitySettings
    from kwaai_lobe_identity.passphrase import passphrase_of

    return passphrase_of(_config().table("identity", IdentitySettings))


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
