"""Builds ``llama-bench`` from the sources of the installed llama-cpp-python, and asks it.

The plain loop of :mod:`benchmarks.engine` is ours; that it is as fast as llama.cpp's own tool is
shown by comparing both. The build takes some minutes and is kept: ``tox -e bench -- --crosscheck``.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

from benchmarks.models import ModelFile, cache


def llama_bench() -> Path:
    """The tool, built where it is not there yet; needs cmake, a compiler, and pip's index once."""
    release = version("llama-cpp-python")
    target = cache() / f"llama-bench-{release}"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(prefix="llama-bench-") as folder:
        _run(
            sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary",
            "llama-cpp-python", "--dest", folder, f"llama-cpp-python=={release}",
        )  # fmt: skip
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as sources:
            sources.extractall(folder, filter="data")
        vendor = next(Path(folder).glob("*/vendor/llama.cpp"))
        _run(
            "cmake", "-S", str(vendor), "-B", folder + "/build", "-DCMAKE_BUILD_TYPE=Release",
            "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF",
        )  # fmt: skip
        jobs = str(os.cpu_count())
        _run("cmake", "--build", folder + "/build", "--target", "llama-bench", "--parallel", jobs)
        (Path(folder) / "build/bin/llama-bench").replace(target)
    return target


def rates(model: ModelFile, tokens: int, threads: int, rounds: int) -> dict[str, float]:
    """Tokens a second of ``decode`` and ``prefill`` as llama-bench measures them."""
    done = subprocess.run(
        [
            str(llama_bench()), "-m", str(model.path), "-p", "512", "-n", str(tokens),
            "-t", str(threads), "-r", str(rounds), "-fa", "1", "-ngl", "0", "-o", "json",
        ],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    found = {
        ("prefill" if r["n_prompt"] else "decode"): r["avg_ts"] for r in json.loads(done.stdout)
    }
    return {name: float(rate) for name, rate in found.items()}


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
