"""A catalog of local GGUF files, and the commands that keep it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kwaai_core import Catalog, Host, Offer, hookimpl

if TYPE_CHECKING:
    import click


@dataclass(frozen=True, slots=True)
class ModelsSettings:
    """The table ``[models]``; ``folder``: every GGUF file in it is offered too."""

    folder: str = ""

    def __post_init__(self) -> None:
        if self.folder and not Path(self.folder).expanduser().is_dir():
            raise ValueError(f"folder = {self.folder!r}: there is no such folder")


@hookimpl
def provide_catalog() -> Offer[Catalog]:
    """The files that were added, and those of ``[models] folder``."""
    return Offer("models", _open, ModelsSettings)


@hookimpl
def add_commands(cli: click.Group) -> None:
    """`kwaai models`."""
    from kwaai_lobe_models.commands import models

    cli.add_command(models)


def _open(host: Host) -> AbstractAsyncContextManager[Catalog]:
    from kwaai_lobe_models.catalog import open_catalog

    return open_catalog(host)
