"""``python -m benchmarks``: the table that the README quotes."""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import crosscheck
from benchmarks.engine import Settings
from benchmarks.measure import CONTEXT, MODES, PROMPT, STREAMS, Effort, measure
from benchmarks.models import NAMES, ModelFile, model_file
from benchmarks.plain import Plain
from benchmarks.report import Cell, cells, machine, startup_cells, table
from benchmarks.startup import help_times, ready_times


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tox -e bench --", description=sys.modules[__name__].__doc__
    )
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test: 2 rounds of 24 tokens of smollm2"
    )
    parser.add_argument("--rounds", type=int, default=7, help="of every row (default: 7)")
    parser.add_argument("--tokens", type=int, default=64, help="of every decode (default: 64)")
    parser.add_argument(
        "--models", help=f"of {', '.join(NAMES)} (default: all), or GGUF files, with commas"
    )
    parser.add_argument("--modes", default=",".join(MODES), help="fast, exact or both (default)")
    parser.add_argument("--json", type=Path, help="write everything to this file as well")
    parser.add_argument(
        "--crosscheck", action="store_true", help="compare plain with llama-bench (builds it once)"
    )
    return parser.parse_args(given)


def main() -> None:
    options = arguments()
    effort = Effort(
        rounds=2 if options.quick else options.rounds,
        tokens=24 if options.quick else options.tokens,
        modes=tuple(mode for mode in MODES if mode in options.modes.split(",")),
    )
    found: list[Cell] = []
    for cell in _everything(options, effort):
        found.append(cell)
        print(f"  {cell.model} {cell.mode} {cell.row}: {cell.words}", file=sys.stderr, flush=True)
    print("\n".join(f"- {key}: {value}" for key, value in machine().items()), end="\n\n")
    print(table(found))
    if options.json:
        document = {"machine": machine(), "cells": [asdict(cell) for cell in found]}
        options.json.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _everything(options: argparse.Namespace, effort: Effort) -> Iterator[Cell]:
    yield from startup_cells(help_times(5 * effort.rounds), list(ready_times(effort.rounds)))
    for name in (options.models or ("smollm2" if options.quick else ",".join(NAMES))).split(","):
        print(f"{name}, from {time.strftime('%H:%M')}", file=sys.stderr, flush=True)
        path = Path(name).resolve()
        model = ModelFile(path.stem, path, path) if path.suffix == ".gguf" else model_file(name)
        if options.crosscheck:
            yield from _crosschecked(model, effort)
        yield from cells(measure(model, effort))


def _crosschecked(model: ModelFile, effort: Effort) -> Iterator[Cell]:
    cores = len(os.sched_getaffinity(0))
    theirs = crosscheck.rates(model, effort.tokens, cores, effort.rounds)
    with Plain(Settings(model.path, CONTEXT * STREAMS, STREAMS, cores)) as plain:
        runs = [plain.run([plain.prompt(i, PROMPT)], effort.tokens) for i in range(effort.rounds)]
        long = [plain.run([plain.prompt(i, 512)], 1) for i in range(effort.rounds)]
    ours = {
        "decode": sorted(run.rate for run in runs)[len(runs) // 2],
        "prefill": sorted(512 / run.first_s for run in long)[len(long) // 2],
    }
    for row, rate in ours.items():
        ratio = rate / theirs[row]
        yield Cell(
            model.name, "", f"plain's {row} against llama-bench (tokens/s)", "llama-bench",
            theirs[row], rate, ratio, "≥ 0.97", ratio >= 0.97, effort.rounds,
        )  # fmt: skip


if __name__ == "__main__":
    main()
