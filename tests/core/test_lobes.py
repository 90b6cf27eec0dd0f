"""Lobes are found, vetted and chosen; one that cannot be used is a value with its cause."""

from __future__ import annotations

from pathlib import Path

import pytest

from kwaai_core.errors import ConfigError, RoleConflict
from kwaai_core.hookspecs import hookimpl
from kwaai_core.lobes import CORE, Lobe, fill_roles, find_lobes, hook_of, offers_of, select
from kwaai_core.roles import Offer
from kwaai_core.types import MANY, RoleName

from .conftest import Install

GOOD = """
from kwaai_core import Offer, hookimpl

@hookimpl
def provide_{role}():
    return Offer("{role}-offer", print)
"""


def found(name: str) -> Lobe:
    (lobe,) = [lobe for lobe in find_lobes() if lobe.name == name]
    return lobe


def test_a_lobe_is_found_by_its_entry_point(install: Install) -> None:
    install("fine", GOOD.format(role="store"))
    lobe = found("fine")
    assert (lobe.version, lobe.error) == ("1.5", "")
    assert {role: offer.name for role, offer in lobe.offers.items()} == {
        RoleName.STORE: "store-offer"
    }


def test_lobes_are_sorted_by_name(install: Install) -> None:
    for name in ("zz", "aa"):
        install(name, GOOD.format(role="store"))
    names = [lobe.name for lobe in find_lobes()]
    assert names == sorted(names)
    assert {"aa", "zz"} <= set(names)


HOOK = "from kwaai_core import Offer, hookimpl\n\n@hookimpl\n"
OFFER = HOOK + "def provide_store():\n    return Offer({})\n"
LOST = (
    "from dataclasses import dataclass\n\n@dataclass\nclass Settings:\n    at: 'Nowhere' = 1\n\n"
    + OFFER.format("'x', print, Settings")
)
NEEDY = (
    "from dataclasses import dataclass\n\n@dataclass\nclass Settings:\n    folder: str\n\n"
    + OFFER.format("'x', print, Settings")
)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such"),
        ("def (:", "SyntaxError: invalid syntax"),
        ("raise ValueError('at import')", "ValueError: at import"),
        (HOOK + "def provide_store(host):\n    return None", "PluginValidationError"),
        (HOOK + "def provide_stoer():\n    return None", "PluginValidationError: unknown hook"),
        (HOOK + "def provide_store():\n    return 'a store'", "TypeError: provide_store returned"),
        (HOOK + "def provide_store():\n    raise OSError('no disk')", "OSError: no disk"),
        (OFFER.format("'x', None"), "TypeError: provide_store: the offer's open is None"),
        (OFFER.format("'X y', print"), "TypeError: provide_store: the offer's name is 'X y'"),
        (OFFER.format("7, print"), "TypeError: provide_store: the offer's name is 7"),
        (OFFER.format("'server', print"), "TypeError: provide_store: the offer is called server"),
        (OFFER.format("'x', print, dict"), "TypeError: provide_store: the settings are <class"),
        (LOST, "NameError: name 'Nowhere' is not defined"),
        (NEEDY, "TypeError: provide_store: the setting x.folder has no default"),
        ("def provide_store(): pass", "TypeError: provide_store is not marked with @hookimpl"),
        ("raise SystemExit('no licence')", "SystemExit: no licence"),
    ],
)
def test_a_broken_lobe_has_its_cause(install: Install, source: str, error: str) -> None:
    install("broken", source)
    lobe = found("broken")
    assert lobe.error.startswith(error)
    assert lobe.offers == {}


def test_strict_raises_what_a_lobe_raised(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KWAAI_STRICT", "1")
    install("broken", "raise ValueError('at import')")
    with pytest.raises(ValueError, match="at import"):
        find_lobes()


def test_a_hook_may_offer_nothing(install: Install) -> None:
    install("modest", HOOK + "def provide_store():\n    return None")
    assert (found("modest").error, found("modest").offers) == ("", {})


def test_a_lobe_for_another_version_of_the_hooks_is_not_imported(install: Install) -> None:
    install("future", "raise SystemExit('imported')", group="kwaai.lobes.v1")
    assert "made for kwaai.lobes.v1, and this is kwaai.lobes.v0" in found("future").error


def test_a_lobe_for_two_versions_of_the_hooks_is_used(install: Install, site: Path) -> None:
    install("both", GOOD.format(role="store"))
    points = site / "kwaai_lobe_both-1.5.dist-info" / "entry_points.txt"
    points.write_text(points.read_text() + "[kwaai.lobes.v1]\nboth = nowhere\n")
    assert found("both").error == ""


@pytest.mark.parametrize("name", ["Mine", "my lobe", "..", "a/b", "a-"])
def test_a_name_that_is_no_folder_and_no_path_of_the_api_is_refused(
    install: Install, site: Path, name: str
) -> None:
    install("mine", GOOD.format(role="store"))
    points = site / "kwaai_lobe_mine-1.5.dist-info" / "entry_points.txt"
    points.write_text(f"[kwaai.lobes.v0]\n{name} = testing_lobe_mine\n")
    assert found(name).error == "its name must be like my-lobe-2"


def test_two_distributions_with_one_name_are_both_named(install: Install) -> None:
    for owner in ("first-lobe", "second-lobe"):
        install("twice", GOOD.format(role="store"), distribution=owner)
    assert found("twice").error == (
        "first-lobe and second-lobe both provide it: uninstall one of them"
    )


@pytest.mark.parametrize("role", list(RoleName))
def test_a_lobe_that_fails_keeps_its_claim(install: Install, role: RoleName) -> None:
    install("broken", "import no_such_module_anywhere\n" + GOOD.format(role=role))
    assert found("broken").claims == {role}


def test_a_claim_is_found_in_any_module_of_a_package(install: Install, site: Path) -> None:
    install("broken", "")
    (site / "testing_lobe_broken.py").unlink()
    package = site / "testing_lobe_broken"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('broken')")
    (package / "hooks.py").write_text(GOOD.format(role="trust"))
    assert found("broken").claims == {RoleName.TRUST}


def test_a_broken_package_around_the_module_harms_nothing(install: Install, site: Path) -> None:
    install("broken", "")
    info = site / "kwaai_lobe_broken-1.5.dist-info" / "entry_points.txt"
    info.write_text("[kwaai.lobes.v0]\nbroken = testing_outer.inner\n")
    (site / "testing_outer").mkdir()
    (site / "testing_outer" / "__init__.py").write_text("raise RuntimeError('broken')")
    assert found("broken").error.startswith("RuntimeError: broken at testing_outer/__init__.py:1;")


def test_without_a_module_a_lobe_claims_what_it_is_called(install: Install, site: Path) -> None:
    install("identity", "")
    (site / "testing_lobe_identity.py").unlink()
    assert found("identity").claims == {RoleName.IDENTITY}


@pytest.mark.parametrize("source", [b"\xff", b"\0"])
def test_a_source_that_is_no_text_harms_nothing(
    install: Install, site: Path, source: bytes
) -> None:
    install("broken", "")
    (site / "testing_lobe_broken.py").write_bytes(source)
    assert found("broken").error


def test_core_s_router_stands_in_for_no_router_that_failed(install: Install) -> None:
    install("broken", "import no_such_module_anywhere\n" + GOOD.format(role="router"))
    broken = found("broken")
    assert (RoleName.ROUTER, CORE) not in [
        (role, lobe) for role, lobe, _ in fill_roles([broken], {})
    ]
    assert [(role, lobe) for role, lobe, _ in fill_roles([], {})] == [(RoleName.ROUTER, CORE)]


def lobe(name: str, *roles: RoleName) -> Lobe:
    return Lobe(name, "1", None, {role: Offer(name, lambda host: None) for role in roles})  # type: ignore[arg-type, return-value]


def test_a_lobe_s_router_stands_before_core_s() -> None:
    mine = lobe("mine", RoleName.ROUTER)
    assert [filled[1] for filled in fill_roles([mine], {})] == [mine]


@pytest.mark.parametrize("role", [role for role in RoleName if role not in MANY])
def test_a_single_role_needs_a_choice(role: RoleName) -> None:
    a, b = lobe("a", role), lobe("b", role)
    with pytest.raises(RoleConflict) as caught:
        fill_roles([b, a], {})
    assert "the lobes “a” and “b” both offer the role" in str(caught.value)
    assert f'under [roles], with the line: {role} = "a"' in str(caught.value)
    assert b in [filled[1] for filled in fill_roles([b, a], {role.value: "b"})]
    assert a not in [filled[1] for filled in fill_roles([b, a], {role.value: "b"})]


@pytest.mark.parametrize("role", sorted(MANY))
def test_the_other_roles_take_any_number(role: RoleName) -> None:
    a, b = lobe("a", role), lobe("b", role)
    assert [filled[1] for filled in fill_roles([a, b], {})] == [a, b, CORE]


def test_a_choice_that_does_not_offer_the_role_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r'\[roles\] router = "other".*; mine does'):
        fill_roles([lobe("mine", RoleName.ROUTER)], {"router": "other"})


def test_a_choice_that_failed_leaves_the_role_empty() -> None:
    failed = Lobe("other", "1", error="ImportError: x")
    assert fill_roles([lobe("mine", RoleName.ROUTER), failed], {"router": "other"}) == []


def test_a_run_has_the_lobes_that_were_named() -> None:
    a, b = Lobe("alpha", ""), Lobe("beta", "")
    assert select([a, b], None) == [a, b]
    assert select([a, b], ["beta", "beta"]) == [b]
    assert select([a, b], []) == []


@pytest.mark.parametrize(
    ("name", "hint"), [("alhpa", "did you mean “alpha”?"), ("zzz", "there are: alpha, beta")]
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        select([Lobe("alpha", ""), Lobe("beta", "")], [name])
    assert str(caught.value).startswith(f"no lobe “{name}” is installed; {hint}")


class Plugin:
    @hookimpl
    def add_commands(self, cli: object) -> str:
        return "added"


def test_one_hook_of_one_lobe() -> None:
    lobe = Lobe("x", "", Plugin(), offers_of(Plugin(), "x"))
    assert hook_of(lobe, "add_routes") is None
    assert hook_of(lobe, "add_commands")("cli") == "added"
