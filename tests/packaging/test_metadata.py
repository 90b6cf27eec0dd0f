"""The distributions of this repository agree with one another and with the constraints."""

import configparser
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(ROOT.glob("plugins/kwaai-lobe-*"))

each_plugin = pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)


@cache
def project(folder: Path) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return table


def requirements(folder: Path) -> list[Requirement]:
    extras = project(folder).get("optional-dependencies", {}).values()
    lines = [*project(folder)["dependencies"], *(line for extra in extras for line in extra)]
    return [Requirement(line) for line in lines]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): pin for name, pin in found}


def test_there_are_lobes() -> None:
    assert {"kwaai-lobe-echo", "kwaai-lobe-llama"} <= {plugin.name for plugin in PLUGINS}


@each_plugin
def test_a_lobe_is_named_after_its_folder_and_announces_itself(plugin: Path) -> None:
    short = plugin.name.removeprefix("kwaai-lobe-")
    assert project(plugin)["name"] == plugin.name
    entry_points = {"kwaai.lobes.v0": {short: f"kwaai_lobe_{short}"}}
    assert project(plugin).get("entry-points") == entry_points
    assert (plugin / "src" / f"kwaai_lobe_{short}" / "py.typed").exists()
    assert (plugin / "README.md").read_text().startswith(f"# {plugin.name}\n")


@each_plugin
def test_a_lobe_asks_for_this_core_and_for_no_other_lobe(plugin: Path) -> None:
    needs = {need.name: need.specifier for need in requirements(plugin)}
    assert needs["kwaai-core"] == SpecifierSet(">=0.1,<0.2")
    assert needs["kwaai-core"].contains(project(ROOT)["version"])
    assert not [name for name in needs if name.startswith("kwaai-lobe-")]


@each_plugin
def test_a_lobe_has_core_s_licence_python_and_version(plugin: Path) -> None:
    for key in ("license", "requires-python", "version"):
        assert project(plugin)[key] == project(ROOT)[key]


@pytest.mark.parametrize("folder", [ROOT, *PLUGINS], ids=lambda path: path.name)
def test_the_pins_lie_in_the_ranges(folder: Path) -> None:
    wrong = [
        str(need)
        for need in requirements(folder)
        if not need.name.startswith("kwaai-")
        and not need.specifier.contains(pins().get(canonicalize_name(need.name), "0"))
    ]
    assert wrong == []


def test_every_tool_of_tox_is_pinned() -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    lines = [line for section in tox.values() for line in section.get("deps", "").splitlines()]
    named = [line for line in lines if line and line[0] not in "-{"]
    names = {re.sub(r"^[\w-]+: |\[.*\]$", "", line) for line in named}
    assert names
    assert {name for name in names if canonicalize_name(name) not in pins()} == set()


def test_every_lobe_is_tested_and_typed_by_tox() -> None:
    text = (ROOT / "tox.ini").read_text()
    for plugin in PLUGINS:
        assert f"plugins/{plugin.name}\n" in text
        assert f"plugins{{/}}{plugin.name}{{/}}src" in text
        assert plugin.name.removeprefix("kwaai-lobe-") in text.split("env_list =")[1].split("\n")[0]
