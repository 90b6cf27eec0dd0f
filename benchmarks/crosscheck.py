"""Asks ``llama-bench`` what llama.cpp does on this machine.

The plain loop of :mod:`benchmarks.engine` is ours; that it is as fast as llama.cpp's own tool is
shown by comparing both: ``tox -e bench -- --crosscheck``.
"""

import json
import subprocess

from benchmarks.llama_tools import llama_tool
from benchmarks.models import ModelFile


def rates(model: ModelFile, tokens: int, threads: int, rounds: int) -> dict[str, float]:
    """Tokens a second of ``decode`` and ``prefill`` as llama-bench measures them."""
    done = subprocess.run(
        [
            str(llama_tool("llama-bench")), "-m", str(model.path), "-p", "512", "-n", str(tokens),
            "-t", str(threads), "-r", str(rounds), "-fa", "1", "-ngl", "0", "-o", "json",
        ],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    found = {
        ("prefill" if r["n_prompt"] else "decode"): r["avg_ts"] for r in json.loads(done.stdout)
    }
    return {name: float(rate) for name, rate in found.items()}
