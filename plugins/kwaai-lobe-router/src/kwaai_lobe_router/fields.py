"""A reader of JSON objects from strangers: every field is checked when it is taken."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import NoReturn, TypeVar

from kwaai_core import NotVerified

T = TypeVar("T")

MAX_BYTES = 16 << 10
MAX_NS = 3_600_000_000_000
"""The longest time that may be told, an hour: whoever is slower is of no use."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,127}")


class Fields:
    """The fields of an announcement, each of which is checked when it is taken."""

    def __init__(self, body: bytes) -> None:
        if len(body) > MAX_BYTES:
            raise NotVerified(f"an announcement has {len(body)} bytes: at most {MAX_BYTES}")
        try:
            value = json.loads(body.decode(), object_pairs_hook=_once, parse_constant=_constant)
        except (ValueError, RecursionError) as error:
            raise NotVerified(f"an announcement is not JSON: {type(error).__name__}") from None
        if not isinstance(value, dict):
            raise NotVerified("an announcement is not a JSON object")
        self._fields: dict[str, object] = value

    def wrong(self, name: str, why: str) -> NoReturn:
        raise NotVerified(f"“{name}” of an announcement {why}")

    def get(self, name: str) -> object:
        if name not in self._fields:
            self.wrong(name, "is missing")
        return self._fields[name]

    def whole(self, name: str, low: int, high: int) -> int:
        return self.bounded(name, self.get(name), low, high)

    def bounded(self, name: str, value: object, low: int, high: int) -> int:
        if type(value) is not int or not low <= value <= high:
            self.wrong(name, f"must be a whole number from {low} to {high}")
        return value

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if not isinstance(value, bool):
            self.wrong(name, "must be true or false")
        return value

    def word(self, name: str, value: object) -> str:
        if not isinstance(value, str) or not _WORD.fullmatch(value):
            self.wrong(name, "must be a word of at most 128 plain characters")
        return value

    def digest(self) -> str:
        value = self.get("digest")
        if not isinstance(value, str) or not _DIGEST.fullmatch(value):
            self.wrong("digest", "must be 64 hexadecimal digits")
        return value

    def pair(self, name: str, value: object) -> tuple[object, object]:
        if not isinstance(value, list) or len(value) != 2:
            self.wrong(name, "must have pairs")
        return value[0], value[1]

    def each(self, name: str, most: int, read: Callable[[str, object], T]) -> tuple[T, ...]:
        value = self.get(name)
        if not isinstance(value, list) or len(value) > most:
            self.wrong(name, f"must be a list of at most {most}")
        return tuple(read(name, item) for item in value)

    def times(self, name: str, value: object, count: int) -> tuple[int, ...]:
        if not isinstance(value, list) or len(value) != count:
            self.wrong(name, f"must have a time for each of {count} units")
        return tuple(self.bounded(name, time, 1, MAX_NS) for time in value)


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name is there twice")
    return fields


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
