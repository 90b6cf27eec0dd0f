"""Find, vet and load lobes. One that fails is a value with its cause, and never a crash."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, get_type_hints

import pluggy

from kwaai_core import defaults, hookspecs
from kwaai_core.config import RESERVED, nearest
from kwaai_core.errors import ConfigError, RoleConflict, cause_of, place_in
from kwaai_core.roles import Offer
from kwaai_core.types import MANY, LobeStatus, RoleName

GROUP = "kwaai.lobes.v0"
"""The entry points of lobes; the API's version is in the name, so another one is never imported."""

_FAMILY = "kwaai.lobes."
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Lobe:
    """An installed lobe: what it offers, or in ``error`` why it cannot be used.

    ``claims`` are the roles that a failed lobe was meant for, as far as its source tells;
    ``package`` is the one that its code is in.
    """

    name: str
    version: str
    plugin: Any = None
    offers: Mapping[RoleName, Offer[Any]] = field(default_factory=dict)
    claims: frozenset[RoleName] = frozenset()
    error: str = ""
    package: str = ""


def find_lobes() -> list[Lobe]:
    """Every installed lobe, loaded and asked for its offers, sorted by name.

    With ``KWAAI_STRICT=1`` a lobe that fails raises instead.
    """
    found: dict[str, list[EntryPoint]] = {}
    strangers: list[EntryPoint] = []
    everything = entry_points()
    for group in everything.groups:
        if group == GROUP:
            for point in everything.select(group=group):
                found.setdefault(point.name, []).append(point)
        elif group.startswith(_FAMILY):
            strangers += everything.select(group=group)
    lobes = [_load(name, points) for name, points in found.items()]
    lobes += [_stranger(point) for point in strangers if point.name not in found]
    return sorted(lobes, key=lambda lobe: lobe.name)


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
    if not _NAME.fullmatch(name):
        return Lobe(name, version, error="its name must be like my-lobe-2")
    if len(owners) > 1:
        both = " and ".join(owners)
        return Lobe(name, version, error=f"{both} both provide it: uninstall one of them")
    package = points[0].module.partition(".")[0]
    try:
        plugin = points[0].load()
        return Lobe(name, version, plugin, offers_of(plugin, name), package=package)
    except (Exception, SystemExit) as error:  # a lobe is foreign code, and its fault is its own
        if os.environ.get("KWAAI_STRICT") == "1":
            raise
        place = place_in(package, error)
        cause = cause_of(error) + place + "; KWAAI_STRICT=1 shows more" * bool(place)
        return Lobe(name, version, claims=_claims(points[0]), error=cause)


def _claims(point: EntryPoint) -> frozenset[RoleName]:
    """The roles whose hooks stand in the source of a lobe that could not be imported."""
    found = {point.name}  # without a source the name is all there is
    try:
        spec = importlib.util.find_spec(point.module.partition(".")[0])
        for place in (spec.submodule_search_locations or [spec.origin or ""]) if spec else ():
            path = Path(place)
            for source in path.rglob("*.py") if path.is_dir() else [path]:
                found.update(re.findall(r"\bprovide_(\w+)", source.read_text("utf-8", "replace")))
    except (ImportError, OSError, ValueError):
        pass  # not even its files are there
    return frozenset(role for role in RoleName if role.value in found)


def offers_of(plugin: Any, name: str) -> Mapping[RoleName, Offer[Any]]:
    """What a plugin offers by role. Errors: those of its hooks, and TypeError for a wrong one."""
    manager = _manager()
    manager.register(plugin, name)
    manager.check_pending()  # a hook with an unknown argument raises at registration
    for hook in (hook for hook, spec in vars(hookspecs).items() if hasattr(spec, "kwaai_spec")):
        if inspect.isroutine(found := getattr(plugin, hook, None)) and not hasattr(
            found, "kwaai_impl"
        ):
            raise TypeError(f"{hook} is not marked with @hookimpl, so nobody would call it")
    offers = {}
    for role in RoleName:
        hook = f"provide_{role.value}"
        for offer in getattr(manager.hook, hook)():
            offers[role] = _vetted(offer, hook)
    return offers


def _vetted(offer: object, hook: str) -> Offer[Any]:
    if not isinstance(offer, Offer):
        raise TypeError(f"{hook} returned {offer!r}, which is no Offer")
    if not callable(offer.open):
        raise TypeError(f"{hook}: the offer's open is {offer.open!r}, which cannot be called")
    if not _NAME.fullmatch(str(offer.name)):
        raise TypeError(f"{hook}: the offer's name is {offer.name!r}, and must be like my-lobe-2")
    if offer.name in RESERVED:
        raise TypeError(f"{hook}: the offer is called {offer.name}, and so is a table of core")
    if not is_dataclass(offer.settings):
        raise TypeError(f"{hook}: the settings are {offer.settings!r}, and must be a dataclass")
    get_type_hints(offer.settings)  # which raises for an annotation that leads nowhere
    for one in fields(offer.settings):
        if one.default is MISSING and one.default_factory is MISSING:
            raise TypeError(f"{hook}: the setting {offer.name}.{one.name} has no default")
    return offer


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


def statuses_of(lobe: Lobe, cause: str) -> list[LobeStatus]:
    """What is shown of a lobe of which nothing is open, which is the ``cause``."""
    if lobe.error:
        roles = ", ".join(sorted(lobe.claims)) or "-"
        return [LobeStatus(lobe.name, lobe.version, roles, "", "failed", lobe.error)]
    if not lobe.offers:  # it has commands or routes
        return [LobeStatus(lobe.name, lobe.version, "-", "", "ready")]
    return [
        LobeStatus(lobe.name, lobe.version, role.value, offer.name, "idle", cause)
        for role, offer in lobe.offers.items()
    ]


def select(lobes: Iterable[Lobe], names: Sequence[str] | None) -> list[Lobe]:
    """The lobes of a run: those named, or all. Raises :class:`ConfigError` for an unknown name."""
    by_name = {lobe.name: lobe for lobe in lobes}
    if names is None:
        return list(by_name.values())
    for name in names:
        if name not in by_name:
            raise ConfigError(f"no lobe “{name}” is installed; {nearest(name, by_name)}")
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
        elif not offering and role in CORE.offers and not claimants(role, lobes, chosen):
            offering = [CORE]
        filled += [(role, lobe, lobe.offers[role]) for lobe in offering]
    return filled


def claimants(role: RoleName, lobes: Sequence[Lobe], chosen: Mapping[str, str]) -> list[Lobe]:
    """The lobes that were meant, or chosen, for a role, and could not be loaded."""
    wanted = chosen.get(role.value)
    return [one for one in lobes if one.error and (role in one.claims or one.name == wanted)]


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
