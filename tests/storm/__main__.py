"""Chats in a storm: ``python -m tests.storm`` in the repository."""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import trio

from tests.storm.storm import Chat, Storm, Weather


async def _blown(storm: Storm) -> dict[str, int]:
    async with storm.opened():
        storm.tell(f"{len(storm.texts)} chats at once, from now on")
        await storm.blow()
        return await storm.leaked()


def _figures(storm: Storm, leaked: dict[str, int]) -> dict[str, object]:
    struck = [chat for chat in storm.chats if chat.struck]
    gaps = sorted(chat.answer.gap for chat in struck)
    return {
        "chats": len(storm.chats),
        "equal": _equal(storm.chats),
        "lost a node of their route": len(struck),
        "of these equal": _equal(struck),
        "of the chats at once, lost a node": len({chat.question for chat in struck}),
        "nodes killed": len(storm.kills),
        "rows replayed": sum(chat.answer.replayed for chat in struck),
        "median of the longest gaps (s)": round(statistics.median(gaps), 2) if gaps else None,
        "longest gap (s)": round(gaps[-1], 2) if gaps else None,
        "sessions left": sum(leaked.values()),
    }


def _equal(chats: Sequence[Chat]) -> int:
    return sum(chat.equal for chat in chats)


def main() -> None:
    parser = argparse.ArgumentParser(prog="storm", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="how long (default: 2)")
    parser.add_argument("--chats", type=int, default=20, help="at once (default: 20)")
    parser.add_argument("--seed", type=int, default=1, help="of who is killed, and when")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the nodes end with it
    began = time.monotonic()

    def tell(line: str) -> None:
        sys.stderr.write(f"{time.monotonic() - began:6.1f} s  {line}\n")

    with tempfile.TemporaryDirectory(prefix="kwaai-storm-") as folder:
        weather = Weather(chats=options.chats, seconds=60 * options.minutes)
        storm = Storm(Path(folder), weather, Random(options.seed), tell)
        leaked = trio.run(_blown, storm)
    figures = _figures(storm, leaked)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    for name, figure in figures.items():
        sys.stdout.write(f"{name:>36}  {figure}\n")
    good = _equal(storm.chats) == len(storm.chats) and not leaked
    sys.exit(not (good and any(chat.struck for chat in storm.chats)))


if __name__ == "__main__":
    main()
