"""What came of a campaign, as a table and as JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from tests.faults.campaign import Outcome
from tests.faults.matrix import ALONE, Cell

_HEAD = (
    "cells", "equal", "ended for want of a path", "median gap, s", "longest gap, s",
    "the same without the replay, s", "replayed rows", "wrong",
)  # fmt: skip


def table(outcomes: Sequence[Outcome], key: Callable[[Cell], str]) -> str:
    """In Markdown, one line for each value of ``key``."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[key(outcome.cell)].append(outcome)
    lines = [f"| | {' | '.join(_HEAD)} |", "|---" * (len(_HEAD) + 1) + "|"]
    lines += [_line(name, groups[name]) for name in sorted(groups)]
    return "\n".join([*lines, _line("**all**", outcomes)])


def _line(name: str, group: Sequence[Outcome]) -> str:
    mended = [o for o in group if o.cell.phase != ALONE]
    ended = [o for o in group if o.cell.phase == ALONE]
    figures = ["", "", ""]
    if mended:
        gaps, rest = [o.gap for o in mended], [o.gap - o.replay for o in mended]
        figures = [f"{figure:.2f}" for figure in (median(gaps), max(gaps), max(rest))]
    cells = [
        len(group),
        sum(o.equal for o in mended),
        sum(not o.problems for o in ended),
        *figures,
        sum(o.replayed for o in mended),
        sum(bool(o.problems) for o in group),
    ]
    return f"| {name} | {' | '.join(map(str, cells))} |"


def document(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """For JSON."""
    return {
        "cells": [asdict(outcome) for outcome in outcomes],
        "failed": sum(bool(outcome.problems) for outcome in outcomes),
    }
