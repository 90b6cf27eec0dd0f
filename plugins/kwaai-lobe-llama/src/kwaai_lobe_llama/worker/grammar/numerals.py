"""Numbers within bounds, as expressions of llama.cpp's grammars."""

from __future__ import annotations

from kwaai_lobe_llama.worker.grammar.shapes import Number

_DIGITS = 15  # of an integer without a bound, about what a float64 holds
_NINES = 10**_DIGITS - 1


def number(shape: Number) -> str:
    """The expression of a number; those with bounds are written without an exponent."""
    low, high = shape.least, shape.most
    if low is None and high is None:
        return "integer" if shape.whole else "number"
    low, high = (-_NINES if low is None else low), (_NINES if high is None else high)
    options = []
    if low < 0:
        most, least = -low, max(-high, 0)
        excluded = (shape.below and high < 0, shape.above)
        if negative := _magnitude(least, most, shape.whole, *excluded):
            options.append(f'"-" ({negative})')
        if shape.below and high == 0:
            return " | ".join(options)
    if high >= 0:
        excluded = (shape.above and low >= 0, shape.below)
        options.append(_magnitude(max(low, 0), high, shape.whole, *excluded))
    return " | ".join(option for option in options if option)


def _magnitude(low: int, high: int, whole: bool, above: bool, below: bool) -> str:
    """From ``low`` to ``high``, neither of which is negative."""
    if whole:
        return " | ".join(_integers(low, high))
    options = []
    if above and low < high:
        options.append(f'"{low}" more')
    first = low + above
    if first < high:
        options.append(f"({' | '.join(_integers(first, high - 1))}) fraction?")
    if not below and first <= high:
        options.append(f'"{high}" ("." [0]{{1,{_DIGITS}}})?')
    return " | ".join(options)


def _integers(low: int, high: int) -> list[str]:
    """The integers of a range; each expression is of those with one number of digits and one
    beginning, so that they are told apart by their digits."""
    found = []
    while low <= high:
        top = min(high, 10 ** len(str(low)) - 1)  # as many digits
        found += _same_length(str(low), str(top))
        low = top + 1
    return found


def _same_length(low: str, high: str) -> list[str]:
    if low == high:
        return [f'"{low}"']
    common = next(i for i, (a, b) in enumerate(zip(low, high, strict=True)) if a != b)
    head, rest = low[:common], len(low) - common - 1
    first, last = int(low[common]), int(high[common])
    lead = f'"{head}" ' if head else ""
    found = []
    if low[common + 1 :] != "0" * rest:
        found += _after(head + low[common], low[common + 1 :], "9" * rest)
        first += 1
    tail: list[str] = []
    if high[common + 1 :] != "9" * rest:
        tail = _after(head + high[common], "0" * rest, high[common + 1 :])
        last -= 1
    if first <= last:
        digits = f"[0-9]{{{rest}}}" if rest else ""
        found.append(f"{lead}[{first}-{last}] {digits}".strip())
    return found + tail


def _after(lead: str, low: str, high: str) -> list[str]:
    return [f'"{lead}" ({" | ".join(_same_length(low, high))})']
