"""llama.cpp's own programs, built from the sources of the installed llama-cpp-python.

Its wheel has the libraries and no programs; its source distribution has all of llama.cpp, at the
commit of those libraries. What is built is kept, so the minutes that it takes are spent once.
"""

import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

from benchmarks.models import cache

TARGETS = ("llama-bench", "llama-server")
_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",  # it would be fetched
)


def llama_tool(name: str) -> Path:
    """One of :data:`TARGETS`; where it is not there yet, cmake, a compiler and pip's index are."""
    folder = cache() / f"llama.cpp-{version('llama-cpp-python')}"
    if not all((folder / target).exists() for target in TARGETS):
        folder.mkdir(exist_ok=True)
        _build(folder)
    return folder / name


def _build(into: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="building-", dir=into) as folder:
        sources, build = _sources(Path(folder)), Path(folder, "build")
        # The kernels are those for this CPU, as the wheel has them; it takes CMAKE_ARGS as well.
        added = shlex.split(os.environ.get("CMAKE_ARGS", ""))
        _run("cmake", "-S", str(sources), "-B", str(build), *added, *_OPTIONS)
        jobs = str(os.cpu_count())
        _run("cmake", "--build", str(build), "--parallel", jobs, "--target", *TARGETS)
        for target in TARGETS:
            (build / "bin" / target).replace(into / target)


def _sources(folder: Path) -> Path:
    """llama.cpp's, as they are in the source distribution of the release that is installed."""
    release = version("llama-cpp-python")
    _run(
        sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python",
        "--dest", str(folder), f"llama-cpp-python=={release}",
    )  # fmt: skip
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("*/vendor/llama.cpp"))


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
