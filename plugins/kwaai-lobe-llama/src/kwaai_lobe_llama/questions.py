"""What a worker was asked about texts and tokens, and has still to answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import trio

from kwaai_core import KwaaiError, RequestError
from kwaai_lobe_llama.answers import decode_failure
from kwaai_lobe_llama.frames import FrameError, Kind


@dataclass(eq=False, slots=True)
class _Asked:
    param: str
    answered: trio.Event = field(default_factory=trio.Event)
    answer: Mapping[str, Any] = field(default_factory=dict)
    error: KwaaiError | None = None


class Questions:
    """The questions of one worker, by their numbers."""

    def __init__(self) -> None:
        self._asked: dict[int, _Asked] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._asked

    def __len__(self) -> int:
        return len(self._asked)

    async def wait(self, number: int, param: str) -> Mapping[str, Any]:
        """The answer to the question that is sent under this number; ``param`` is the field of a
        request that it is about.

        Errors: :class:`RequestError` where it cannot be answered; what :meth:`fail` was told.
        """
        asked = self._asked[number] = _Asked(param)
        try:
            await asked.answered.wait()
        finally:
            del self._asked[number]
        if asked.error is not None:
            raise asked.error
        return asked.answer

    def take(self, number: int, kind: Kind, payload: bytes) -> None:
        """Take a frame that answers a question; raises :class:`FrameError`."""
        asked = self._asked[number]
        if kind is Kind.FAILED:
            asked.error = RequestError(decode_failure(payload).message, param=asked.param)
        elif kind is Kind.TOKENISED:
            asked.answer = _object(payload)
        else:
            raise FrameError(f"a question is answered with a {kind.name} frame")
        asked.answered.set()

    def fail(self, error: KwaaiError) -> None:
        """Nothing is answered any more."""
        for asked in self._asked.values():
            asked.error = error
            asked.answered.set()


def _object(payload: bytes) -> dict[str, Any]:
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"TOKENISED holds no JSON: {error}") from None
    if not isinstance(found, dict):
        raise FrameError("TOKENISED holds no JSON object")
    return found
