"""A few hundred runs of the simulation; ``tox -e faults-sim`` has as many as one likes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kwaai_core.span.chain import Chain
from kwaai_core.span.hosted import Session, Step
from kwaai_core.testing.toy import ToyCache
from tests.span.simulation import FAULTS, MATRIX, Scenario, run, table

ROUNDS = 1


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_befalls_the_text_is_the_same(fault: str) -> None:
    seeds = [seed for seed in range(ROUNDS * len(MATRIX)) if Scenario.of(seed).fault == fault]
    outcomes = [run(Scenario.of(seed)) for seed in seeds]
    ends = [end for outcome in outcomes for end in outcome.ends]
    assert set(ends) <= {"equal", "lost", "full"} and ends.count("equal") > len(ends) / 2
    assert ("full" in ends) <= (fault == "full")
    struck = sum(outcome.struck for outcome in outcomes)
    assert struck >= 0.7 * len(outcomes)
    if fault not in ("none", "nap", "owner nap", "duplicate", "slow", "forget"):
        assert sum(outcome.moves for outcome in outcomes) >= struck / 2


def test_a_run_depends_on_its_seed_alone() -> None:
    assert run(Scenario.of(50)) == run(Scenario.of(50)) != run(Scenario.of(51))


def test_a_table_has_all_runs() -> None:
    text = table([run(Scenario.of(seed)) for seed in (0, 25)], lambda s: s.fault)
    assert text.splitlines()[-1].startswith("| **all** | 2 |")


# -- it would notice


def breaks(scenarios: Sequence[Scenario]) -> bool:
    for scenario in scenarios:
        try:
            run(scenario)
        except AssertionError:
            return True
    return False


def of(fault: str) -> list[Scenario]:
    return [Scenario.of(seed) for seed in range(len(MATRIX)) if Scenario.of(seed).fault == fault]


def test_a_host_that_keeps_rows_it_should_cut_off_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ToyCache, "truncate", lambda self, span, stream, length: bool(span))
    assert breaks(of("kill"))


def test_a_host_that_forgets_silently_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(self: ToyCache, session: Session) -> bytes:
        step = session.computing
        assert isinstance(step, Step)
        self.rows = {(block, session.stream): [b""] * step.position for block in range(12)}
        return honest(self, session)

    honest = ToyCache.run
    monkeypatch.setattr(ToyCache, "run", forget)
    assert breaks(of("none"))


def test_an_owner_that_does_not_ask_again_for_lost_outputs_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Chain, "_rewind", lambda self: None)
    assert breaks(of("kill"))


def test_an_owner_that_does_not_close_what_it_leaves_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def leave(self: Chain) -> None:
        self.hops = []

    monkeypatch.setattr(Chain, "close", leave)
    assert breaks(of("none"))
