"""What a worker answers, and the frames that hold it: texts, calls, ends, failures."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from enum import IntEnum
from math import inf

from kwaai_core import CallPiece, Logprob, TokenLogprob
from kwaai_lobe_llama.frames import COUNT, Fields, FrameError, text_field, utf8


class FailureCode(IntEnum):
    """Why a request failed, as far as the API has to tell the cases apart."""

    BAD_REQUEST = 1
    CONTEXT_LENGTH = 2
    UNSUPPORTED = 3


@dataclass(frozen=True, slots=True)
class Finish:
    """How a request ended; ``digest`` is 32 bytes of SHA-256, or empty where none was asked. The
    milliseconds are those of calls that it was part of, and all others."""

    reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    digest: bytes = b""
    queue_ms: float = 0.0
    compute_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request failed; the counts are those of the prompt and the context, or 0. ``param`` is
    the field at fault where that is not the prompt."""

    code: FailureCode
    message: str
    prompt_tokens: int = 0
    context_tokens: int = 0
    param: str = ""


_FINISH = struct.Struct("<BxxxIIIdd")
_FAILURE = struct.Struct("<BxxxII")
_REASONS = ("stop", "length", "tool_calls")


def decode_ready(payload: bytes) -> Mapping[str, object]:
    """What READY tells of the model; raises :class:`FrameError`."""
    try:
        facts = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"READY holds no JSON: {error}") from None
    if not isinstance(facts, dict):
        raise FrameError("READY holds no JSON object")
    return facts


def encode_text(tokens: int, text: str) -> bytes:
    """The payload of TEXT: ``text`` covers ``tokens`` tokens."""
    return COUNT.pack(tokens) + text.encode()


def decode_text(payload: bytes) -> tuple[int, str]:
    """(tokens, text) of a TEXT payload; raises :class:`FrameError`."""
    fields = Fields(payload)
    return fields.count(), utf8(fields.rest())


def encode_logprobs(tokens: Sequence[TokenLogprob]) -> bytes:
    """The payload of LOGPROBS."""
    found = [[*_pair(one), [*map(_pair, one.top)]] for one in tokens]
    return json.dumps(found, separators=(",", ":")).encode()


def _pair(one: Logprob | TokenLogprob) -> list[object]:
    return [one.token.decode("latin-1"), one.logprob]


def decode_logprobs(payload: bytes) -> tuple[TokenLogprob, ...]:
    """Those of a LOGPROBS payload; raises :class:`FrameError`."""
    try:
        return tuple(
            TokenLogprob(
                token.encode("latin-1"),
                None if logprob is None else float(logprob),
                tuple(Logprob(other.encode("latin-1"), float(log)) for other, log in top),
            )
            for token, logprob, top in json.loads(payload)
        )
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise FrameError(f"LOGPROBS cannot be read: {error}") from None


def encode_calls(pieces: Sequence[CallPiece]) -> bytes:
    """The payload of CALLS."""
    return json.dumps([astuple(piece) for piece in pieces], separators=(",", ":")).encode()


def decode_calls(payload: bytes) -> tuple[CallPiece, ...]:
    """Those of a CALLS payload; raises :class:`FrameError`."""
    try:
        return tuple(
            CallPiece(int(index), None if name is None else str(name), str(arguments))
            for index, name, arguments in json.loads(payload)
        )
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise FrameError(f"CALLS cannot be read: {error}") from None


def encode_finish(finish: Finish) -> bytes:
    """The payload of FINISH."""
    counts = (finish.prompt_tokens, finish.completion_tokens, finish.cached_tokens)
    took = (finish.queue_ms, finish.compute_ms)
    return _FINISH.pack(_REASONS.index(finish.reason), *counts, *took) + finish.digest


def decode_finish(payload: bytes) -> Finish:
    """The :class:`Finish` in a payload; raises :class:`FrameError`."""
    fields = Fields(payload)
    *whole, queue, compute = fields.unpack(_FINISH)
    reason, prompt, completion, cached = map(int, whole)
    if reason >= len(_REASONS):
        raise FrameError(f"there is no way {reason} to finish")
    if not (0 <= queue < inf and 0 <= compute < inf):
        raise FrameError(f"an answer took {queue} ms of waiting and {compute} ms of computing")
    return Finish(_REASONS[reason], prompt, completion, cached, fields.rest(), queue, compute)


def encode_failure(failure: Failure) -> bytes:
    """The payload of FAILED."""
    head = _FAILURE.pack(failure.code, failure.prompt_tokens, failure.context_tokens)
    return head + text_field(failure.param) + failure.message.encode("utf-8", "replace")


def decode_failure(payload: bytes) -> Failure:
    """The :class:`Failure` in a payload; raises :class:`FrameError`."""
    fields = Fields(payload)
    code, prompt, context = map(int, fields.unpack(_FAILURE))
    param = fields.text()
    try:
        return Failure(FailureCode(code), utf8(fields.rest()), prompt, context, param)
    except ValueError:
        raise FrameError(f"there is no failure {code}") from None
