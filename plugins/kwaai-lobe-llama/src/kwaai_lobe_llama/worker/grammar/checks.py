"""What a grammar of shapes would cost, and whether its derivations end: before there is one.

llama.cpp follows all derivations of a text at once. It compares each of them with every token of
the vocabulary when a drawn token does not fit, so there must never be many. Two options of a choice
are told apart by how they open. Where they cannot be, they are followed side by side, which must
not happen without end within them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from kwaai_lobe_llama.worker.grammar.branches import branches, widest
from kwaai_lobe_llama.worker.grammar.shapes import (
    Anything,
    Array,
    Choice,
    Literals,
    Map,
    Member,
    Number,
    Record,
    Reference,
    SchemaError,
    Shape,
    Shapes,
    Text,
    parts,
)

MAX_ALIVE = 128
"""Derivations that are followed at once, about."""

_MAX_OPENINGS = 64
_MAX_AMBIGUOUS = 50
_MAX_COMPARED = 50_000  # openings of all choices together: a tenth of a second


def check(shapes: Shapes, at: str) -> None:
    """Raise :class:`SchemaError` for shapes that no answer could have, or that cost too much."""
    checks = _Checks(shapes)
    checks.refuse_empty_cycles(at)
    if not checks.ends():
        raise SchemaError("the schema refers to itself without an end: no value is finite", at)
    checks.refuse_ambiguous(at)
    alive = checks.alive()
    if alive > MAX_ALIVE:
        raise SchemaError(
            f"about {alive} ways to go on would have to be followed at once at one place of the "
            f"schema, over {MAX_ALIVE}: have fewer optional properties in a row, fewer values that "
            "begin differently, or fewer schemas that begin alike",
            at,
        )


def only_objects(shapes: Shapes) -> bool:
    """Whether every value is an object."""

    def holds(shape: Shape) -> bool:
        match shape:
            case Record() | Map():
                return True
            case Choice(options):
                return all(map(holds, options))
            case Reference(name):  # these lead to no circle: it was refused
                return holds(shapes.named[name])
            case _:
                return False

    return holds(shapes.root)


class _Checks:
    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self._ambiguous: set[int] = set()
        self._opening: dict[str, frozenset[str]] = {}  # of what is referred to, once it is known
        self._widths: dict[int, int] = {}
        self._left = _MAX_COMPARED

    # -- whether it ends

    def refuse_empty_cycles(self, at: str) -> None:
        """Refuse references that lead to themselves with nothing written in between."""
        done: set[str] = set()

        def follow(name: str, path: tuple[str, ...]) -> None:
            if name in path:
                raise SchemaError("the schema refers to itself with nothing in between", at)
            if name not in done:
                for other in _at_once(self._shapes.named[name]):
                    follow(other, (*path, name))
                done.add(name)

        for name in self._shapes.named:
            follow(name, ())

    def ends(self) -> bool:
        """Whether there is a finite value of every shape that is referred to."""
        ending: set[str] = set()

        def step() -> bool:
            before = len(ending)
            for name, shape in self._shapes.named.items():
                if name not in ending and _ends(shape, ending):
                    ending.add(name)
            return len(ending) > before

        while step():
            pass
        return len(ending) == len(self._shapes.named)

    # -- whether derivations are told apart

    def refuse_ambiguous(self, at: str) -> None:
        """Find the choices whose options begin alike; refuse those that come again in them."""
        for choice in self._choices():
            if not self._alike(choice, at):
                continue
            if choice.sole:
                raise SchemaError(
                    f"{choice.at} has schemas that begin alike, so that a value might fit two of "
                    "them: use anyOf, or begin each with a property whose value is const",
                    choice.at,
                )
            self._ambiguous.add(id(choice))
            if len(self._ambiguous) > _MAX_AMBIGUOUS:
                what = f"over {_MAX_AMBIGUOUS} choices are between schemas that begin alike"
                raise SchemaError(what, at)
            if any(one is choice for one in self._within(choice)):
                raise SchemaError(
                    f"{choice.at} has schemas that begin alike, and is part of itself: begin each "
                    "of its objects with a property of its own that is required, or const",
                    choice.at,
                )

    def _choices(self) -> list[Choice]:
        every = [self._shapes.root, *self._shapes.named.values()]
        return [one for top in every for one in _tree(top) if isinstance(one, Choice)]

    def _within(self, choice: Choice) -> Iterator[Shape]:
        """All that options of a choice are made of, through references."""
        seen: set[str] = set()
        rest: list[Shape] = list(choice.options)
        while rest:
            shape = rest.pop()
            yield shape
            rest += parts(shape)
            if isinstance(shape, Reference) and shape.name not in seen:
                seen.add(shape.name)
                rest.append(self._shapes.named[shape.name])

    def _alike(self, choice: Choice, at: str) -> bool:
        every = [self._openings(option) for option in choice.options]
        self._left -= sum(map(len, every))
        if self._left < 0:
            raise SchemaError("the schema has too many choices between too many values", at)
        openings = sorted((text, number) for number, some in enumerate(every) for text in some)
        before: list[tuple[str, int]] = []
        for text, number in openings:
            while before and not text.startswith(before[-1][0]):
                before.pop()
            if any(other != number for _, other in before):
                return True
            before.append((text, number))
        return False

    def _openings(self, shape: Shape) -> Collection[str]:
        """How a value of a shape begins: each of them with one of these."""
        match shape:
            case Anything():
                return '"-0123456789{[tfn'
            case Literals(texts):
                return texts
            case Text():
                return '"'
            case Number():
                return "-0123456789"
            case Array():
                return "["
            case Map():
                return "{"
            case Record(members):
                return _openings_of_record(members)
            case Choice(options):
                return {text for option in options for text in self._openings(option)}
            case Reference(name):
                if name not in self._opening:  # they lead to no circle: it was refused
                    self._opening[name] = frozenset(self._openings(self._shapes.named[name]))
                return self._opening[name]

    # -- what is followed at once

    def alive(self) -> int:
        """The most derivations at one place, up to a little over the limit."""
        known = dict.fromkeys(self._shapes.named, 1)

        def step() -> bool:
            before = dict(known)
            for name, shape in self._shapes.named.items():
                known[name] = min(self._alive(shape, known), MAX_ALIVE + 1)
            return known != before

        while step():
            pass
        return self._alive(self._shapes.root, known)

    def _alive(self, shape: Shape, known: dict[str, int]) -> int:
        inner = [self._alive(one, known) for one in parts(shape)]
        match shape:
            case Anything():
                return len(_KINDS)
            case Literals(texts):
                if id(shape) not in self._widths:
                    self._widths[id(shape)] = widest(branches(texts))
                return self._widths[id(shape)]
            case Record(members):
                return max([_longest_run([m.required for m in members]) + 1, *inner])
            case Choice(options):
                together = sum(inner) if id(shape) in self._ambiguous else 0
                return max([len(options), together, *inner])
            case Reference(name):
                return known[name]
            case _:
                return max([1, *inner])


_KINDS = ("object", "array", "string", "number", "true", "false", "null")


def _tree(shape: Shape) -> Iterator[Shape]:
    yield shape
    for part in parts(shape):
        yield from _tree(part)


def _at_once(shape: Shape) -> list[str]:
    """The references that a shape may turn into with nothing written before."""
    if isinstance(shape, Reference):
        return [shape.name]
    if isinstance(shape, Choice):
        return [name for option in shape.options for name in _at_once(option)]
    return []


def _ends(shape: Shape, ending: set[str]) -> bool:
    match shape:
        case Reference(name):
            return name in ending
        case Choice(options):
            return any(_ends(option, ending) for option in options)
        case Record(members):
            return all(_ends(m.value, ending) for m in members if m.required)
        case Array(first, items, least, _):
            needed = (*first, items) if least else first
            return all(_ends(one, ending) for one in needed)
        case _:
            return True


def _openings_of_record(members: Sequence[Member]) -> list[str]:
    """As far as every object of a kind is the same, or one of a few."""
    openings, separator = ["{"], ""
    for member in members:
        if not member.required:
            return openings
        openings = [f"{text}{separator}{member.key}:" for text in openings]
        values = member.value.texts if isinstance(member.value, Literals) else ()
        if not values or len(openings) * len(values) > _MAX_OPENINGS:
            return openings
        openings = [text + value for text in openings for value in values]
        separator = ","
    return [text + "}" for text in openings]


def _longest_run(required: Iterable[bool]) -> int:
    """How many in a row are not."""
    longest = run = 0
    for one in required:
        run = 0 if one else run + 1
        longest = max(longest, run)
    return longest
