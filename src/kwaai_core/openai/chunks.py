"""The events of a streamed answer, as bytes ready to send.

Text goes out once per token, so all that does not change is laid out once per choice, and a token
costs the JSON encoding of its own text and two concatenations.
"""

import json
from collections.abc import Sequence

from kwaai_core.errors import KwaaiError
from kwaai_core.openai.answers import Head, failure, usage_of
from kwaai_core.openai.calls import deltas
from kwaai_core.openai.logprobs import Logprobs
from kwaai_core.types import CallPiece, FinishReason, TokenLogprob, Usage

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Chunks:
    """Renders one choice of a streamed answer; ``include_usage`` as in ``stream_options``.
    ``calling``: it may be of calls alone."""

    def __init__(
        self, head: Head, *, index: int = 0, include_usage: bool, calling: bool = False
    ) -> None:
        self._kind = head.kind
        self._index = index
        self._include_usage = include_usage
        self._content = None if calling else ""
        self._logprobs = Logprobs(head.kind)
        self._envelope: dict[str, object] = {
            "id": head.id,
            "object": "chat.completion.chunk" if head.kind == "chat" else "text_completion",
            "created": head.created,
            "model": head.model,
        }
        template = json.dumps(self._chunk(self._said("\0"), None), separators=(",", ":")).encode()
        before, _, after = template.rpartition(rb'"\u0000"')
        self._before, self._after = b"data: " + before, after + b"\n\n"

    def opening(self) -> bytes:
        """What precedes the first text: the chunk with the role, where there are roles."""
        if self._kind == "text":
            return b""
        return _event(self._chunk({"delta": {"role": "assistant", "content": self._content}}, None))

    def text(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """One chunk of text; whatever cannot be UTF-8 in it becomes a question mark."""
        if logprobs:
            return _event(self._chunk(self._said(text), None, self._logprobs.of(logprobs)))
        return self._before + _encode(text).encode("utf-8", "replace") + self._after

    def calls(self, pieces: Sequence[CallPiece]) -> bytes:
        """Pieces of calls of tools."""
        return b"".join(
            _event(self._chunk({"delta": {"tool_calls": [entry]}}, None))
            for entry in deltas(pieces)
        )

    def finished(self, finish: FinishReason) -> bytes:
        """What ends the choice, where others are still to come."""
        return _event(self._last(finish))

    def closing(self, finish: FinishReason, usage: Usage, facts: dict[str, object]) -> bytes:
        """All that follows the last text of the last choice, up to ``[DONE]``."""
        last, kwaai = self._last(finish), {"kwaai": facts}
        if not self._include_usage:
            return _event(last | kwaai) + DONE
        counted = self._envelope | {"choices": [], "usage": usage_of(usage)} | kwaai
        return _event(last) + _event(counted) + DONE

    def failed(self, error: KwaaiError) -> bytes:
        """What ends a stream that cannot be finished; no ``[DONE]`` follows it."""
        return failed_event(error)

    def _last(self, finish: FinishReason) -> dict[str, object]:
        return self._chunk({"delta": {}} if self._kind == "chat" else {"text": ""}, finish)

    def _said(self, text: str) -> dict[str, object]:
        return {"delta": {"content": text}} if self._kind == "chat" else {"text": text}

    def _chunk(
        self,
        said: dict[str, object],
        finish: FinishReason | None,
        logprobs: dict[str, object] | None = None,
    ) -> dict[str, object]:
        choice = {"index": self._index} | said | {"logprobs": logprobs, "finish_reason": finish}
        usage: dict[str, object] = {"usage": None} if self._include_usage else {}
        return self._envelope | {"choices": [choice]} | usage


def failed_event(error: KwaaiError) -> bytes:
    """The event that ends a stream that cannot be finished; no ``[DONE]`` follows it."""
    return _event(failure(error))


def _event(document: dict[str, object]) -> bytes:
    return b"data: " + _encode(document).encode("utf-8", "replace") + b"\n\n"
