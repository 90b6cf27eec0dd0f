"""What an answer over spans tells of how it came about."""

from dataclasses import replace

from kwaai_core.openai import route_of, together
from kwaai_core.types import Hop, HopTiming, Report, Span

PLANNED = (Hop("local", Span(0, 2)), Hop("12D3Koo", Span(2, 4)))
TAKEN = (Hop("local", Span(0, 2)), Hop("12D3Other", Span(2, 4)))
REPORT = Report(
    tuple(HopTiming(hop, 40, 12, 1.25, 300.0, 20.5) for hop in TAKEN),
    exact=True,
    same_text_guaranteed=True,
)


def test_without_a_report_the_route_is_the_one_that_was_planned() -> None:
    assert route_of(PLANNED, timing=True) == {
        "route": [{"peer": "local", "lo": 0, "hi": 2}, {"peer": "12D3Koo", "lo": 2, "hi": 4}]
    }


def test_a_report_tells_the_route_in_the_end() -> None:
    assert route_of(PLANNED, REPORT) == {
        "route": [{"peer": "local", "lo": 0, "hi": 2}, {"peer": "12D3Other", "lo": 2, "hi": 4}],
        "exact": True,
        "same_text_guaranteed": True,
    }


def test_times_are_told_where_they_are_asked_for() -> None:
    timing = route_of(PLANNED, REPORT, timing=True)["timing"]
    assert timing == [
        {
            "peer": peer,
            "rows": 40,
            "replayed": 12,
            "queue_ms": 1.25,
            "compute_ms": 300.0,
            "wire_ms": 20.5,
        }
        for peer in ("local", "12D3Other")
    ]


def test_what_several_answers_took_is_told_together() -> None:
    other = Hop("12D3Third", Span(2, 4))
    second = Report(
        (replace(REPORT.timings[0], rows=2, queue_ms=0.75), replace(REPORT.timings[1], hop=other)),
        exact=True,
        same_text_guaranteed=False,
    )
    found = together(together(None, REPORT), second)
    assert found is not None and (found.exact, found.same_text_guaranteed) == (True, False)
    assert [took.hop.peer for took in found.timings] == ["local", "12D3Other", "12D3Third"]
    first, *rest = found.timings
    assert (first.rows, first.replayed, first.queue_ms, first.compute_ms) == (42, 24, 2.0, 600.0)
    assert [took.rows for took in rest] == [40, 40]
    assert together(REPORT, None) == REPORT
