"""A swarm whose nodes are far from one another: ``python -m tests.delays`` in the repository."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

import trio

from kwaai_core.testing.models import Shape, write_random_model
from tests.delays.net import far_hosts, missing
from tests.delays.swarm import NAMES, Crossing, FarSwarm

SHAPE = Shape("qwen2", blocks=6)


async def _crossed(swarm: FarSwarm, times: int) -> list[Crossing]:
    async with swarm.opened():
        await swarm.cross()  # opens links, and lets nodes measure one another
        calm = [await swarm.cross() for _ in range(times)]
        return [*calm, await swarm.cross(kill=True)]


def _figures(crossings: list[Crossing]) -> dict[str, object]:
    *calm, struck = crossings
    ratios = [one.token_seconds * 1e3 / one.plan["latency_ms"] for one in calm]
    return {
        "hops between hosts": len(calm[-1].peers) - 1,
        "predicted, ms a token": [round(one.plan["latency_ms"], 1) for one in calm],
        "measured, ms a token": [round(one.token_seconds * 1e3, 1) for one in calm],
        "measured of predicted": [round(ratio, 3) for ratio in ratios],
        "predicted, ms to the first token": [round(one.plan["first_token_ms"], 1) for one in calm],
        "measured, ms to the first token": [round(one.first_seconds * 1e3, 1) for one in calm],
        "texts equal": [one.equal for one in crossings],
        "tokens": struck.answer.tokens,
        "rows replayed after the kill": struck.answer.replayed,
        "longest wait after the kill, ms": round(struck.answer.gap * 1e3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="delays", description=__doc__)
    parser.add_argument("--ms", type=float, default=20.0, help="for each packet (default: 20)")
    parser.add_argument("--tokens", type=int, default=60, help="of an answer (default: 60)")
    parser.add_argument("--times", type=int, default=3, help="undisturbed (default: 3)")
    parser.add_argument("--model", type=Path, help="a GGUF file; else a small random one")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    if why := missing():
        sys.exit(why)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the nodes end with it
    began = time.monotonic()

    def tell(line: str) -> None:
        sys.stderr.write(f"{time.monotonic() - began:6.1f} s  {line}\n")

    with (
        tempfile.TemporaryDirectory(prefix="kwaai-delays-") as folder,
        far_hosts(NAMES, options.ms / 1e3) as places,
    ):
        model = options.model or write_random_model(Path(folder) / "model.gguf", SHAPE)
        swarm = FarSwarm(Path(folder), places, model, options.tokens, tell)
        crossings = trio.run(_crossed, swarm, options.times)
    figures = _figures(crossings)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    for name, figure in figures.items():
        sys.stdout.write(f"{name:>34}  {figure}\n")
    sys.exit(not all(one.equal for one in crossings))


if __name__ == "__main__":
    main()
