"""One model, its contenders in turn: plain llama.cpp and the node, in both modes."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from benchmarks.api import Node
from benchmarks.contender import Contender, Run
from benchmarks.engine import Settings
from benchmarks.memory import Memory, resident, resident_together
from benchmarks.models import ModelFile
from benchmarks.plain import Plain

Mode = Literal["fast", "exact"]
Row = Literal["decode", "decode_8", "prefill"]
ROWS: tuple[Row, ...] = ("decode", "decode_8", "prefill")
MODES: tuple[Mode, ...] = ("fast", "exact")
STREAMS = 8
CONTEXT = 1024
PROMPT, LONG_PROMPT = 32, 512
REFERENCES = 2  # rounds whose texts are compared
SETTLE_S = 0.1  # OpenMP's threads spin for a while after a graph; let them sleep


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured: rounds of every row, tokens of a decode."""

    rounds: int
    tokens: int
    modes: tuple[Mode, ...] = MODES
    rows: tuple[Row, ...] = ROWS


@dataclass(frozen=True, slots=True)
class Pair:
    """One round of one row. ``reference`` is what the texts have to be; empty is: not looked at."""

    plain: Run
    node: Run
    reference: tuple[str, ...]

    @property
    def same(self) -> int:
        """How many streams gave the reference's text."""
        return sum(a == b for a, b in zip(self.reference, self.node.texts, strict=False))


@dataclass(frozen=True, slots=True)
class Resident:
    """Memory of each, alone on the machine with the model loaded and used."""

    plain: Memory
    node: Memory
    workers: Memory


@dataclass(slots=True)
class Measured:
    """Everything measured of one model."""

    model: ModelFile
    pairs: dict[tuple[Mode, Row], list[Pair]] = field(default_factory=dict)
    memory: dict[Mode, Resident] = field(default_factory=dict)
    arrangement: dict[tuple[Mode, Row], str] = field(default_factory=dict)


def measure(model: ModelFile, effort: Effort) -> Measured:
    """All rows of a model, round by round, every contender once a round."""
    measured = Measured(model)
    for mode in effort.modes:
        measured.memory[mode] = _memory(model, mode)
    with contextlib.ExitStack() as stack:
        sides = {mode: stack.enter_context(_side(model, mode, effort)) for mode in effort.modes}
        for mode, side in sides.items():
            measured.arrangement |= {(mode, row): side.words(row) for row in effort.rows}
        for i in range(effort.rounds):
            for row in effort.rows:
                _round(i, row, sides, effort, measured)
    return measured


@dataclass(slots=True)
class _Side:
    """The contenders of one mode.

    ``twin`` is plain llama.cpp with the node's settings; ``best`` the fastest arrangement of
    plain llama.cpp for each row, which may be another.
    """

    node: Node
    twin: Plain
    best: dict[Row, tuple[Plain, int]] = field(default_factory=dict)

    def plain(self, row: Row) -> Plain:
        plain, threads = self.best[row]
        plain.threads(threads)
        return plain

    def words(self, row: Row) -> str:
        plain, threads = self.best[row]
        flash = "on" if plain.settings.flash else "off"
        return f"{threads} thread{'s'[: threads > 1]}, flash attention {flash}"


def _settings(model: ModelFile, mode: Mode) -> Settings:
    cores = len(os.sched_getaffinity(0))
    return Settings(model.path, CONTEXT * STREAMS, STREAMS, cores, exact=mode == "exact")


@contextlib.contextmanager
def _side(model: ModelFile, mode: Mode, effort: Effort) -> Iterator[_Side]:
    settings = _settings(model, mode)
    flash = (True,) if mode == "exact" else (True, False)
    with contextlib.ExitStack() as stack:
        node = Node(model.registered, context=CONTEXT, exact=mode == "exact")
        stack.enter_context(node).run(["Load the model."], 2)
        if mode == "exact":
            settings = replace(settings, rows=node.row_limit())
        plains = [stack.enter_context(Plain(replace(settings, flash=on))) for on in flash]
        side = _Side(node, plains[0])
        for row in effort.rows:
            side.best[row] = fastest(plains, row)
        yield side


def fastest(plains: Sequence[Plain], row: Row) -> tuple[Plain, int]:
    """The shared arrangement: whichever is fastest of one thread and all cores, flash or not."""
    cores = len(os.sched_getaffinity(0))
    tried: list[tuple[float, int, Plain]] = []
    for plain in plains:
        prompts = prompts_of(plain, row, seed=2)
        for threads in sorted({1, cores}):
            plain.threads(threads)
            best = max(value(row, plain.run(prompts, length_of(row, 12))) for _ in range(2))
            tried.append((best, threads, plain))
    _, threads, plain = max(tried, key=lambda entry: entry[0])
    return plain, threads


def value(row: Row, run: Run) -> float:
    """Tokens a second: of the prompt for prefill, of all streams together for decode."""
    return run.prompt_tokens[0] / run.first_s if row == "prefill" else run.rate


def length_of(row: Row, tokens: int) -> int:
    """How many tokens are asked for."""
    return 1 if row == "prefill" else tokens


def prompts_of(plain: Plain, row: Row, seed: int) -> list[str]:
    """The prompts of one round of a row."""
    length = LONG_PROMPT if row == "prefill" else PROMPT
    return [plain.prompt(seed + i, length) for i in range(STREAMS if row == "decode_8" else 1)]


def _round(i: int, row: Row, sides: dict[Mode, _Side], effort: Effort, measured: Measured) -> None:
    for mode, side in sides.items():
        plain = side.plain(row)
        prompts = prompts_of(plain, row, seed=1000 * (i + 1) + 100 * ROWS.index(row))
        length = length_of(row, effort.tokens)
        # Who goes first alternates, so that neither always finds the caches as the other left them.
        order: list[Contender] = [plain, side.node] if i % 2 == 0 else [side.node, plain]
        runs = {}
        for contender in order:
            time.sleep(SETTLE_S)
            runs[contender] = contender.run(prompts, length)
        pair = Pair(runs[plain], runs[side.node], ())
        if i < REFERENCES:
            pair = replace(pair, reference=reference_texts(side.twin, mode, prompts, length))
        measured.pairs.setdefault((mode, row), []).append(pair)


def reference_texts(
    twin: Plain, mode: Mode, prompts: Sequence[str], length: int
) -> tuple[str, ...]:
    """The texts under the node's own settings.

    An exact node owes each stream what it gives alone, whoever else is served; otherwise the
    streams are one batch, as they are in the node.
    """
    twin.threads(len(os.sched_getaffinity(0)))
    if mode == "exact":
        return tuple(twin.run([prompt], length).texts[0] for prompt in prompts)
    return twin.run(prompts, length).texts


def _memory(model: ModelFile, mode: Mode) -> Resident:
    with Plain(_settings(model, mode)) as plain:
        prompts = prompts_of(plain, "decode_8", seed=3)
        long = prompts_of(plain, "prefill", seed=50)
        plain.run(long, 1)
        plain.run(prompts, 4)
        alone = resident_together(plain.pids)
    with Node(model.registered, context=CONTEXT, exact=mode == "exact") as node:
        node.run(long, 1)
        node.run(prompts, 4)
        first, *workers = node.pids
        return Resident(alone, resident(first), resident_together(workers))
