"""Cells of the table: medians, ratios, how often, and whether the text was the same."""

import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from benchmarks.measure import MODES, Measured, Mode, Pair, Row, value

MIB = 1024 * 1024
REACH: dict[tuple[Mode, Row], float] = {
    ("fast", "decode"): 0.97,
    ("fast", "decode_8"): 0.90,
    ("fast", "prefill"): 0.97,
    ("exact", "decode"): 0.97,
    ("exact", "decode_8"): 0.90,
    ("exact", "prefill"): 0.97,
}
EXACT_REACH: dict[Row, float] = {"decode": 0.95, "decode_8": 0.75, "prefill": 0.82}
WORDS: dict[Row, str] = {
    "decode": "decode, one stream (tokens/s)",
    "decode_8": "decode, 8 streams together (tokens/s)",
    "prefill": "prefill of 512 tokens (tokens/s)",
}
FIRST_MS, HELP_S, READY_S, MEMORY_MB = 20.0, 0.3, 3.0, 120.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One row for one model: what it was compared with, what it reached and what it should.

    ``figure`` is a ratio, or a difference in the unit of ``row``, and ``reach`` its limit.
    ``counts`` says whether the text was the same over enough distinct tokens, where that is asked.
    """

    model: str
    mode: str
    row: str
    against: str
    base: float
    kwaai: float
    figure: float
    reach: str
    met: bool
    n: int
    text: str = ""
    counts: bool = True

    @property
    def words(self) -> str:
        """The figure as it is written: a ratio, a difference, or a time."""
        if self.reach.startswith("≥"):
            return f"{self.figure:.3f}"
        return f"{self.figure:+.1f}" if self.against else f"{self.figure:.3f}"


def cells(measured: Measured) -> Iterator[Cell]:
    """Everything there is to say about one model."""
    name = measured.model.name
    for (mode, row), pairs in measured.pairs.items():
        values = [(value(row, pair.plain), value(row, pair.node)) for pair in pairs]
        against = f"plain, {measured.arrangement[mode, row]}"
        cell = ratio_cell(name, mode, WORDS[row], against, values, REACH[mode, row])
        text, counts = text_of(pairs)
        yield replace(cell, text=text, counts=counts)
        if row != "decode_8":
            yield _first(name, mode, pairs)
    yield from _exactness(measured)
    yield from _memory(measured)


def ratio_cell(
    model: str,
    mode: str,
    row: str,
    against: str,
    values: Sequence[tuple[float, float]],
    reach: float,
) -> Cell:
    """The median of the ratios of (base, kwaai)."""
    figure = statistics.median(b / a for a, b in values)  # drift between rounds cancels
    base, kwaai = (statistics.median(column) for column in zip(*values, strict=True))
    met = figure >= reach
    return Cell(model, mode, row, against, base, kwaai, figure, f"≥ {reach}", met, len(values))


def text_of(pairs: Sequence[Pair]) -> tuple[str, bool]:
    """Of how many streams the text was the reference's, in words, and whether that counts."""
    streams = sum(len(pair.reference) for pair in pairs)
    same = sum(pair.same for pair in pairs)
    distinct = len(frozenset[int]().union(*(pair.plain.tokens for pair in pairs)))
    asked = len(pairs[0].plain.tokens) > 1  # a prefill gives one token
    words = f"same text {same}/{streams}" + (f", {distinct} distinct tokens" if asked else "")
    return words, same == streams and (distinct >= 50 or not asked)


def _first(model: str, mode: str, pairs: Sequence[Pair]) -> Cell:
    row = f"time to first token, {pairs[0].plain.prompt_tokens[0]} tokens of prompt (ms)"
    base = statistics.median(pair.plain.first_s for pair in pairs) * 1e3
    kwaai = statistics.median(pair.node.first_s for pair in pairs) * 1e3
    more = statistics.median(pair.node.first_s - pair.plain.first_s for pair in pairs) * 1e3
    reach, met = f"≤ +{FIRST_MS:.0f}", more <= FIRST_MS
    return Cell(model, mode, row, "plain", base, kwaai, more, reach, met, len(pairs))


def _exactness(measured: Measured) -> Iterator[Cell]:
    for row, reach in EXACT_REACH.items():
        fast, exact = (measured.pairs.get((mode, row)) for mode in MODES)
        if fast and exact:
            rounds = zip(fast, exact, strict=True)
            values = [(value(row, a.node), value(row, b.node)) for a, b in rounds]
            name = measured.model.name
            yield ratio_cell(
                name, "exact", WORDS[row], "the node with exact = false", values, reach
            )


def _memory(measured: Measured) -> Iterator[Cell]:
    for mode, memory in measured.memory.items():
        for kind in ("rss", "pss"):
            parts = (memory.plain, memory.node, memory.workers)
            plain, node, workers = (getattr(part, kind) / MIB for part in parts)
            more = node + workers - plain
            row, reach = f"resident, {kind.upper()} (MiB)", f"≤ +{MEMORY_MB:.0f} MB"
            against = f"plain; node {node:.0f} + worker {workers:.0f}"
            met, name = more * MIB <= MEMORY_MB * 1e6, measured.model.name
            yield Cell(name, mode, row, against, plain, node + workers, more, reach, met, 1)


def startup_cells(help_s: Sequence[float], ready_s: Sequence[float]) -> Iterator[Cell]:
    for row, times, reach in (
        ("kwaai --help (s)", help_s, HELP_S),
        ("kwaai run until ready (s)", ready_s, READY_S),
    ):
        took = statistics.median(times)
        yield Cell("", "", row, "", 0.0, took, took, f"≤ {reach} s", took <= reach, len(times))


def table(found: Sequence[Cell]) -> str:
    """The cells as a Markdown table, as the README quotes them."""
    head = "| model | mode | | against | kwaai | ratio or more | reach | n | |"
    return "\n".join([head, "|---" * 9 + "|", *(_line(cell) for cell in found)])


def _line(cell: Cell) -> str:
    against = f"{cell.base:.1f} ({cell.against})" if cell.against else ""
    return (
        f"| {cell.model} | {cell.mode} | {cell.row} | {against} | {cell.kwaai:.4g} | "
        f"{cell.words} | {cell.reach} | {cell.n} | {_verdict(cell)} |"
    )


def _verdict(cell: Cell) -> str:
    met = "met" if cell.met else "NOT met"
    return ", ".join(filter(None, (met if cell.counts else f"does not count ({met})", cell.text)))


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line[:10] == "model name"), "")
    return {
        "cpu": cpu or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: version(name) for name in ("kwaai-core", "kwaai-lobe-llama", "llama-cpp-python")},
    }
