"""`kwaai identity`: show, keep and rotate this node's identity, and revoke memberships."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kwaai_lobe_identity.owner_commands import JSON, facts_of, owner
from kwaai_lobe_identity.surroundings import did_of, folder_here, passphrase_here

if TYPE_CHECKING:
    from kwaai_lobe_identity.generations import Generations


@click.group()
def identity() -> None:
    """Show and keep who this node is."""


identity.add_command(owner)


@identity.command()
@JSON
def show(as_json: bool) -> None:
    """Show the DID, the peer id, the owner, the groups; with --json the DID document too.

    Where this node has no identity yet, it is made.
    """
    from kwaai_lobe_identity.generations import load
    from kwaai_lobe_identity.names import document

    facts = _facts(load(folder_here(), passphrase_here()))
    if as_json:
        click.echo(json.dumps(facts | {"document": document(facts["did"])}, indent=2))
        return
    by = facts["owner"]
    said = f"{by['name']} ({by['kind']}, {by['did']})" if by else "nobody yet"
    click.echo(f"did      {facts['did']}\npeer id  {facts['peer_id']}\nowner    {said}")
    for group in facts["groups"]:
        click.echo(f"group    {group['name']}, founded by {group['founder']}")
    for former in facts["formerly"]:
        click.echo(f"formerly {former}")
    if facts["frozen"]:
        click.echo(click.style("frozen: a key of it has named two successors", fg="red"), err=True)


def _facts(found: Generations) -> dict[str, Any]:
    from dataclasses import asdict

    from kwaai_lobe_identity.members import Members
    from kwaai_lobe_identity.names import peer_of_key
    from kwaai_lobe_identity.owner import Attached

    members, now = Members(found, time.time), time.time()
    state = members.circle.state()
    control = Attached(found.folder).now(found.names, now)
    return {
        "did": found.did,
        "peer_id": peer_of_key(found.file.public),
        "owner": facts_of(control) if control is not None else None,
        "groups": [asdict(group) for group in members.groups(state)],
        "formerly": list(found.names[1:]),
        "frozen": not state.frozen.isdisjoint(found.names),
        "locked": found.file.locked,
        "key": str(found.path),
    }


@identity.command()
@JSON
def path(as_json: bool) -> None:
    """Print where the key is; nothing is made."""
    from kwaai_lobe_identity.generations import find

    folder = folder_here()
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

    found = load(folder_here(), passphrase_here())
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
    click.echo(f"this node is {restored(folder_here(), content).did}")


@identity.command()
@JSON
def rotate(as_json: bool) -> None:
    """Give up the key in use for the next one, which was committed to in advance.

    The node must be stopped. Groups and owner stay; the DID and the peer id are others.
    """
    from kwaai_lobe_identity.admission import Admission
    from kwaai_lobe_identity.generations import rotated

    passphrase = passphrase_here()
    found = rotated(folder_here(), passphrase, int(time.time()))
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

    did, passphrase = did_of(peer), passphrase_here()
    found = load(folder_here(), passphrase)
    Admission(found, found.key(passphrase), 0, time.time).revoke(group, did)
    click.echo(
        f"{peer} is no longer in {group}; peers learn of it as they meet this node's members"
    )
