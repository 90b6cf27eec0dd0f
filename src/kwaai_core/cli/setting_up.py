"""What every command that opens a node does first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from kwaai_core.config import Config, load_config
from kwaai_core.lobes import Lobe, find_lobes, select


def tables_of(lobes: Sequence[Lobe]) -> dict[str, type[Any]]:
    """The tables of `kwaai.toml` that lobes have, by name."""
    return {offer.name: offer.settings for lobe in lobes for offer in lobe.offers.values()}


def warn(config: Config, installed: Sequence[Lobe]) -> None:
    """Check a configuration, and say on stderr what of it does nothing."""
    broken = [lobe.name for lobe in installed if lobe.error]
    for warning in config.check(tables_of(installed), broken):
        click.echo(f"warning: {warning}", err=True)


def prepare(flags: Mapping[str, Any]) -> tuple[Config, list[Lobe]]:
    """The checked configuration, and the lobes of this run; warnings go to stderr."""
    config = load_config(flags)
    installed = find_lobes()
    warn(config, installed)
    return config, select(installed, config.lobes)
