"""JSON from elsewhere as frozen dataclasses: every field there, of its type, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from typing import Any, NoReturn, TypeVar, cast, get_args, get_origin, get_type_hints

from kwaai_core import NotVerified

T = TypeVar("T")
_MALFORMED = (
    ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError,
)  # fmt: skip
_LARGEST = 1 << 53  # what every reader of JSON can count to


@contextmanager
def parsing(what: str) -> Iterator[None]:
    """What is not of the form that it must have is a :class:`NotVerified` that names it."""
    try:
        yield
    except _MALFORMED as error:
        raise NotVerified(f"{what} is malformed: {error!s:.200}") from None


def loaded(data: bytes | str) -> Any:
    """A JSON document. Errors: ValueError and RecursionError, which :func:`parsing` takes."""
    return json.loads(data, parse_constant=_refused)


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def parsed(kind: type[T], document: object) -> T:
    """A JSON object as the dataclass ``kind``.

    Its fields are texts, counts, truth values, and tuples, mappings and dataclasses of these.

    Errors: ValueError, TypeError.
    """
    hints = _hints(kind)  # type: ignore[arg-type]  # a class can be hashed
    if not isinstance(document, dict) or document.keys() != hints.keys():
        raise ValueError(f"it must have the keys {', '.join(hints)}, and those only")
    return kind(**{key: _value(key, document[key], hint) for key, hint in hints.items()})


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _value(key: str, value: object, hint: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in (str, bool) and type(value) is hint:
        return value
    if hint is int and type(value) is int and 0 <= value <= _LARGEST:
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_value(key, item, arguments[0]) for item in value)
    if origin is Mapping and isinstance(value, dict):
        return {name: _value(key, item, arguments[1]) for name, item in value.items()}
    if is_dataclass(hint):
        return parsed(cast(type[Any], hint), value)
    raise ValueError(f"{key} is {value!r:.80}")


def written(value: Any) -> bytes:
    """A dataclass, or anything else that JSON can write, without spaces."""
    plain = value if isinstance(value, (dict, list, tuple)) else asdict(value)
    return json.dumps(plain, separators=(",", ":")).encode()
