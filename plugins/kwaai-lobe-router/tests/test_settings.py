"""The table ``[spans]``."""

from __future__ import annotations

import pytest

from kwaai_core import Span
from kwaai_lobe_router.settings import SpansSettings, units_of


def test_blocks_have_both_ends() -> None:
    assert SpansSettings(models=("m",), blocks="0-14").span == Span(0, 15)
    assert SpansSettings(models=("m",), blocks="3").span == Span(3, 4)
    assert SpansSettings().span is None


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"models": ("m",)}, "say which blocks"),
        ({"blocks": "0-3"}, "of which models"),
        (
            {"models": ("m",), "blocks": "30-2"},
            '"30-2": the first must not be larger than the last',
        ),
        ({"models": ("m",), "blocks": "all"}, "must be like"),
        ({"models": ("m",), "blocks": "0-3", "memory": 5}, "one of them"),
        ({"models": ("m", "n"), "blocks": "0-3"}, "one model"),
        ({"unit": 0}, "unit = 0"),
        ({"local_blocks": -1}, "local_blocks = -1"),
        ({"links": 0}, "links = 0"),
        ({"drain_seconds": 61.0}, "drain_seconds"),
    ],
)
def test_what_cannot_be_is_refused(table: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SpansSettings(**table)  # type: ignore[arg-type]


def test_units_of_two_nodes_meet() -> None:
    assert units_of(Span(0, 15), 8) == (Span(0, 8), Span(8, 15))
    assert units_of(Span(15, 30), 8) == (Span(15, 16), Span(16, 24), Span(24, 30))
    assert units_of(Span(8, 16), 8) == (Span(8, 16),)
