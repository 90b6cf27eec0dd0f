"""Pages that say “type this” work when it is typed."""

import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
from followed import Step, matches, steps

ROOT = Path(__file__).parents[2]
PAGES = [page for page in sorted(ROOT.glob("docs/**/*.md")) if any(steps(page))]
SCRIPTS = {
    "kwaai": "from kwaai_core.cli import main\nmain()",
    "pytest": "import sys, pytest\nsys.exit(pytest.console_main())",
}


@pytest.fixture
def fresh(tmp_path: Path) -> dict[str, str]:
    """The environment variables of a shell in a new virtual environment that has this kwaai."""
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=True)
    (site,) = folder.glob("lib/python*/site-packages")
    ours = sysconfig.get_path("purelib")
    (site / "zz_ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    for name, start in SCRIPTS.items():
        script = folder / "bin" / name
        script.write_text(f"#!{folder}/bin/python\n{start}\n")
        script.chmod(0o755)
    (tmp_path / "kwaai.toml").touch()
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return {
        **clean,
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "KWAAI_STATE": str(tmp_path / "state"),
        "KWAAI_CONFIG": str(tmp_path / "kwaai.toml"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "NO_COLOR": "1",
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_followed_literally(page: Path, tmp_path: Path, fresh: dict[str, str]) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    printed = ""
    for step in steps(page):
        printed = follow(step, folder, fresh, printed)
    for secret in folder.rglob("*.key"):
        assert not secret.stat().st_mode & 0o077, f"others can read {secret.name}"


def follow(step: Step, folder: Path, environment: dict[str, str], printed: str) -> str:
    """Do one step; what has been printed after it."""
    if step.kind == "file":
        path = folder / step.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(step.text)
    elif step.kind == "output":
        assert matches(step.text, printed), f"not as the page says:\n{printed}"
    else:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", step.text],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{step.text}\n{done.stdout}{done.stderr}"
        return done.stdout
    return printed


def test_the_tutorial_builds_the_lobe_that_we_ship() -> None:
    built = {step.path: step.text for step in steps(ROOT / "docs/tutorial/first-lobe.md")}
    shipped = ROOT / "plugins/kwaai-lobe-echo"
    module = "src/kwaai_lobe_echo/__init__.py"
    assert built[module] == (shipped / module).read_text()


def test_output_is_compared() -> None:
    assert matches("a\n…\nd\n", "a\nb\nc\nd\n")
    assert matches("a\n", "a  \n")
    assert not matches("a\n", "a\nb\n")
    assert not matches("a\n…\nd\n", "a\nb\n")
