"""From types to the JSON documents of OpenAI's API: whole answers, models, errors."""

from collections.abc import Sequence
from dataclasses import dataclass

from kwaai_core.errors import KwaaiError
from kwaai_core.openai.calls import whole
from kwaai_core.openai.logprobs import Kind, Logprobs
from kwaai_core.types import (
    CallPiece,
    FinishReason,
    Hop,
    HopTiming,
    ModelCard,
    Report,
    TokenLogprob,
    Usage,
)

_TYPES = {403: "permission_error", 429: "rate_limit_error"}


@dataclass(frozen=True, slots=True)
class Head:
    """What all parts of one answer repeat: ``created`` in seconds since 1970."""

    kind: Kind
    id: str
    model: str
    created: int


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer that is whole, with its ``calls``; ``logprobs`` None where none were asked
    for."""

    text: str
    finish: FinishReason
    logprobs: Sequence[TokenLogprob] | None = None
    calls: Sequence[CallPiece] = ()


def completion(
    head: Head, choices: Sequence[Choice], usage: Usage, kwaai: dict[str, object]
) -> dict[str, object]:
    """The answer to a call that does not stream."""
    return {
        "id": head.id,
        "object": "chat.completion" if head.kind == "chat" else "text_completion",
        "created": head.created,
        "model": head.model,
        "choices": [_choice(head, index, choice) for index, choice in enumerate(choices)],
        "usage": usage_of(usage),
        "kwaai": kwaai,
    }


def _choice(head: Head, index: int, choice: Choice) -> dict[str, object]:
    said: dict[str, object] = (
        {"message": _message(choice)} if head.kind == "chat" else {"text": choice.text}
    )
    logprobs = Logprobs(head.kind).of(choice.logprobs) if choice.logprobs is not None else None
    return {"index": index} | said | {"logprobs": logprobs, "finish_reason": choice.finish}


def _message(choice: Choice) -> dict[str, object]:
    content = choice.text if choice.text or not choice.calls else None
    message: dict[str, object] = {"role": "assistant", "content": content, "refusal": None}
    return message | ({"tool_calls": whole(choice.calls)} if choice.calls else {})


def usage_of(usage: Usage) -> dict[str, object]:
    """The ``usage`` of an answer; all in tokens."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def route_of(
    hops: Sequence[Hop], report: Report | None = None, *, timing: bool = False
) -> dict[str, object]:
    """The ``kwaai`` of an answer: who computed which blocks, and what is known besides."""
    if report is None:
        return {"route": [_hop(hop) for hop in hops]}
    facts: dict[str, object] = {
        "route": [_hop(took.hop) for took in report.timings],
        "exact": report.exact,
        "same_text_guaranteed": report.same_text_guaranteed,
    }
    return facts | ({"timing": [_timing(took) for took in report.timings]} if timing else {})


def together(one: Report | None, other: Report | None) -> Report | None:
    """What several answers of one call took in all, those of the same hop together."""
    if one is None or other is None:
        return one or other
    added = {took.hop: took for took in one.timings}
    for took in other.timings:
        before = added.get(took.hop)
        added[took.hop] = took if before is None else _sum(before, took)
    return Report(
        tuple(added.values()),
        one.exact and other.exact,
        one.same_text_guaranteed and other.same_text_guaranteed,
    )


def _sum(one: HopTiming, other: HopTiming) -> HopTiming:
    return HopTiming(
        one.hop,
        one.rows + other.rows,
        one.replayed + other.replayed,
        one.queue_ms + other.queue_ms,
        one.compute_ms + other.compute_ms,
        one.wire_ms + other.wire_ms,
    )


def route_header(hops: Sequence[Hop]) -> bytes:
    """The value of ``x-kwaai-route``: who was to compute which blocks ``[lo, hi)``, in order."""
    return ", ".join(f"{hop.peer}:{hop.span.lo}-{hop.span.hi}" for hop in hops).encode()


def _hop(hop: Hop) -> dict[str, object]:
    return {"peer": hop.peer, "lo": hop.span.lo, "hi": hop.span.hi}


def _timing(took: HopTiming) -> dict[str, object]:
    return {
        "peer": took.hop.peer,
        "rows": took.rows,
        "replayed": took.replayed,
        "queue_ms": round(took.queue_ms, 3),
        "compute_ms": round(took.compute_ms, 3),
        "wire_ms": round(took.wire_ms, 3),
    }


def model(card: ModelCard) -> dict[str, object]:
    """One model, with what this node knows beyond OpenAI's fields under ``kwaai``."""
    return {
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": card.source or "kwaai",
        "kwaai": {
            "digest": card.digest,
            "architecture": card.architecture,
            "size": card.size,
            "blocks": card.blocks,
            "context_length": card.context_length,
            "dimensions": card.dimensions,
        },
    }


def models(cards: Sequence[ModelCard]) -> dict[str, object]:
    """The list of models."""
    return {"object": "list", "data": [model(card) for card in cards]}


def failure(error: KwaaiError, status: int | None = None) -> dict[str, object]:
    """The document of an error, all four keys always there; ``status`` where it is not its own."""
    status = status or error.status
    default = "invalid_request_error" if status < 500 else "server_error"
    return {
        "error": {
            "message": error.message,
            "type": _TYPES.get(status, default),
            "param": error.param,
            "code": error.code,
        }
    }
