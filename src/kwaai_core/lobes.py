"""Find, vet and load lobes. One that fails is a value with its cause, and never a crash."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pluggy

from kwaai_core import defaults, hookspecs
from kwaai_core.errors import ConfigError, RoleConflict
from kwaai_core.roles import Offer
from kwaai_core.types import MANY, RoleName

GROUP = "kwaai.lobes.v0"
"""The entry points of lobes; the API's version is in the name, so another one is never imported."""

_FAMILY = "kwaai.lobes."


@dataclass(frozen=True, slots=True)
class Lobe:
    """An installed lobe: what it offers, or in ``error`` why it cannot be used.

    ``claims`` are the roles that a failed lobe was meant for, as far as its source tells.
    """

    name: str
    version: str
    plugin: Any = None
    offers: Mapping[RoleName, Offer[Any]] = field(default_factory=dict)
    claims: frozenset[RoleName] = frozenset()
    error: str = ""


def find_lobes() -> list[Lobe]:
    """Every installed lobe, loaded and asked for its offers, sorted by name.

    With ``KWAAI_STRICT=1`` a lobe that fails raises instead.
    """
    found: dict[str, list[EntryPoint]] = {}
    strangers = []
    everything = entry_points()
    for group in everything.groups:
        if group == GROUP:
            for point in everything.select(group=group):
                found.setdefault(point.name, []).append(point)
        elif group.startswith(_FAMILY):
            strangers += [_stranger(point) for point in everything.select(group=group)]
    lobes = [_load(name, points) for name, points in found.items()]
    return sorted([*lobes, *strangers], key=lambda lobe: lobe.name)


def _stranger(point: EntryPoint) -> Lobe:
    return Lobe(
        point.name,
        _version(point),
        error=f"made for {point.group}, and this is {GROUP}: install a version of it for this one",
    )


def _version(point: EntryPoint) -> str:
    return point.dist.version if point.dist else ""


def _load(name: str, points: Sequence[EntryPoint]) -> Lobe:
    version = _version(points[0])
    owners = sorted({point.dist.name for point in points if point.dist})
    if len(owners) > 1:
        both = " and ".join(owners)
        return Lobe(name, version, error=f"{both} both provide it: uninstall one of them")
    try:
        plugin = points[0].load()
        return Lobe(name, version, plugin, offers_of(plugin, name))
    except Exception as error:  # a lobe is foreign code: whatever its import raises is its fault
        if os.environ.get("KWAAI_STRICT") == "1":
            raise
        cause = f"{type(error).__name__}: {error}"
        return Lobe(name, version, claims=_claims(points[0]), error=cause)


def _claims(point: EntryPoint) -> frozenset[RoleName]:
    """The roles whose hooks stand in the source of a lobe that could not be imported."""
    source = f"def provide_{point.name}("  # without a source the name is all there is
    try:
        spec = importlib.util.find_spec(point.module)
        if spec is not None and spec.origin is not None:
            source = Path(spec.origin).read_text()
    except (ImportError, OSError, ValueError):
        pass  # its package is broken too
    named = set(re.findall(r"def provide_(\w+)\(", source))
    return frozenset(role for role in RoleName if role.value in named)


def offers_of(plugin: Any, name: str) -> Mapping[RoleName, Offer[Any]]:
    """What a plugin offers by role. Errors: those of its hooks, and TypeError for a wrong one."""
    manager = _manager()
    manager.register(plugin, name)
    manager.check_pending()  # a hook with an unknown argument raises at registration
    offers = {}
    for role in RoleName:
        for offer in getattr(manager.hook, f"provide_{role.value}")():
            if not isinstance(offer, Offer):
                raise TypeError(f"provide_{role.value} returned {offer!r}, which is no Offer")
            offers[role] = offer
    return offers


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def hook_of(lobe: Lobe, hook: str) -> Any:
    """A lobe's own function for a hook, or None."""
    manager = _manager()
    manager.register(lobe.plugin, lobe.name)
    implementations = getattr(manager.hook, hook).get_hookimpls()
    return implementations[0].function if implementations else None


def select(lobes: Iterable[Lobe], names: Sequence[str] | None) -> list[Lobe]:
    """The lobes of a run: those named, or all. Raises :class:`ConfigError` for an unknown name."""
    by_name = {lobe.name: lobe for lobe in lobes}
    if names is None:
        return list(by_name.values())
    for name in names:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, 1, 0.5)
            hint = (
                f"did you mean “{near[0]}”?"
                if near
                else "installed are: " + (", ".join(by_name) or "none")
            )
            raise ConfigError(f"no lobe “{name}” is installed; {hint} (pip install kwaai-lobe-…)")
    return [by_name[name] for name in dict.fromkeys(names)]


def fill_roles(
    lobes: Sequence[Lobe], chosen: Mapping[str, str]
) -> list[tuple[RoleName, Lobe, Offer[Any]]]:
    """Which offers are opened, in order; core's own fill the roles that no lobe is meant for.

    Errors: :class:`RoleConflict`; :class:`ConfigError` where a chosen lobe does not offer the
    role. A role whose lobe failed stays empty.
    """
    filled = []
    for role in RoleName:
        offering = [lobe for lobe in lobes if role in lobe.offers]
        if role.value in chosen:
            offering = _chosen(role, chosen[role.value], lobes)
        elif role not in MANY and len(offering) > 1:
            raise RoleConflict(role.value, [lobe.name for lobe in offering])
        elif not offering and role in CORE.offers and not claimed(role, lobes):
            offering = [CORE]
        filled += [(role, lobe, lobe.offers[role]) for lobe in offering]
    return filled


def claimed(role: RoleName, lobes: Sequence[Lobe]) -> Lobe | None:
    """The failed lobe that was meant for a role, if there is one."""
    return next((lobe for lobe in lobes if role in lobe.claims), None)


def _chosen(role: RoleName, name: str, lobes: Sequence[Lobe]) -> list[Lobe]:
    lobe = next((lobe for lobe in lobes if lobe.name == name), None)
    if lobe is not None and role in lobe.offers:
        return [lobe]
    if lobe is not None and lobe.error:
        return []  # absent, and shown as failed: nothing stands in for it
    offering = ", ".join(lobe.name for lobe in lobes if role in lobe.offers) or "no lobe"
    raise ConfigError(
        f'kwaai.toml: [roles] {role.value} = "{name}": there is no lobe of this name that offers '
        f"the role in this run; {offering} does"
    )


CORE = Lobe("core", "", defaults, offers_of(defaults, "core"))
"""Core's own modest fillings, through the same hooks as any lobe's."""
