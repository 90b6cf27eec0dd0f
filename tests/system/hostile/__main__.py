"""The campaign: ``python -m hostile``, in the folder above.

The same inputs go to a node on the stock library, which has to fall, or they would test nothing,
and to a node of ours, which has to hold. One that breaks a node is printed, and how to repeat it.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import trio

from hostile.campaign import campaign, culprit
from hostile.subjects import Kind

OURS: Kind = "kwaai"


def main() -> int:
    parser = argparse.ArgumentParser(prog="hostile", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="how many inputs")
    parser.add_argument("--seed", type=int, default=1, help="which inputs")
    parser.add_argument("--only", type=int, nargs="+", help="only the inputs of these numbers")
    parser.add_argument("--node", choices=("stock", "kwaai", "closed"), help="only this node")
    said = parser.parse_args()
    numbers = said.only or range(said.inputs)
    kinds: Sequence[Kind] = [said.node] if said.node else ["stock", OURS]
    return 0 if all(trio.run(_as_expected, kind, said.seed, numbers) for kind in kinds) else 1


async def _as_expected(kind: Kind, seed: int, numbers: Sequence[int]) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        report = await campaign(kind, seed, numbers, Path(folder), progress=_progress)
        print(f"{kind}: {report}", flush=True)
        if found := await culprit(kind, seed, report.suspects, Path(folder)):
            again = f"python -m hostile --node {kind} --seed {seed} --only {found.number}"
            print(f"{found}\nrepeat it with: {again}", flush=True)
    return bool(report.failures) is (kind == "stock")


def _progress(done: int) -> None:
    if done % 5000 == 0:
        print(f"{done:>9} inputs", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
