"""``python -m benchmarks.swarm``: the table of ``docs/explanation/swarm.md``."""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.measure import MODES, Effort
from benchmarks.models import NAMES, model_file
from benchmarks.report import Cell, machine, table
from benchmarks.swarm.costs import cost_cells
from benchmarks.swarm.failure import failure_cells
from benchmarks.swarm.speed import LAYOUTS, speed_cells
from kwaai_core.gguf import read_gguf


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tox -e bench-swarm --", description=sys.modules[__name__].__doc__
    )
    parser.add_argument("--rounds", type=int, default=5, help="of every row (default: 5)")
    parser.add_argument("--tokens", type=int, default=64, help="of every decode (default: 64)")
    parser.add_argument(
        "--models", default="qwen2-0.5b", help=f"of {', '.join(NAMES)}, or GGUF files, with commas"
    )
    parser.add_argument("--modes", default=",".join(MODES), help="fast, exact or both (default)")
    parser.add_argument(
        "--rows",
        default="",
        help="only those of: own cores, shared, 2 nodes, 4 nodes, costs, failures",
    )
    parser.add_argument("--json", type=Path, help="write everything to this file as well")
    return parser.parse_args(given)


def main() -> None:
    options = arguments()
    found: list[Cell] = []
    for cell in _everything(options):
        found.append(cell)
        print(f"  {cell.model} {cell.mode} {cell.row}: {cell.words}", file=sys.stderr, flush=True)
    print("\n".join(f"- {key}: {value}" for key, value in machine().items()), end="\n\n")
    print(table(found))
    if options.json:
        document = {"machine": machine(), "cells": [asdict(cell) for cell in found]}
        options.json.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _everything(options: argparse.Namespace) -> Iterator[Cell]:
    effort = Effort(options.rounds, options.tokens)
    for name in options.models.split(","):
        print(f"{name}, from {time.strftime('%H:%M')}", file=sys.stderr, flush=True)
        path = Path(name).resolve()
        measured = path if path.suffix == ".gguf" else model_file(name).path
        file, name = read_gguf(measured), measured.stem
        for layout in LAYOUTS:
            for mode in MODES:
                if options.rows in layout.words and mode in options.modes.split(","):
                    yield from speed_cells(name, file, layout, mode, effort)
        if options.rows in "costs":
            yield from cost_cells(name, file, options.tokens)
        if options.rows in "failures":
            yield from failure_cells(name, file, options.tokens, max(1, options.rounds // 2))


if __name__ == "__main__":
    main()
