"""The matrix of faults with real processes: ``python -m tests.faults`` in the repository."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import trio

from tests.faults.campaign import Outcome, run
from tests.faults.matrix import Cell, cells, everything, left_out
from tests.faults.report import document, table


def _tell(outcome: Outcome) -> None:
    words = "; ".join(outcome.problems) or "good"
    gap = f"gap {outcome.gap:.2f} s, replay {outcome.replay:.2f} s, {outcome.replayed} rows"
    hosts = ", ".join(outcome.struck)
    sys.stderr.write(f"{outcome.cell} ({hosts}): {gap}, {outcome.seconds:.1f} s in all: {words}\n")
    sys.stderr.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the order, and of what is drawn")
    parser.add_argument("--cells", type=int, help="how many, from the first on; else all")
    parser.add_argument("--skip", type=int, default=0, help="of these, so many at the beginning")
    parser.add_argument("--only", default="", help='cells with this in their name: "kill node /"')
    parser.add_argument("--json", type=Path, help="a file for all that was measured")
    parser.add_argument("--list", action="store_true", help="name the cells, and do nothing")
    options = parser.parse_args()
    chosen = [cell for cell in cells(options.seed) if options.only in str(cell)]
    chosen = chosen[options.skip :][: options.cells]
    if options.list:
        _list(chosen)
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the nodes end with it
    with tempfile.TemporaryDirectory(prefix="kwaai-faults-") as folder:
        outcomes = trio.run(run, chosen, options.seed, Path(folder), _tell)
    if options.json:
        options.json.write_text(json.dumps(document(outcomes), indent=1))
    for key in (lambda c: c.fault, lambda c: c.place, lambda c: c.phase):
        sys.stdout.write(table(outcomes, key) + "\n\n")
    for outcome in outcomes:
        for problem in outcome.problems:
            sys.stdout.write(f"{outcome.cell}: {problem}\n")
    sys.exit(any(outcome.problems for outcome in outcomes))


def _list(chosen: Sequence[Cell]) -> None:
    for cell in chosen:
        sys.stdout.write(f"{cell}\n")
    sys.stdout.write("\nleft out:\n")
    reasons: dict[str, int] = {}
    for cell in everything():
        if reason := left_out(cell):
            reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in reasons.items():
        sys.stdout.write(f"{count:>4}  {reason}\n")


if __name__ == "__main__":
    main()
