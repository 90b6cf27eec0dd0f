"""Follows a page literally: its files are written, its commands run, its output compared.

A fenced block is part of that when the line before it is one of these comments::

    <!-- file: path/of/it -->     write the block to this path
    <!-- run -->                  run the block with bash
    <!-- output -->               the commands before printed this; a line of … stands for any lines
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STEP = re.compile(
    r"^<!-- (file: (\S+)|run|output) -->\n```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Step:
    """One marked block; ``path`` is of a file to write."""

    kind: str
    text: str
    path: str = ""


def steps(page: Path) -> Iterator[Step]:
    """The marked blocks of a page, in order."""
    for mark, path, text in STEP.findall(page.read_text()):
        yield Step("file" if path else mark, text, path)


def matches(expected: str, printed: str) -> bool:
    """Whether this was printed, where a line of … stands for any number of lines."""
    lines = [
        r"(?:.*\n)*?" if line == "…" else re.escape(line) + r"\n" for line in lines_of(expected)
    ]
    return re.fullmatch("".join(lines), "\n".join(lines_of(printed)) + "\n") is not None


def lines_of(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
