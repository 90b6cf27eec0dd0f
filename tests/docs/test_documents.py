"""The documents are true: links lead somewhere, code parses, the pages say what the code does."""

import ast
import dataclasses
import importlib
import inspect
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kwaai_core import Offer, RoleName, hookspecs
from kwaai_core.cli import cli

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("plugins/*/README.md")),
]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of every fenced block."""
    for _, language, text in FENCE.findall(page.read_text()):
        yield language, inspect.cleandoc("\n" + text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the built documents spell them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


@each_page
def test_code_parses(page: Path) -> None:
    for language, text in blocks(page):
        match language:
            case "python":
                ast.parse(text)
            case "toml":
                tomllib.loads(text)
            case "json":
                json.loads(text)
            case "sh":
                subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@each_page
def test_commands_of_kwaai_exist(page: Path) -> None:
    shell = "\n".join(text for language, text in blocks(page) if language == "sh")
    inline = re.findall(r"`(kwaai [^`\n]*)`", page.read_text())
    for line in [*shell.splitlines(), *inline]:
        if (words := line.removeprefix("$ ").split()) and words[0] == "kwaai":
            assert_command(words[1:])


def assert_command(words: list[str]) -> None:
    """The words lead to a command of the command line, or to one that a lobe may add."""
    group = cli
    for word in words:
        commands = getattr(group, "commands", None)
        of_lobes = {"demo", "identity", "models", "lobe", "swarm"}
        if commands is None or not word.isalpha() or word in of_lobes:
            return
        assert word in commands, f"there is no “kwaai {' '.join(words)}”"
        group = commands[word]


def test_the_readme_s_two_commands_are_one_line_each_and_there() -> None:
    first, second, *_ = (text for language, text in blocks(ROOT / "README.md") if language == "sh")
    assert (first, second) == ("./quickstart", "./quickstart test")
    assert (ROOT / "quickstart").stat().st_mode & 0o111
    refused = subprocess.run(
        [ROOT / "quickstart", "nonsense"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert "./quickstart test" in refused.stderr


def test_every_hook_is_documented_with_its_arguments() -> None:
    page = (ROOT / "docs/reference/hooks.md").read_text()
    documented = re.findall(r"^## (.*)$", page, re.MULTILINE)
    specs = [hook for name, hook in vars(hookspecs).items() if hasattr(hook, "kwaai_spec")]
    assert documented == [hook.__name__ + signature(hook) for hook in specs]


def signature(hook: object) -> str:
    return str(inspect.signature(hook)).replace("'", "")  # type: ignore[arg-type]


def test_the_hooks_stand_in_the_order_of_the_roles() -> None:
    page = (ROOT / "docs/reference/hooks.md").read_text()
    assert re.findall(r"^## provide_(\w+)", page, re.MULTILINE) == [str(role) for role in RoleName]


def test_every_key_of_the_changelog_is_a_known_kind() -> None:
    kinds = tomllib.loads((ROOT / "towncrier.toml").read_text())["tool"]["towncrier"]["type"]
    known = {kind["directory"] for kind in kinds}
    found = {path.name.split(".")[-2] for path in (ROOT / "changelog.d").glob("*.md")}
    assert found
    assert found <= known


def offers(package: str) -> Iterator[Offer[object]]:
    """What a lobe offers, by its hooks."""
    module = importlib.import_module(package)
    for name in (f"provide_{role}" for role in RoleName):
        if (hook := getattr(module, name, None)) and (offer := hook()) is not None:
            yield offer


def test_the_readme_of_a_lobe_has_its_settings() -> None:
    seen = 0
    for source in sorted(ROOT.glob("plugins/*/src/*/__init__.py")):
        readme = (source.parents[2] / "README.md").read_text()
        for offer in offers(source.parent.name):
            given = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", readme, re.MULTILINE))
            defaults = {f.name: f.default for f in dataclasses.fields(offer.settings)}
            assert {key: f"`{json.dumps(value)}`" for key, value in defaults.items()} == given, (
                readme[:80]
            )
            seen += len(given)
    assert seen >= 10
