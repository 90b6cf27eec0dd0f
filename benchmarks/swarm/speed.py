"""How fast a chain of nodes is: decoding, prefill, eight answers at once, and what a hop costs."""

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from benchmarks.contender import Contender
from benchmarks.engine import Settings
from benchmarks.measure import (
    CONTEXT,
    REFERENCES,
    SETTLE_S,
    STREAMS,
    Effort,
    Mode,
    Pair,
    Row,
    fastest,
    length_of,
    prompts_of,
    reference_texts,
    value,
)
from benchmarks.plain import Plain
from benchmarks.report import Cell, ratio_cell, text_of
from benchmarks.swarm.chain import Arrangement, Chain, on_core, shares
from kwaai_core.gguf import GgufFile
from kwaai_lobe_llama.planning import row_limits

HOP_MS = 1.0


@dataclass(frozen=True, slots=True)
class Layout:
    """Nodes, each on a core of its own or all on all cores; the rows that are measured, with what
    they should reach."""

    nodes: int
    own_cores: bool
    reach: dict[Row, float]

    @property
    def words(self) -> str:
        return f"{self.nodes} nodes, {'own cores' if self.own_cores else 'shared'}"


LAYOUTS = (
    Layout(2, True, {"decode": 0.90}),
    Layout(2, False, {"decode": 0.88, "prefill": 0.95, "decode_8": 0.90}),
    Layout(4, False, {"decode": 0.80}),
)
WORDS: dict[Row, str] = {
    "decode": "decode (tokens/s)",
    "decode_8": "decode, 8 streams together (tokens/s)",
    "prefill": "prefill of 512 tokens (tokens/s)",
}


def speed_cells(
    name: str, file: GgufFile, layout: Layout, mode: Mode, effort: Effort
) -> Iterator[Cell]:
    """Every row of one layout in one mode, all contenders in turn in every round."""
    rows = [row for row in effort.rows if row in layout.reach]
    exact, cores = mode == "exact", sorted(os.sched_getaffinity(0))
    if layout.own_cores and len(cores) < layout.nodes:
        return
    arranged = Arrangement(
        shares(file.blocks, layout.nodes), exact, tuple(cores) if layout.own_cores else (), CONTEXT
    )
    pairs: dict[Row, list[Pair]] = {row: [] for row in rows}
    hops: list[float] = []
    with ExitStack() as stack:
        plain = _Plains(stack, plain_settings(file, exact=exact), rows, own_core=layout.own_cores)
        chain = stack.enter_context(Chain(file.path, arranged))
        chain.run(["Open the links."], 4)
        for i in range(effort.rounds):
            for row in rows:
                pairs[row].append(_pair(i, row, mode, plain, chain, effort, hops))
    for row in rows:
        values = [(value(row, pair.plain), value(row, pair.node)) for pair in pairs[row]]
        words = f"{layout.words}: {WORDS[row]}"
        cell = ratio_cell(name, mode, words, plain.words(row), values, layout.reach[row])
        text, counts = text_of(pairs[row])
        yield replace(cell, text=text, counts=counts)
    hop, reach = statistics.median(hops), f"≤ {HOP_MS}"
    words = f"{layout.words}: a hop's wire and waking (ms a token)"
    yield Cell(name, mode, words, "", 0.0, hop, hop, reach, hop <= HOP_MS, len(hops))


class _Plains:
    """Plain llama.cpp, in whichever way is fastest for each row: on one core, or on all."""

    def __init__(
        self, stack: ExitStack, settings: Settings, rows: Sequence[Row], *, own_core: bool
    ) -> None:
        ways = (True,) if settings.exact else (True, False)
        self._cores = sorted(os.sched_getaffinity(0))[:1] if own_core else ()
        with on_core(self._cores):
            plains = [stack.enter_context(Plain(replace(settings, flash=on))) for on in ways]
            self.twin = plains[0]
            self._best = {row: fastest(plains, row) for row in rows}

    def of(self, row: Row) -> Plain:
        plain, threads = self._best[row]
        plain.threads(threads)
        return plain

    def reference(self, mode: Mode, prompts: Sequence[str], length: int) -> tuple[str, ...]:
        with on_core(self._cores):
            return reference_texts(self.twin, mode, prompts, length)

    def words(self, row: Row) -> str:
        plain, threads = self._best[row]
        flash = "on" if plain.settings.flash else "off"
        return f"plain, {threads} thread{'s'[: threads > 1]}, flash attention {flash}"


def plain_settings(file: GgufFile, *, exact: bool) -> Settings:
    """Plain llama.cpp with room for as many sessions as a node."""
    settings = Settings(file.path, CONTEXT * STREAMS, STREAMS, 1, exact=exact)
    if not exact:
        return settings
    types = [tensor.type for tensor in file.tensors if len(tensor.shape) > 1]
    return replace(settings, rows=row_limits(types)["max_rows"])


def _pair(
    i: int, row: Row, mode: Mode, plains: _Plains, chain: Chain, effort: Effort, hops: list[float]
) -> Pair:
    plain = plains.of(row)
    prompts = prompts_of(plain, row, seed=1000 * (i + 1) + sum(map(ord, row)))
    length = length_of(row, effort.tokens)
    order: list[Contender] = [plain, chain] if i % 2 == 0 else [chain, plain]
    runs = {}
    for contender in order:
        time.sleep(SETTLE_S)
        runs[contender] = contender.run(prompts, length)
    if row == "decode":
        hops += chain.hops()
    pair = Pair(runs[plain], runs[chain], ())
    if i < REFERENCES:
        pair = replace(pair, reference=plains.reference(mode, prompts, length))
    return pair
