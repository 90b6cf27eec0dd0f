"""From the body of a request to a :class:`ChatRequest`, or to an error that names the field."""

import re
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, get_args

from kwaai_core.errors import RequestError, RequestTooLarge, UnsupportedParameter
from kwaai_core.openai.fields import Fields, Reader, array, filled, flag, integer, number, text
from kwaai_core.openai.strict import brief, load_object
from kwaai_core.types import ChatRequest, ChatRole, Intent, Message, Prompt, Sampling, Tier

T = TypeVar("T")

MAX_STOPS = 4
MAX_BIASES = 1024
_TOKEN = re.compile(r"0|[1-9][0-9]{0,8}")
MAX_TOKENS = 2**31 - 1

_ROLES: tuple[ChatRole, ...] = get_args(ChatRole)

_IGNORED = (
    "metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user",
)  # fmt: skip

_NEUTRAL: dict[str, tuple[object, ...]] = {"n": (1,)}
_NEUTRAL_CHAT: dict[str, tuple[object, ...]] = _NEUTRAL | {
    "audio": (),
    "function_call": ("none", "auto"),  # without functions both mean the same: text
    "functions": ([],),
    "logprobs": (False,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_NEUTRAL_COMPLETION: dict[str, tuple[object, ...]] = _NEUTRAL | {
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (),
    "suffix": ("",),
}
_NEUTRAL_MESSAGE: dict[str, tuple[object, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
    "tool_calls": ([],),
}
_NEUTRAL_KWAAI: dict[str, tuple[object, ...]] = {"knowledge": ([],)}
_TIERS: tuple[Tier, ...] = get_args(Tier)
_MOST_MS = 1e9


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the API: what to generate, and the form in which the client wants it."""

    request: ChatRequest
    stream: bool = False
    include_usage: bool = False
    timing: bool = False


def parse_chat(body: bytes, *, max_messages: int = 2048) -> Call:
    """A call of ``/v1/chat/completions``.

    Errors:
      RequestError: not JSON, malformed or out of range; ``param`` names the field.
      UnsupportedParameter: a field that this node does not honour, or does not know.
      RequestTooLarge: more than ``max_messages`` of them.
    """
    fields = Fields(load_object(body))
    prompt = fields.require("messages", partial(_messages, max_messages))
    return _call(fields, prompt, _NEUTRAL_CHAT, "max_completion_tokens")


def parse_completion(body: bytes) -> Call:
    """A call of ``/v1/completions``; errors as of :func:`parse_chat`."""
    fields = Fields(load_object(body))
    return _call(fields, fields.require("prompt", _prompt), _NEUTRAL_COMPLETION)


def _call(
    fields: Fields, prompt: Prompt, neutral: dict[str, tuple[object, ...]], *limits: str
) -> Call:
    model = fields.require("model", filled)
    intent, timing = fields.take("kwaai", partial(_intent, model), (Intent(model), False))
    request = ChatRequest(
        intent=intent,
        prompt=prompt,
        sampling=_sampling(fields),
        stop=fields.take("stop", _stops, ()),
        max_tokens=_max_tokens(fields, "max_tokens", *limits),
    )
    call = Call(
        request,
        stream=fields.take("stream", flag, False),
        include_usage=fields.take("stream_options", _include_usage, False),
        timing=timing,
    )
    fields.ignore(*_IGNORED)
    fields.refuse_but(neutral)
    return call


def _sampling(fields: Fields) -> Sampling:
    default = Sampling()
    return Sampling(
        temperature=fields.take("temperature", number(0, 2), default.temperature),
        top_p=fields.take("top_p", number(0, 1), default.top_p),
        # -1 is how clients of vLLM write «off», which is 0 here and in llama.cpp.
        top_k=max(0, fields.take("top_k", integer(-1, 2**31 - 1), default.top_k)),
        seed=fields.take("seed", integer(-(2**63), 2**63 - 1), None),
        min_p=fields.take("min_p", number(0, 1), default.min_p),
        presence_penalty=fields.take("presence_penalty", number(-2, 2), default.presence_penalty),
        frequency_penalty=fields.take(
            "frequency_penalty", number(-2, 2), default.frequency_penalty
        ),
        repeat_penalty=_either(fields, number(0.01, 100), "repeat_penalty", "repetition_penalty")
        or default.repeat_penalty,
        logit_bias=fields.take("logit_bias", _logit_bias, ()),
    )


def _logit_bias(value: object, at: str) -> tuple[tuple[int, float], ...]:
    """From ``{"50256": -100}``; in the order of the tokens, so that equal maps are equal."""
    if not isinstance(value, dict):
        raise RequestError(f"{at} must be an object", param=at)
    if len(value) > MAX_BIASES:
        raise RequestError(f"{at} must not have more than {MAX_BIASES} tokens", param=at)
    found = dict[int, float]()
    for name, bias in value.items():
        if not _TOKEN.fullmatch(name):
            raise RequestError(
                f"{at} has “{brief(name)}”, which is not the number of a token", param=at
            )
        if int(name) in found:
            raise RequestError(f"{at} has the token {int(name)} twice", param=at)
        found[int(name)] = number(-100, 100)(bias, f"{at}.{name}")
    return tuple(sorted(found.items()))


def _max_tokens(fields: Fields, *names: str) -> int | None:
    return _either(fields, integer(1, MAX_TOKENS), *names)


def _either(fields: Fields, read: Reader[T], *names: str) -> T | None:
    """One field that has several names."""
    given = {name: fields.take(name, read, None) for name in names}
    values = {value for value in given.values() if value is not None}
    if len(values) > 1:
        raise RequestError(f"{' and '.join(given)} differ: give only one", param=names[-1])
    return values.pop() if values else None


def _stops(value: object, at: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return (filled(value, at),)
    if not isinstance(value, list) or len(value) > MAX_STOPS:
        raise RequestError(f"{at} must be a string or up to {MAX_STOPS} strings", param=at)
    return tuple(filled(stop, f"{at}[{i}]") for i, stop in enumerate(value))


def _include_usage(value: object, at: str) -> bool:
    fields = Fields(value, at)
    wanted = fields.take("include_usage", flag, False)
    fields.refuse_but({"include_obfuscation": (False,)})
    return wanted


def _intent(model: str, value: object, at: str) -> tuple[Intent, bool]:
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


def _tier(value: object, at: str) -> Tier:
    for tier in _TIERS:
        if value == tier:
            return tier
    raise RequestError(f"{at} must be one of {', '.join(_TIERS)}", param=at)


def _prompt(value: object, at: str) -> str:
    if isinstance(value, str):
        return text(value, at)
    parts = array(value, at)
    if len(parts) == 1 and isinstance(parts[0], str):
        return text(parts[0], f"{at}[0]")
    raise UnsupportedParameter(
        f"{at} must be one string: arrays of tokens and of several prompts are not supported yet",
        param=at,
    )


def _messages(limit: int, value: object, at: str) -> tuple[Message, ...]:
    messages = array(value, at)
    if not messages:
        raise RequestError(f"{at} must not be empty", param=at)
    if len(messages) > limit:
        raise RequestTooLarge(
            f"there are {len(messages)} {at}, over this node's limit of {limit} "
            "([server] max_messages in kwaai.toml)",
            param=at,
        )
    return tuple(_message(message, f"{at}[{i}]") for i, message in enumerate(messages))


def _message(value: object, at: str) -> Message:
    fields = Fields(value, at)
    role = fields.require("role", _role)
    message = Message(
        role=role, content=fields.require("content", _content), name=fields.take("name", text, None)
    )
    if role == "tool":
        fields.ignore("tool_call_id")
    fields.refuse_but(_NEUTRAL_MESSAGE if role == "assistant" else {})
    return message


def _role(value: object, at: str) -> ChatRole:
    for role in _ROLES:
        if value == role:
            return role
    shown = f", not “{brief(value)}”" if isinstance(value, str) else ""
    raise RequestError(f"{at} must be one of {', '.join(_ROLES)}{shown}", param=at)


def _content(value: object, at: str) -> str:
    """Text, or text parts, which are joined with line breaks as llama.cpp and vLLM do."""
    if isinstance(value, str):
        return text(value, at)
    if not isinstance(value, list) or not value:
        raise RequestError(f"{at} must be a string or an array of text parts", param=at)
    return "\n".join(_part(part, f"{at}[{i}]") for i, part in enumerate(value))


def _part(value: object, at: str) -> str:
    fields = Fields(value, at)
    kind = fields.require("type", text)
    if kind != "text":
        raise UnsupportedParameter(
            f"{at} is a part of type “{brief(kind)}”: this node takes only text", param=at
        )
    content = fields.require("text", text)
    fields.refuse_but({})
    return content
