"""`kwaai models`: add, list, show and remove local model files."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

    from kwaai_core.gguf.digest import Progress
    from kwaai_lobe_models.index import Entry, Index


@click.group()
def models() -> None:
    """Keep the model files that this node offers."""


def _state() -> Path:
    from kwaai_core.config import load_config

    return load_config().state / "lobes" / "models"


def _listing() -> str:
    """The command that lists all models, whatever port and keys the node has."""
    from kwaai_core.config import load_config
    from kwaai_core.local import SOCKET

    socket = shlex.quote(str(load_config().state / SOCKET))
    return f"curl --unix-socket {socket} http://localhost/v1/models"


def _index() -> Index:
    from kwaai_lobe_models.index import Index

    return Index(_state())


def _offered() -> Sequence[Entry]:
    """What was added, and what is in the folder of the settings."""
    from kwaai_core.config import load_config
    from kwaai_lobe_models import ModelsSettings
    from kwaai_lobe_models.folder import scan
    from kwaai_lobe_models.index import offered

    folder = load_config().table("models", ModelsSettings).folder
    if not folder:
        return _index().entries()
    with contextlib.ExitStack() as bars:
        found = scan(Path(folder), _state() / "digests", lambda path: _progress(bars, path))
    return offered(_index().entries(), found)


def _progress(bars: contextlib.ExitStack, path: Path) -> Progress:
    """A bar on a terminal, from the first byte that is hashed; elsewhere nothing."""
    bar: ProgressBar[int] | None = None
    before = 0

    def progress(done: int, total: int) -> None:
        nonlocal bar, before
        if not sys.stderr.isatty():
            return
        if bar is None:
            bars.close()  # of the file before
            name = click.format_filename(path.name)
            bar = bars.enter_context(click.progressbar(length=total, label=name, file=sys.stderr))
        bar.update(done - before)
        before = done

    return progress


@models.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON array of objects.")
def ls(as_json: bool) -> None:
    """List the models that were added, and those in the folder of the settings."""
    entries = _offered()
    if as_json:
        click.echo(json.dumps([_facts(entry) for entry in entries], indent=2))
        return
    if not entries:
        said = "no models were added: kwaai models add FILE (these are not what other lobes bring)"
        click.echo(f"{said}\nall models of a node that runs: {_listing()}", err=True)
    for entry in entries:
        condition = "" if entry.condition() == "ready" else f"  {entry.condition()}"
        size, path = f"{entry.size / 1e6:,.1f} MB", click.format_filename(entry.path)
        click.echo(f"{entry.id:<36} {size:>12}  {entry.digest[:12]}  {path}{condition}")


@models.command()
@click.argument("file", type=click.Path())
@click.option("--id", "id_", default="", help="What the API calls it; else from the file's name.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def add(file: str, id_: str, as_json: bool) -> None:
    """Check FILE, a GGUF file, and offer it. It stays where it is."""
    from kwaai_lobe_models.index import describe

    path = Path(file).expanduser().absolute()
    with contextlib.ExitStack() as bars:
        entry = describe(path, id_, _state() / "digests", _progress(bars, path))
    entry, before = _index().add(entry, rename=bool(id_))
    if before is not None:
        renamed = "" if before.id == entry.id else f", and is called {entry.id} now"
        old, new = map(click.format_filename, (before.path, entry.path))
        click.echo(f"{before.id} was {old}; it is {new}{renamed}", err=True)
    click.echo(json.dumps(_facts(entry)) if as_json else f"{entry.id}  {entry.digest}")


@models.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(name: str, as_json: bool) -> None:
    """Show the model NAME, an id or the beginning of a digest."""
    from kwaai_lobe_models.index import find

    facts = _facts(find(_offered(), name))
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        added = datetime.fromtimestamp(facts["added"]).astimezone().isoformat(" ")
        for key, value in (facts | {"added": added}).items():
            if key not in ("mtime", "inode"):  # only of use to compare with
                click.echo(f"{key:<15} {value}")


@models.command()
@click.argument("name")
def rm(name: str) -> None:
    """Offer the model NAME no longer. Its file is not touched."""
    from kwaai_core import RequestError
    from kwaai_lobe_models.index import find

    try:
        entry = _index().remove(name)
    except RequestError:
        found = find(_offered(), name)  # raises the same, unless it is in the folder
        folder = click.format_filename(str(Path(found.path).parent))
        raise RequestError(
            f"{found.id} was not added, it lies in {folder}: move the file away, or choose another "
            "[models] folder"
        ) from None
    there = "is gone" if entry.condition() == "missing" else "is still there"
    click.echo(f"{entry.id} is no longer offered; {click.format_filename(entry.path)} {there}")


def _facts(entry: Entry) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(entry) | {"condition": entry.condition()}
