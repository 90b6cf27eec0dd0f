"""From the body of a request to a :class:`ChatRequest`, or to an error that names the field."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

from kwaai_core.errors import RequestError, UnsupportedParameter
from kwaai_core.openai.described import described
from kwaai_core.openai.fields import Fields, filled, flag, integer, number
from kwaai_core.openai.formats import read_format
from kwaai_core.openai.prompts import MAX_CHOICES, messages_up_to, read_prompts
from kwaai_core.openai.sampling import read_max_tokens, read_sampling, read_stops
from kwaai_core.openai.strict import load_object
from kwaai_core.openai.tools import read_tools
from kwaai_core.types import ChatRequest, Intent, Prompt, Tier

MAX_LOGPROBS = 20

_IGNORED = (
    "metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user",
)  # fmt: skip

_NEUTRAL_CHAT: dict[str, tuple[object, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),  # without functions both mean the same: text
    "functions": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_NEUTRAL_COMPLETION: dict[str, tuple[object, ...]] = {
    "suffix": ("",),
}
_NEUTRAL_KWAAI: dict[str, tuple[object, ...]] = {"knowledge": ([],)}
_TIERS: tuple[Tier, ...] = get_args(Tier)
_MOST_MS = 1e9


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the API: what to generate, and the form in which the client wants it.

    ``requests`` are those of all choices, in the order of their indexes: ``n`` for each prompt.
    """

    requests: tuple[ChatRequest, ...]
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    timing: bool = False

    @property
    def request(self) -> ChatRequest:
        """That of the first choice."""
        return self.requests[0]


def parse_chat(body: bytes, *, max_messages: int = 2048) -> Call:
    """A call of ``/v1/chat/completions``.

    Errors:
      RequestError: not JSON, malformed or out of range; ``param`` names the field.
      UnsupportedParameter: a field that this node does not honour, or does not know.
      RequestTooLarge: more than ``max_messages`` of them.
    """
    return read_chat(load_object(body), max_messages)


def read_chat(body: dict[str, object], max_messages: int) -> Call:
    """As :func:`parse_chat`, of a body that is JSON already."""
    fields = Fields(body)
    prompt = fields.require("messages", messages_up_to(max_messages))
    most = fields.take("top_logprobs", integer(0, MAX_LOGPROBS), None)
    wanted = fields.take("logprobs", flag, False)
    if most and not wanted:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    logprobs = (most or 0) if wanted else None
    schema = fields.take("response_format", read_format, None)
    tools = read_tools(fields)
    if tools and wanted:
        raise UnsupportedParameter(
            "logprobs are those of text, and this answer may call tools: leave logprobs out, or "
            'give tool_choice "none"',
            param="logprobs",
        )
    call = _call(fields, (prompt,), logprobs, _NEUTRAL_CHAT, "max_completion_tokens")
    shaped = (replace(one, schema=schema, tools=tools) for one in call.requests)
    return replace(call, requests=tuple(shaped))


def parse_completion(body: bytes) -> Call:
    """A call of ``/v1/completions``; errors as of :func:`parse_chat`."""
    return read_completion(load_object(body))


def read_completion(body: dict[str, object]) -> Call:
    """As :func:`parse_completion`, of a body that is JSON already."""
    fields = Fields(body)
    prompts = fields.require("prompt", read_prompts)
    logprobs = fields.take("logprobs", integer(0, MAX_LOGPROBS), None)
    echo = fields.take("echo", flag, False)
    best_of = fields.take("best_of", integer(1, MAX_CHOICES), 1)
    call = _call(fields, prompts, logprobs, _NEUTRAL_COMPLETION, least=0, echo=echo)
    if best_of not in (1, call.n):
        raise UnsupportedParameter(
            f"best_of = {best_of}: this node gives all answers that it makes, so it must be n or 1",
            param="best_of",
        )
    return call


def _call(
    fields: Fields,
    prompts: Sequence[Prompt],
    logprobs: int | None,
    neutral: dict[str, tuple[object, ...]],
    *limits: str,
    least: int = 1,
    echo: bool = False,
) -> Call:
    model = fields.require("model", filled)
    intent, timing = fields.take("kwaai", partial(read_intent, model), (Intent(model), False))
    request = ChatRequest(
        intent=intent,
        prompt=prompts[0],
        sampling=read_sampling(fields),
        stop=fields.take("stop", read_stops, ()),
        max_tokens=read_max_tokens(fields, "max_tokens", *limits, least=least),
        logprobs=logprobs,
        echo=echo,
    )
    n = fields.take("n", integer(1, MAX_CHOICES), 1)
    if n * len(prompts) > MAX_CHOICES:
        raise RequestError(
            f"{len(prompts)} prompts with n = {n} are over this node's limit of {MAX_CHOICES} "
            "choices",
            param="n" if n > 1 else "prompt",
        )
    call = Call(
        tuple(_numbered(request, prompt, k) for prompt in prompts for k in range(n)),
        n,
        stream=fields.take("stream", flag, False),
        include_usage=fields.take("stream_options", _include_usage, False),
        timing=timing,
    )
    fields.ignore(*_IGNORED)
    fields.refuse_but(neutral)
    return call


def _numbered(request: ChatRequest, prompt: Prompt, number: int) -> ChatRequest:
    """The request of one of several choices, which has a seed of its own where one is given."""
    seed = request.sampling.seed
    if seed is not None:
        seed = (seed + number + 2**63) % 2**64 - 2**63
    return replace(request, prompt=prompt, sampling=replace(request.sampling, seed=seed))


def _include_usage(value: object, at: str) -> bool:
    fields = Fields(value, at)
    wanted = fields.take("include_usage", flag, False)
    fields.refuse_but({"include_obfuscation": (False,)})
    return wanted


def read_intent(model: str, value: object, at: str) -> tuple[Intent, bool]:
    """What ``kwaai`` asks of the route, and whether it wants the times of each hop."""
    fields = Fields(value, at)
    intent = Intent(
        model,
        min_tier=fields.take("min_tier", _tier, "unknown"),
        max_latency_ms=fields.take("max_latency_ms", number(0, _MOST_MS), None),
        max_first_token_ms=fields.take("max_first_token_ms", number(0, _MOST_MS), None),
        max_price=fields.take("max_price", integer(0, 2**31 - 1), None),
        local_blocks=fields.take("local_blocks", integer(0, 2**16), 0),
        exact=fields.take("exact", flag, None),
    )
    timing = fields.take("timing", flag, False)
    fields.refuse_but(_NEUTRAL_KWAAI)
    return intent, timing


@described({"enum": [*_TIERS]})
def _tier(value: object, at: str) -> Tier:
    for tier in _TIERS:
        if value == tier:
            return tier
    raise RequestError(f"{at} must be one of {', '.join(_TIERS)}", param=at)
