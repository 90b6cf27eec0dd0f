"""Calls of tools as OpenAI's API writes them, whole and in pieces."""

import uuid
from collections.abc import Iterator, Sequence

from kwaai_core.types import CallPiece


def whole(pieces: Sequence[CallPiece]) -> list[dict[str, object]]:
    """The ``tool_calls`` of a message."""
    found = dict[int, tuple[list[str], list[str]]]()
    for piece in pieces:
        names, arguments = found.setdefault(piece.index, ([], []))
        names.append(piece.name or "")
        arguments.append(piece.arguments)
    return [_opened("".join(names), "".join(parts)) for names, parts in found.values()]


def deltas(pieces: Sequence[CallPiece]) -> Iterator[dict[str, object]]:
    """The entries of ``tool_calls`` in chunks, one a chunk: a call's first has its id, and its name
    alone."""
    waiting: CallPiece | None = None
    for piece in pieces:
        if piece.name is None and not piece.arguments:
            continue
        if waiting is not None and (piece.name is not None or piece.index != waiting.index):
            yield _more(waiting)
            waiting = None
        if piece.name is not None:
            yield {"index": piece.index} | _opened(piece.name, "")
        if piece.arguments:
            before = waiting.arguments if waiting is not None else ""
            waiting = CallPiece(piece.index, None, before + piece.arguments)
    if waiting is not None:
        yield _more(waiting)


def _opened(name: str, arguments: str) -> dict[str, object]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _more(piece: CallPiece) -> dict[str, object]:
    return {"index": piece.index, "function": {"arguments": piece.arguments}}
