"""What every command that needs the settings and the lobes does first."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import click

from kwaai_core.config import Config, every, load_config
from kwaai_core.lobes import Lobe, fill_roles, find_lobes, select
from kwaai_core.logs import set_up

log = logging.getLogger("kwaai")


def tables_of(lobes: Sequence[Lobe]) -> dict[str, type[Any]]:
    """The tables of `kwaai.toml` that lobes have, by name."""
    return {offer.name: offer.settings for lobe in lobes for offer in lobe.offers.values()}


def prepare(
    flags: Mapping[str, Any] | None = None, *, logged: bool = False
) -> tuple[Config, list[Lobe]]:
    """The configuration, checked as a whole, and the lobes of this run.

    Warnings go to stderr: as log records where ``logged``, which sets the log up.
    Errors: :class:`ConfigError` with all that a node would refuse, a line each.
    """
    config, installed = load_config(flags), find_lobes()
    warnings, chosen = list[str](), list[Lobe]()

    def check() -> None:
        broken = [lobe.name for lobe in installed if lobe.error]
        warnings.extend(config.check(tables_of(installed), broken))

    def choose() -> None:
        chosen.extend(select(installed, config.lobes))
        fill_roles(chosen, config.roles)

    def listen() -> None:
        from kwaai_core.http.keys import check_public
        from kwaai_core.http.tls import tls_context

        settings = config.server  # whose own errors the check has told, in the same words
        every(partial(check_public, settings, config.state), partial(tls_context, settings))

    every(check, choose, listen)
    if logged:
        set_up(config.log.level, config.log.format)
    for warning in warnings:
        if logged:
            log.warning("%s", warning)
        else:
            click.echo(f"warning: {warning}", err=True)
    return config, chosen
