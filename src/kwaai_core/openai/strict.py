"""JSON as this node takes it: one object in UTF-8, no duplicate keys, no NaN, of bounded depth."""

import json
from typing import NoReturn

from kwaai_core.errors import RequestError

MAX_DEPTH = 64
"""Levels of nesting; what clients send (tools with their schemas) stays far below it."""


def load_object(body: bytes) -> dict[str, object]:
    """The object that a request body holds.

    Errors:
      RequestError: the body is not what this module's first line says; the message says why.
    """
    try:
        value = _DECODER.decode(body.decode())
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8: see byte {error.start}") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # also Python's refusal of integers of thousands of digits
        raise RequestError(f"the body is not valid JSON: {error}") from None
    _limit_depth(value)
    if not isinstance(value, dict):
        raise RequestError("the body must be a JSON object")
    return value


def brief(text: str, limit: int = 60) -> str:
    """A client's own text, short enough to be shown back in an error."""
    return text if len(text) <= limit else f"{text[:limit]}…"


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise RequestError(f"the key “{brief(name)}” is given twice", param=brief(name))
            seen.add(name)
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _limit_depth(value: object) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            member
            for group in level
            if isinstance(group, dict | list)
            for member in (group.values() if isinstance(group, dict) else group)
        ]
    if any(isinstance(member, dict | list) for member in level):
        raise _too_deep()


def _too_deep() -> RequestError:
    return RequestError(f"the body is nested more than {MAX_DEPTH} levels deep")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
