"""``python -m benchmarks.plan``: how long a route over a thousand peers takes to be planned.

A model of 80 blocks in units of 4; each peer holds 1 to 10 of them in a row, with times drawn at
random. Per swarm: a plan without limits; one with a limit on the time to the first token that binds
(between what the fastest route takes and the earliest that there is); one that has to be refused;
the second route; the mending of one whose first hop is lost. Each in both modes, on fresh swarms.
"""

from __future__ import annotations

import argparse
import gc
import platform
import random
import time
from collections.abc import Callable
from dataclasses import replace

from kwaai_core import Span
from kwaai_lobe_router.planning import backup, mend, plan
from kwaai_lobe_router.refusals import Late
from kwaai_lobe_router.swarm import Candidate, Plan, Swarm, Unit, Wish

BLOCKS, UNIT, MOST = 80, 4, 10
LIMIT_MS = 50.0
MS, US = 1_000_000, 1_000


def drawn_swarm(r: random.Random, peers: int) -> Swarm:
    return Swarm("80 blocks", BLOCKS, tuple(drawn(r, n) for n in range(peers)), overhead=MS)


def drawn(r: random.Random, number: int) -> Candidate:
    """A peer; fast ones are rare, near ones too, and the two have nothing to do with each other."""
    units = r.randint(1, MOST)
    first = r.randint(0, BLOCKS // UNIT - units)
    step = round(r.lognormvariate(1.5, 0.6) * MS)
    row = round(step * r.uniform(0.02, 0.3))
    spans = (Span(lo * UNIT, (lo + 1) * UNIT) for lo in range(first, first + units))
    return Candidate(
        f"peer {number}",
        tuple(Unit(span, step + r.randrange(US), row + r.randrange(US)) for span in spans),
        link=round(r.lognormvariate(3, 0.8) * MS),
        row_bytes=r.choice((2048, 3584, 16384)),
        queue=r.choice((0, 0, r.randrange(20 * MS))),
        fingerprint=r.choice("aab"),
        exact=True,
    )


def timed(times: list[float], act: Callable[[], object]) -> object:
    start = time.thread_time()  # nothing here waits: what others do on this machine does not count
    result = act()
    times.append((time.thread_time() - start) * 1e3)
    return result


def measure(swarm: Swarm, wish: Wish, r: random.Random, times: dict[str, list[float]]) -> None:
    mode = "exact" if wish.exact else "fast"

    def under(what: str, act: Callable[[], object]) -> object:
        return timed(times.setdefault(f"{what}, {mode}", []), act)

    fastest = under("plan", lambda: plan(swarm, wish))
    impossible = replace(wish, max_first_token=1)
    refused = under("refusal", lambda: plan(swarm, impossible))
    if not isinstance(fastest, Plan) or not isinstance(refused, Late):
        raise SystemExit(f"a random swarm without a route: {fastest}, {refused}")
    if refused.found < fastest.first_token:
        asked = r.randrange(refused.found, fastest.first_token)
        limited = replace(wish, max_first_token=asked)
        if not isinstance(under("limit that binds", lambda: plan(swarm, limited)), Plan):
            raise SystemExit("a limit that a route keeps was refused")
    under("backup", lambda: backup(swarm, wish, fastest))
    lost = {fastest.hops[0].peer}
    under("mend", lambda: mend(swarm, wish, fastest.hops, lost))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swarms", type=int, default=200)
    parser.add_argument("--peers", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    times: dict[str, list[float]] = {}
    for number in range(options.swarms):
        r = random.Random(options.seed + number)
        swarm = drawn_swarm(r, options.peers)
        gc.collect()
        for exact in (False, True):
            wish = Wish(prompt=512, tokens=1024, exact=exact, fingerprint="a", salt=str(number))
            measure(swarm, wish, r, times)
    print(f"{options.peers} peers, {options.swarms} swarms, Python {platform.python_version()}")
    print("| | n | median ms | p99 ms | most ms |\n|---|---|---|---|---|")
    for what, taken in sorted(times.items()):
        taken.sort()
        p99 = taken[min(len(taken) - 1, len(taken) * 99 // 100)]
        median = taken[len(taken) // 2]
        print(f"| {what} | {len(taken)} | {median:.1f} | {p99:.1f} | {taken[-1]:.1f} |")
    print(f"to reach: p99 ≤ {LIMIT_MS:.0f} ms")


if __name__ == "__main__":
    main()
