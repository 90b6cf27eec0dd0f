"""``tox -e package``: build every distribution, check it, install the wheels, run ``kwaai``.

Usage: python tests/packaging/distributions.py FOLDER
"""

import os
import shutil
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECTS = [ROOT, *sorted(ROOT.glob("plugins/kwaai-lobe-*"))]
HELP_S = 0.3


def say(text: str) -> None:
    print(f"\n--> {text}", flush=True)


def run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT)


def build(project: Path, into: Path) -> None:
    """An sdist, and the wheel from that sdist: so the sdist is known to be complete."""
    say(f"building {project.name if project != ROOT else 'kwaai-core'}")
    run(sys.executable, "-m", "build", "--outdir", into, project)


def complaints(folder: Path) -> Iterator[str]:
    """What is wrong with the files of the distributions, in words."""
    for wheel in folder.glob("*.whl"):
        names = zipfile.ZipFile(wheel).namelist()
        yield from _missing(wheel.name, names, ("/py.typed", "/LICENSE", "/entry_points.txt"))
        if strays := [name for name in names if name.startswith(("tests/", "docs/", "src/"))]:
            yield f"{wheel.name} carries {strays[0]}"
    for sdist in folder.glob("*.tar.gz"):
        with tarfile.open(sdist) as archive:
            names = archive.getnames()
        yield from _missing(sdist.name, names, ("/pyproject.toml", "/README.md", "/PKG-INFO"))
    if len(list(folder.iterdir())) != 2 * len(PROJECTS):
        yield f"{folder} should hold an sdist and a wheel of each of {len(PROJECTS)} distributions"


def _missing(where: str, names: list[str], wanted: tuple[str, ...]) -> Iterator[str]:
    for end in wanted:
        if not any(name.endswith(end) for name in names):
            yield f"{where} has no {end[1:]}"


def install(wheels: Path, into: Path) -> Path:
    """The ``kwaai`` of a bare environment that has the wheels and what they depend on."""
    say("installing the wheels into a bare environment")
    venv.create(into, with_pip=True, clear=True)
    pip = (into / "bin" / "python", "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "-q", "-c", ROOT / "constraints.txt", *sorted(wheels.glob("*.whl")))
    run(*pip, "check")
    return into / "bin" / "kwaai"


def fastest(command: list[str], rounds: int = 5) -> float:
    """Seconds of the fastest of some runs: what the command takes when nothing else runs."""

    def once() -> float:
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    return min(once() for _ in range(rounds))


def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    wheels = folder / "dist"
    wheels.mkdir(parents=True)
    for project in PROJECTS:
        build(project, wheels)
    say("checking the distributions")
    run(sys.executable, "-m", "twine", "check", "--strict", *sorted(wheels.iterdir()))
    if wrong := list(complaints(wheels)):
        raise SystemExit("\n".join(wrong))
    kwaai = install(wheels, folder / "bare")
    (folder / "kwaai.toml").touch()
    os.environ |= {"KWAAI_STATE": str(folder), "KWAAI_CONFIG": str(folder / "kwaai.toml")}
    for arguments in (["--version"], ["version"], ["lobes"]):
        say(" ".join(["kwaai", *arguments]))
        run(kwaai, *arguments)
    took = fastest([str(kwaai), "--help"])
    say(f"kwaai --help took {took:.3f} s with every lobe installed (allowed: {HELP_S} s)")
    if took > HELP_S:
        raise SystemExit("that is too long: python -X importtime shows what is imported")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
