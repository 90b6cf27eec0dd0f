"""The shapes that a JSON value may be asked to have: what is left of a schema once it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Format = Literal["date", "time", "date-time", "uuid"]


class SchemaError(Exception):
    """A schema that cannot be honoured, or would take too much; ``at`` is where in the request.
    ``unsupported``: it is sound, and this node does not know how."""

    def __init__(self, message: str, at: str, *, unsupported: bool = False) -> None:
        super().__init__(message)
        self.at = at
        self.unsupported = unsupported


@dataclass(frozen=True, slots=True)
class Anything:
    """Any JSON value."""


@dataclass(frozen=True, slots=True)
class Literals:
    """One of these texts of JSON."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """A string of so many characters, or of a format."""

    least: int = 0
    most: int | None = None
    format: Format | None = None


@dataclass(frozen=True, slots=True)
class Number:
    """A number from ``least`` to ``most``; ``whole``: an integer. ``above`` and ``below``: it is
    neither the one nor the other."""

    whole: bool
    least: int | None = None
    most: int | None = None
    above: bool = False
    below: bool = False


@dataclass(frozen=True, slots=True)
class Array:
    """Items of shapes of their own, then others of one shape, so many of these."""

    first: tuple[Shape, ...]
    items: Shape
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an object: ``key`` is its name as JSON."""

    key: str
    value: Shape
    required: bool


@dataclass(frozen=True, slots=True)
class Record:
    """An object with these members, in this order."""

    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Map:
    """An object with members of any names."""

    values: Shape


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """A value of one of several shapes; exactly one where ``sole``. ``at`` is where it stands."""

    options: tuple[Shape, ...]
    at: str
    sole: bool = False


@dataclass(frozen=True, slots=True)
class Reference:
    """A value of the shape that is called so."""

    name: str


Shape = Anything | Literals | Text | Number | Array | Record | Map | Choice | Reference


@dataclass(frozen=True, slots=True)
class Shapes:
    """A whole schema: ``root``, and what its references mean."""

    root: Shape
    named: dict[str, Shape]


def parts(shape: Shape) -> tuple[Shape, ...]:
    """The shapes that a shape is made of."""
    match shape:
        case Array(first, items, _, most):
            return (*first, items) if most != 0 else first
        case Record(members):
            return tuple(member.value for member in members)
        case Map(values):
            return (values,)
        case Choice(options):
            return options
        case _:
            return ()
