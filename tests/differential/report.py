"""What has come of a comparison: a table, a document, and whether it is good enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

from tests.differential.allowed import EQUAL_TEXTS, Allowed, which
from tests.differential.answers import Answer
from tests.differential.cases import Case
from tests.differential.comparison import Difference

_SHOWN = 4
"""So many differences of a request are told while it runs; a report in JSON has all."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One request of one model. ``wrong`` is what no category covers, but for the texts: of those
    some may differ, and then the rest of the answer speaks of another text."""

    model: str
    case: Case
    answered: bool
    wrong: tuple[Difference, ...]
    texts: tuple[Difference, ...]
    allowed: tuple[tuple[Allowed, Difference], ...]

    @property
    def lines(self) -> Iterable[str]:
        found = (*self.texts, *self.wrong)
        yield f"{self.model}, {self.case}: {len(found) or 'no'} difference{'s'[: len(found) != 1]}"
        yield from (f"  {difference}" for difference in found[:_SHOWN])


def judged(
    model: str,
    case: Case,
    ours: Answer,
    found: Sequence[Difference],
    categories: Sequence[Allowed],
) -> Compared:
    """Sort differences into those that are wrong, those of texts, and those that are allowed."""
    pairs = [(which(case, one, categories), one) for one in found]
    allowed = tuple((category, one) for category, one in pairs if category)
    rest = [one for category, one in pairs if not category]
    texts = tuple(one for one in rest if one.aspect == "text")
    told = ("finish", "logprobs", "usage") if texts else ()
    wrong = tuple(one for one in rest if one not in texts and one.aspect not in told)
    return Compared(model, case, bool(ours.choices), wrong, texts, allowed)


@dataclass(slots=True)
class Report:
    """All requests; ``whole`` where that is every case with every model."""

    categories: Sequence[Allowed]
    whole: bool
    compared: list[Compared] = field(default_factory=list)

    def add(self, one: Compared) -> None:
        self.compared.append(one)

    @property
    def good(self) -> bool:
        """Whether nothing is wrong, and enough texts are the same."""
        texts = self._answered(self.compared)
        equal = sum(not one.texts for one in texts)
        right = not any(one.wrong for one in self.compared)
        return bool(self.compared) and right and equal >= EQUAL_TEXTS * len(texts)

    @property
    def unused(self) -> list[Allowed]:
        """Categories that never occurred, where everything was asked."""
        used = self._uses()
        return [one for one in self.categories if self.whole and not used[one]]

    def _uses(self) -> Counter[Allowed]:
        """In how many requests each occurred."""
        return Counter(each for one in self.compared for each in {each for each, _ in one.allowed})

    def table(self) -> str:
        """For people: requests by model and category, then what was allowed, then the verdict."""
        lines = [
            "| model | requests | answered | same text | something wrong |",
            "|---|---|---|---|---|",
        ]
        lines += [
            self._row(model, [one for one in self.compared if one.model == model])
            for model in dict.fromkeys(one.model for one in self.compared)
        ]
        lines.append(self._row("all", self.compared))
        lines += ["", "| allowed | requests | why |", "|---|---|---|"]
        used = self._uses()
        for one in self.categories:
            lines.append(f"| {one.name} | {used[one] or 'unused'} | {one.reason} |")
        return "\n".join([*lines, "", "good" if self.good else "NOT good", ""])

    def _answered(self, compared: Sequence[Compared]) -> list[Compared]:
        return [one for one in compared if one.answered]

    def _row(self, name: str, compared: Sequence[Compared]) -> str:
        texts = self._answered(compared)
        equal = sum(not one.texts for one in texts)
        wrong = sum(bool(one.wrong) for one in compared)
        return f"| {name} | {len(compared)} | {len(texts)} | {equal} | {wrong} |"

    def document(self) -> dict[str, object]:
        """For programs: the same, with every difference."""
        return {
            "good": self.good,
            "requests": len(self.compared),
            "answered": len(self._answered(self.compared)),
            "other texts": sum(bool(one.texts) for one in self.compared),
            "wrong": sum(bool(one.wrong) for one in self.compared),
            "unused": [one.name for one in self.unused],
            "cases": [
                {
                    "model": one.model,
                    "case": str(one.case),
                    "wrong": [asdict(each) for each in (*one.texts, *one.wrong)],
                    "allowed": [{"as": name.name} | asdict(each) for name, each in one.allowed],
                }
                for one in self.compared
            ],
        }
