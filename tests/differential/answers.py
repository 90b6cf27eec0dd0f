"""From what a server sent to what can be compared: an :class:`Answer`, streamed or not."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_MAPS = ("choices.#.logprobs.top_logprobs.#",)
"""Where the keys of an object are no names, but texts of tokens."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token with its probability; ``top`` are the likeliest at its place. All as logarithms."""

    piece: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the texts of an answer."""

    text: str
    finish: str | None
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything of an answer that two servers may differ in.

    ``keys`` are the paths of its JSON with the kinds of what is there; of a stream, those of all
    its chunks. ``values`` are those that have to be the same. ``form`` is how it was sent.
    """

    status: int
    choices: tuple[Choice, ...] = ()
    usage: Mapping[str, int] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, frozenset[str]] = field(default_factory=dict)
    form: Mapping[str, str] = field(default_factory=dict)


def read_answer(status: int, content_type: str, body: bytes) -> Answer:
    """An answer from its bytes; whatever is no JSON has no keys."""
    kind = content_type.partition(";")[0]
    if kind == "text/event-stream":
        return _streamed(status, kind, body)
    try:
        document = json.loads(body)
    except ValueError:
        return Answer(status, form={"content type": kind})
    return _merged(status, [document], {"content type": kind})


def _streamed(status: int, kind: str, body: bytes) -> Answer:
    events = [
        block[6:] for block in body.decode().replace("\r\n", "\n").split("\n\n") if block[:1] == "d"
    ]
    chunks = [json.loads(event) for event in events if event != "[DONE]"]
    form = {
        "content type": kind,
        "the last event": "[DONE]" if events[-1:] == ["[DONE]"] else "a chunk",
        "ids": str(len({chunk.get("id") for chunk in chunks})),
        "the first delta": _first_delta(chunks),
        "chunks with a finish_reason": str(
            sum(bool(choice["finish_reason"]) for choice in _choices(chunks))
        ),
        "usage": _where_usage(chunks),
    }
    return _merged(status, chunks, form)


def _choices(chunks: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for chunk in chunks:
        yield from chunk.get("choices") or ()


def _first_delta(chunks: Sequence[Mapping[str, Any]]) -> str:
    """Of each choice, in the order in which they began."""
    first: dict[int, str] = {}
    for choice in _choices(chunks):
        if "delta" in choice:
            first.setdefault(choice["index"], ", ".join(sorted(choice["delta"])))
    return "; ".join(first[index] for index in sorted(first)) or "none"


def _where_usage(chunks: Sequence[Mapping[str, Any]]) -> str:
    with_it = [chunk for chunk in chunks if chunk.get("usage")]
    if not with_it:
        return "none"
    where = "beside a choice" if with_it[0]["choices"] else "in a chunk of its own"
    return where if with_it == chunks[-1:] else f"{where}, {len(with_it)} times"


def _merged(status: int, documents: Sequence[object], form: Mapping[str, str]) -> Answer:
    keys: defaultdict[str, set[str]] = defaultdict(set)
    for document in documents:
        for path, kind in _paths(document):
            keys[path].add(kind)
    objects = [document for document in documents if isinstance(document, dict)]
    first = objects[0] if objects else {}
    return Answer(
        status,
        _texts(objects),
        _counts(objects),
        {name: str(first[name]) for name in ("object", "model") if name in first},
        {path: frozenset(kinds) for path, kinds in keys.items()},
        form,
    )


def _counts(objects: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Those of the last usage that was told."""
    told = [one["usage"] for one in objects if one.get("usage")]
    if not told:
        return {}
    counts = told[-1] | (told[-1].get("prompt_tokens_details") or {})
    return {name: count for name, count in counts.items() if isinstance(count, int)}


def _texts(objects: Sequence[Mapping[str, Any]]) -> tuple[Choice, ...]:
    texts: defaultdict[int, str] = defaultdict(str)
    ends: dict[int, str] = {}
    tokens: defaultdict[int, list[Token]] = defaultdict(list)
    for choice in _choices(objects):
        index = choice["index"]
        said = choice.get("message") or choice.get("delta") or choice
        texts[index] += said.get("content") or said.get("text") or ""
        tokens[index] += _tokens(choice.get("logprobs") or {})
        if choice["finish_reason"]:
            ends[index] = choice["finish_reason"]
    return tuple(
        Choice(texts[index], ends.get(index), tuple(tokens[index])) for index in sorted(texts)
    )


def _tokens(told: Mapping[str, Any]) -> Iterator[Token]:
    """From both ways of writing them, that of chats and the older one of texts."""
    for one in told.get("content") or ():
        top = [(bytes(other["bytes"]), other["logprob"]) for other in one["top_logprobs"]]
        yield Token(bytes(one["bytes"]), one["logprob"], tuple(top))
    if "tokens" in told:
        for text, logprob, top in zip(
            told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True
        ):
            yield Token(_piece(text), logprob, tuple((_piece(t), p) for t, p in top.items()))


def _piece(text: str) -> bytes:
    """The bytes of a token, which are spelt out where they are no text."""
    if text.startswith("bytes:\\x"):
        return bytes.fromhex(text.removeprefix("bytes:").replace("\\x", ""))
    return text.encode()


def _paths(value: object, at: str = "") -> Iterator[tuple[str, str]]:
    """Every path below a value, with the kind of what is there; ``#`` is any element."""
    if isinstance(value, dict):
        for name, inner in value.items():
            path = f"{at}.{'*' if at in _MAPS else name}".lstrip(".")
            yield path, _kind(inner)
            yield from _paths(inner, path)
    elif isinstance(value, list):
        for inner in value:
            path = f"{at}.#".lstrip(".")
            yield path, _kind(inner)
            yield from _paths(inner, path)


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    kinds = {str: "string", int: "number", float: "number", list: "array", dict: "object"}
    return kinds[type(value)]
