"""Where two answers to one request differ."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from tests.differential.answers import Answer, Choice, Token

Aspect = Literal[
    "status", "form", "value", "key", "choices", "text", "ending", "finish", "usage", "logprobs"
]

TOLERANCE = 1e-3
"""Of a logarithm. llama-server writes that of a probability in 32 bits; they differ by less."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What is not the same, where, and what is there on each side."""

    aspect: Aspect
    where: str
    ours: str
    theirs: str

    def __str__(self) -> str:
        return f"{self.aspect} {self.where}: ours {self.ours}, theirs {self.theirs}"


def differences(ours: Answer, theirs: Answer) -> tuple[Difference, ...]:
    """All of them, in a fixed order; of answers with another status nothing else is compared."""
    if ours.status != theirs.status:
        return (Difference("status", "", str(ours.status), str(theirs.status)),)
    return (
        *_between("form", ours.form, theirs.form),
        *_between("value", ours.values, theirs.values),
        *_keys(ours.keys, theirs.keys),
        *_between("usage", ours.usage, theirs.usage),
        *_choices(ours.choices, theirs.choices),
    )


def _between(
    aspect: Aspect, ours: Mapping[str, object], theirs: Mapping[str, object]
) -> Iterator[Difference]:
    """Values that both have; that one of them is missing is said of the keys."""
    for name in ours.keys() & theirs.keys():
        if ours[name] != theirs[name]:
            yield Difference(aspect, name, str(ours[name]), str(theirs[name]))


def _keys(
    ours: Mapping[str, frozenset[str]], theirs: Mapping[str, frozenset[str]]
) -> Iterator[Difference]:
    """Paths that one side lacks, without those below them, and paths with things of other kinds."""
    for path in sorted(ours.keys() | theirs.keys()):
        above = path.rpartition(".")[0]
        missing = [side for side in (ours, theirs) if path not in side]
        if any(above and above not in side for side in missing):
            continue
        if missing or ours[path] != theirs[path]:
            yield Difference("key", path, _kinds(ours, path), _kinds(theirs, path))


def _kinds(keys: Mapping[str, frozenset[str]], path: str) -> str:
    return " or ".join(sorted(keys.get(path, ()))) or "absent"


def _choices(ours: tuple[Choice, ...], theirs: tuple[Choice, ...]) -> Iterator[Difference]:
    if len(ours) != len(theirs):
        yield Difference("choices", "", str(len(ours)), str(len(theirs)))
    for index, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        yield from _texts(str(index), a.text, b.text)
        if a.finish != b.finish:
            yield Difference("finish", str(index), str(a.finish), str(b.finish))
        yield from _tokens(str(index), a.tokens, b.tokens)


def _texts(where: str, ours: str, theirs: str) -> Iterator[Difference]:
    """One that ends within a character may end with U+FFFD for it, which is told apart."""
    whole = ours.rstrip("\ufffd")
    if ours == theirs:
        return
    if whole == theirs.rstrip("\ufffd"):
        ends = (ascii(ours[len(whole) :]), ascii(theirs[len(whole) :]))
        yield Difference("ending", where, *ends)
    else:
        yield Difference("text", where, repr(ours), repr(theirs))


def _tokens(where: str, ours: tuple[Token, ...], theirs: tuple[Token, ...]) -> Iterator[Difference]:
    left = deque(ours)
    for place, b in enumerate(theirs):
        if not left:
            yield Difference("logprobs", f"{where} length", "0", str(len(theirs) - place))
            return
        a = left.popleft()
        while left and len(a.piece) < len(b.piece) and b.piece.startswith(a.piece):
            yield Difference("logprobs", f"{where} split {place}", str(a.piece), str(b.piece))
            a = replace(left[0], piece=a.piece + left.popleft().piece)
        yield from _token(where, place, a, b)
    if left:
        yield Difference("logprobs", f"{where} length", str(len(left)), "0")


def _token(where: str, place: int, ours: Token, theirs: Token) -> Iterator[Difference]:
    if ours.piece != theirs.piece or abs(ours.logprob - theirs.logprob) > TOLERANCE:
        what = (f"{one.piece!r} {one.logprob:.5f}" for one in (ours, theirs))
        yield Difference("logprobs", f"{where} token {place}", *what)
    elif not _same_top(ours, theirs):
        yield Difference("logprobs", f"{where} top {place}", str(ours.top), str(theirs.top))


def _same_top(ours: Token, theirs: Token) -> bool:
    """The same probabilities, and of the same tokens but for those that tie with one left out."""
    a, b = (sorted((p for _, p in token.top), reverse=True) for token in (ours, theirs))
    if len(a) != len(b) or any(abs(p - q) > TOLERANCE for p, q in zip(a, b, strict=True)):
        return False
    mine, other = dict(ours.top), dict(theirs.top)
    return all(
        abs(mine[piece] - other[piece]) <= TOLERANCE
        if piece in mine and piece in other
        else abs(mine.get(piece, other.get(piece, 0.0)) - a[-1]) <= TOLERANCE
        for piece in mine.keys() | other.keys()
    )
