"""The import layers of ``.importlinter`` hold, cover everything there is, and would notice."""

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = [path.parent for path in sorted(ROOT.glob("plugins/*/src/*/__init__.py"))]


def contracts() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / ".importlinter")
    return parser


def words(section: str, key: str) -> set[str]:
    return set(contracts()[section][key].split())


def lint(folder: Path, search: list[Path]) -> subprocess.CompletedProcess[str]:
    """``lint-imports`` as ``tox -e lint`` runs it, with what it may import."""
    command = "import sys; from importlinter.cli import lint_imports_command as c; c()"
    path = ":".join(str(entry) for entry in search)
    return subprocess.run(
        [sys.executable, "-c", command, "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": path, "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_contracts_hold() -> None:
    done = lint(ROOT, [ROOT / "src", *(package.parent for package in PACKAGES)])
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_lobe_of_the_repository_is_under_contract() -> None:
    names = {package.name for package in PACKAGES}
    assert names == words("importlinter", "root_packages") - {"kwaai_core"}
    assert names == words("importlinter:contract:core-knows-no-lobe", "forbidden_modules")
    assert names == words("importlinter:contract:lobes-are-independent", "modules")
    assert names == words("importlinter:contract:public-core", "source_modules")


def test_every_module_of_core_has_its_layer() -> None:
    core = ROOT / "src" / "kwaai_core"
    modules = {path.stem for path in core.glob("*.py")} - {"__init__"}
    modules |= {path.parent.name for path in core.glob("*/__init__.py")}
    layers = words("importlinter:contract:layers", "layers") - {"|"}
    assert modules == layers


@pytest.mark.parametrize(
    ("source", "imported"),
    [
        ("kwaai_core/roles.py", "kwaai_core.cli"),
        ("kwaai_core/node.py", "kwaai_lobe_echo"),
        ("kwaai_lobe_echo/__init__.py", "kwaai_lobe_llama"),
        ("kwaai_lobe_echo/__init__.py", "kwaai_core.node"),
    ],
)
def test_a_forbidden_import_breaks_a_contract(tmp_path: Path, source: str, imported: str) -> None:
    packages = [ROOT / "src" / "kwaai_core", *PACKAGES]
    for package in packages:
        for path in package.rglob("*.py"):
            copy = tmp_path / package.name / path.relative_to(package)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(path.read_text())
    (tmp_path / ".importlinter").write_text((ROOT / ".importlinter").read_text())
    with (tmp_path / source).open("a") as module:
        module.write(f"\nimport {imported}\n")
    done = lint(tmp_path, [tmp_path])
    assert done.returncode == 1
    assert f"{source[:-3].replace('/', '.').removesuffix('.__init__')} -> {imported}" in done.stdout
