"""`kwaai models`: add, list, show and remove local model files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from kwaai_lobe_models.index import Entry, Index


@click.group()
def models() -> None:
    """Keep the model files that this node offers."""


def _folder() -> Path:
    from kwaai_core.config import load_config

    return load_config().state / "lobes" / "models"


def _index() -> Index:
    from kwaai_lobe_models.index import Index

    return Index(_folder())


@models.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON array of objects.")
def ls(as_json: bool) -> None:
    """List the models that were added."""
    entries = _index().entries()
    if as_json:
        click.echo(json.dumps([_facts(entry) for entry in entries], indent=2))
        return
    if not entries:
        click.echo("no models were added: kwaai models add FILE")
    for entry in entries:
        condition = "" if entry.condition() == "ready" else f"  {entry.condition()}"
        size = f"{entry.size / 1e6:,.0f} MB"
        click.echo(f"{entry.id:<36} {size:>10}  {entry.digest[:12]}  {entry.path}{condition}")


@models.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--id", "id_", default="", help="What the API calls it; else from the file's name.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def add(file: Path, id_: str, as_json: bool) -> None:
    """Check FILE, a GGUF file, and offer it. It stays where it is."""
    import time

    from kwaai_lobe_models.index import describe

    with click.progressbar(length=1000, label="hashing", file=sys.stderr) as bar:

        def progress(done: int, total: int) -> None:
            bar.update(done * 1000 // max(total, 1) - bar.pos)

        path = file.expanduser().absolute()
        entry = describe(path, id_, _folder() / "digests", progress, int(time.time()))
        bar.update(1000 - bar.pos)
    _index().add(entry)
    click.echo(json.dumps(_facts(entry)) if as_json else f"{entry.id}  {entry.digest}")


@models.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(name: str, as_json: bool) -> None:
    """Show the model NAME, an id or the beginning of a digest."""
    facts = _facts(_index().find(name))
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        click.echo("\n".join(f"{key:<15} {value}" for key, value in facts.items()))


@models.command()
@click.argument("name")
def rm(name: str) -> None:
    """Offer the model NAME no longer. Its file is not touched."""
    entry = _index().remove(name)
    click.echo(f"{entry.id} is no longer offered; {entry.path} is still there")


def _facts(entry: Entry) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(entry) | {"condition": entry.condition()}
