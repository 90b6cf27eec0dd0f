"""Take a JSON object apart, field by field; what nobody took is refused by name."""

import json
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import TypeVar

from kwaai_core.errors import RequestError, UnsupportedParameter
from kwaai_core.openai.described import Described, Watched, described
from kwaai_core.openai.strict import brief

T = TypeVar("T")
D = TypeVar("D")
Reader = Callable[[object, str], T]
"""From a JSON value that is not null, and where it stands, to what it means; or a RequestError."""


class Fields:
    """The members of one object that are still to be taken; a null is as good as absent."""

    def __init__(self, value: object, at: str = "") -> None:
        if not isinstance(value, dict):
            raise RequestError(f"{at or 'the body'} must be an object", param=at or None)
        self._watched = value if isinstance(value, Watched) else None
        self._left = dict(value)
        self._known: set[str] = set()
        self._prefix = f"{at}." if at else ""

    def take(self, name: str, read: Reader[T], default: D) -> T | D:
        """The field as ``read`` understands it, or the default where it is absent or null."""
        self._known.add(name)
        if self._watched is not None:
            self._watched.took(name, read, default)
        value = self._left.pop(name, None)
        return default if value is None else read(value, self._prefix + name)

    def require(self, name: str, read: Reader[T]) -> T:
        """The field, which must be there."""
        self._known.add(name)
        if self._watched is not None:
            self._watched.required(name, read)
        value = self._left.pop(name, None)
        if value is None:
            raise RequestError(f"{self._prefix}{name} is missing", param=self._prefix + name)
        return read(value, self._prefix + name)

    def ignore(self, *names: str) -> None:
        """Accept these whatever they hold: they do not change the answer."""
        for name in names:
            self._left.pop(name, None)
        if self._watched is not None:
            self._watched.ignored(names)

    def refuse_but(self, neutral: Mapping[str, tuple[object, ...]]) -> None:
        """Accept each of these only with a value that changes nothing, and nothing else at all."""
        if self._watched is not None:
            self._watched.neutral(neutral)
        for name, value in self._left.items():
            at = self._prefix + brief(name)
            if name not in neutral:
                near = get_close_matches(brief(name), self._known | neutral.keys(), 1, 0.75)
                hint = f"; did you mean {self._prefix}{near[0]}?" if near else ""
                raise UnsupportedParameter(f"this node has no parameter {at}{hint}", param=at)
            if value is not None and not any(_same(value, it) for it in neutral[name]):
                only = "".join(f", or give {json.dumps(it)}" for it in neutral[name][:1])
                raise UnsupportedParameter(
                    f"{at} is not supported by this node yet: leave it out{only}", param=at
                )


def _same(value: object, other: object) -> bool:
    """JSON's equality: 1 is 1.0, but never true."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


@described({"type": "string"})
def text(value: object, at: str) -> str:
    """A string of whole characters; half of a surrogate pair has no UTF-8, so no tokens."""
    if not isinstance(value, str):
        raise RequestError(f"{at} must be a string", param=at)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{at} has half of a surrogate pair in it", param=at) from None
    return value


@described({"type": "string", "minLength": 1})
def filled(value: object, at: str) -> str:
    """A string that is not empty."""
    if not text(value, at):
        raise RequestError(f"{at} must not be empty", param=at)
    return str(value)


@described({"type": "boolean"})
def flag(value: object, at: str) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise RequestError(f"{at} must be true or false", param=at)
    return value


def number(low: float, high: float) -> Described[float]:
    """A number in ``[low, high]``, both finite; an overflow such as 1e999 is out of every range."""

    @described({"type": "number", "minimum": low, "maximum": high})
    def read(value: object, at: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RequestError(f"{at} must be a number", param=at)
        if not low <= value <= high:
            raise RequestError(f"{at} must be from {low:g} to {high:g}", param=at)
        return float(value)

    return read


def integer(low: int, high: int) -> Described[int]:
    """An integer in ``[low, high]``; 16.0 is one, as JSON knows no difference."""

    @described({"type": "integer", "minimum": low, "maximum": high})
    def read(value: object, at: str) -> int:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not isinstance(value, int | float) or not whole:
            raise RequestError(f"{at} must be an integer", param=at)
        if not low <= value <= high:
            raise RequestError(f"{at} must be from {low} to {high}", param=at)
        return int(value)

    return read


@described({"type": "array"})
def array(value: object, at: str) -> list[object]:
    """A JSON array."""
    if not isinstance(value, list):
        raise RequestError(f"{at} must be an array", param=at)
    return value
