"""``python -m hostile``: the campaign, and single inputs of it again."""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import trio

from hostile.campaign import campaign, culprits
from hostile.subjects import Kind


def main() -> int:
    parser = argparse.ArgumentParser(prog="hostile", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="how many inputs")
    parser.add_argument("--seed", type=int, default=1, help="which inputs")
    parser.add_argument("--only", type=int, nargs="+", help="only the inputs of these numbers")
    parser.add_argument("--node", choices=("kwaai", "stock"), default="kwaai")
    said = parser.parse_args()
    numbers = said.only or range(said.inputs)
    with tempfile.TemporaryDirectory() as folder:
        return trio.run(partial(_run, said.node, said.seed, numbers, Path(folder)))


async def _run(kind: Kind, seed: int, numbers: list[int] | range, folder: Path) -> int:
    report = await campaign(kind, seed, numbers, folder)
    print(report)
    again = f"repeat it with: python -m hostile --node {kind} --seed {seed} --only"
    for found in await culprits(kind, seed, report.suspects, folder):
        print(found, again, found.number, sep="\n")
    return bool(report.failures)


if __name__ == "__main__":
    sys.exit(main())
