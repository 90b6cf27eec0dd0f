"""A call of ``/v1/responses``: one answer to what is sent with it, since no response is kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NoReturn, get_args

from kwaai_core.errors import RequestError, UnsupportedParameter
from kwaai_core.openai.described import NEUTRAL, Described, Schema, described
from kwaai_core.openai.fields import Fields, array, filled, flag, integer, text
from kwaai_core.openai.formats import read_text_format
from kwaai_core.openai.prompts import turns
from kwaai_core.openai.requests import MAX_LOGPROBS, Call, read_intent
from kwaai_core.openai.sampling import read_max_tokens, read_sampling, read_stops
from kwaai_core.openai.strict import brief, load_object
from kwaai_core.openai.tools import read_arguments, read_tools
from kwaai_core.types import ChatRequest, ChatRole, Intent, Message, ToolCall

_ROLES: tuple[ChatRole, ...] = tuple(role for role in get_args(ChatRole) if role != "tool")
_REPEATED = (
    "instructions", "metadata", "parallel_tool_calls", "text", "tool_choice", "tools",
)  # fmt: skip
_LOGPROBS = "message.output_text.logprobs"
_REASONING = "reasoning.encrypted_content"
_MOST_PAIRS, _LONGEST_KEY, _LONGEST_VALUE = 16, 64, 512

_IGNORED = (
    "max_tool_calls",  # of tools that are no functions
    "prompt_cache_key", "safety_identifier", "service_tier", "store", "user",
)  # fmt: skip

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "background": (False,),
    "context_management": ([],),
    "moderation": (),
    "reasoning": ({}, {"effort": "none"}),
}
_NEUTRAL_CALL: dict[str, tuple[object, ...]] = {
    "async": (),
    "async_": (),  # as openai's SDK writes it where it lays out an item with all fields
    "caller": (),
    "namespace": (),
}
_WHY_NOT: dict[str, str] = {
    "conversation": "no conversation is kept here: send all of it as input",
    "previous_response_id": "no response is kept here: send the whole conversation as input",
    "prompt": "no prompt is kept here: send its text as input",
}


@dataclass(frozen=True, slots=True)
class ResponseCall(Call):
    """A call, and what of it the response repeats, as it came."""

    repeated: Mapping[str, object] = field(default_factory=dict)


def parse_response(body: bytes, *, max_messages: int = 2048) -> ResponseCall:
    """A call of ``/v1/responses``; errors as of :func:`kwaai_core.openai.parse_chat`."""
    return read_response(load_object(body), max_messages)


def read_response(given: dict[str, object], max_messages: int) -> ResponseCall:
    """As :func:`parse_response`, of a body that is JSON already."""
    fields = Fields(given)
    for name, why in _WHY_NOT.items():
        fields.take(name, _refusing(why), None)
    instructions = fields.take("instructions", text, None)
    messages = _joined(fields.require("input", partial(read_input, max_messages)))
    if instructions is not None:
        messages = (Message("system", instructions), *messages)
    model = fields.require("model", filled)
    intent, timing = fields.take("kwaai", partial(read_intent, model), (Intent(model), False))
    request = ChatRequest(
        intent=intent,
        prompt=messages,
        sampling=read_sampling(fields),
        stop=fields.take("stop", read_stops, ()),
        max_tokens=read_max_tokens(fields, "max_output_tokens"),
        logprobs=_logprobs(fields),
        schema=fields.take("text", _text_options, None),
        tools=read_tools(fields, flat=True),
    )
    if request.tools is not None and request.logprobs is not None:
        raise RequestError(
            "logprobs are those of text, and this answer may call tools: leave them out, or the "
            "tools",
            param="include",
        )
    fields.take("metadata", _check_metadata, None)
    fields.take("truncation", _truncation, None)
    fields.take("stream_options", _stream_options, None)
    call = ResponseCall(
        (request,),
        stream=fields.take("stream", flag, False),
        timing=timing,
        repeated={name: given[name] for name in _REPEATED if given.get(name) is not None},
    )
    fields.ignore(*_IGNORED)
    fields.refuse_but(_NEUTRAL)
    return call


def _refusing(why: str) -> Described[NoReturn]:
    return Described(partial(_refuse, why), {"enum": [], "description": NEUTRAL})


def _refuse(why: str, value: object, at: str) -> NoReturn:
    raise UnsupportedParameter(f"{at}: {why}", param=at)


# -- input


def read_input(limit: int, value: object, at: str) -> tuple[Message, ...]:
    """A text of the user's, or items in the order of the conversation."""
    if isinstance(value, str):
        return (Message("user", text(value, at)),)
    items = turns(limit, value, at)
    return tuple(read_item(item, f"{at}[{i}]") for i, item in enumerate(items))


def read_item(value: object, at: str) -> Message:
    """One item of the input."""
    fields = Fields(value, at)
    kind = fields.take("type", text, "message")
    read = _ITEMS.get(kind)
    if read is None:
        raise UnsupportedParameter(
            f"{at} is an item of type “{brief(kind)}”: this node takes messages, and calls of "
            "functions with their outputs",
            param=at,
        )
    return read(fields, at)


def _message(fields: Fields, at: str) -> Message:
    role = fields.require("role", _role)
    content = fields.require("content", _content)
    fields.ignore("id", "phase", "status")
    fields.refuse_but({})
    return Message(role, content)


def _call(fields: Fields, at: str) -> Message:
    call = ToolCall(
        fields.require("call_id", filled),
        fields.require("name", filled),
        fields.require("arguments", read_arguments),
    )
    fields.ignore("id", "status")
    fields.refuse_but(_NEUTRAL_CALL)
    return Message("assistant", "", tool_calls=(call,))


def _output(fields: Fields, at: str) -> Message:
    number, said = fields.require("call_id", filled), fields.require("output", _content)
    fields.ignore("id", "status")
    fields.refuse_but({})
    return Message("tool", said, tool_call_id=number)


def _joined(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Calls that follow one another, or a text, are of one turn."""
    found = list[Message]()
    for message in messages:
        before = found[-1] if found else None
        if message.tool_calls and before is not None and before.role == "assistant":
            found[-1] = replace(before, tool_calls=before.tool_calls + message.tool_calls)
        else:
            found.append(message)
    return tuple(found)


def _no_reasoning(fields: Fields, at: str) -> NoReturn:
    raise UnsupportedParameter(
        f"{at}: no model reads the reasoning of another response here: leave the item out",
        param=at,
    )


_ITEMS: dict[str, Callable[[Fields, str], Message]] = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _output,
    "reasoning": _no_reasoning,
}


@described({"enum": [*_ROLES]})
def _role(value: object, at: str) -> ChatRole:
    for role in _ROLES:
        if value == role:
            return role
    shown = f", not “{brief(value)}”" if isinstance(value, str) else ""
    raise RequestError(f"{at} must be one of {', '.join(_ROLES)}{shown}", param=at)


def _part_of(kind: str, **more: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {"type": {"const": kind}, "text": text.schema} | more,
        "required": ["type", "text"],
        "additionalProperties": False,
    }


_PARTS = [_part_of("input_text"), _part_of("output_text", annotations={}, logprobs={})]


@described({"anyOf": [text.schema, {"type": "array", "minItems": 1, "items": {"anyOf": _PARTS}}]})
def _content(value: object, at: str) -> str:
    if isinstance(value, str):
        return text(value, at)
    if not isinstance(value, list) or not value:
        raise RequestError(f"{at} must be a string or an array of text parts", param=at)
    return "\n".join(_part(part, f"{at}[{i}]") for i, part in enumerate(value))


def _part(value: object, at: str) -> str:
    fields = Fields(value, at)
    kind = fields.require("type", text)
    if kind not in ("input_text", "output_text"):
        raise UnsupportedParameter(
            f"{at} is a part of type “{brief(kind)}”: this node takes only text", param=at
        )
    content = fields.require("text", text)
    if kind == "output_text":
        fields.ignore("annotations", "logprobs")
    fields.refuse_but({})
    return content


# -- options


def _logprobs(fields: Fields) -> int | None:
    included = fields.take("include", _include, False)
    most = fields.take("top_logprobs", integer(0, MAX_LOGPROBS), 0)
    return most if included or most else None


@described({"type": "array", "items": {"enum": [_LOGPROBS, _REASONING]}})
def _include(value: object, at: str) -> bool:
    """Whether probabilities are to be in the answer; there is never any reasoning to include."""
    wanted = False
    for i, name in enumerate(array(value, at)):
        if name not in (_LOGPROBS, _REASONING):
            shown = brief(name) if isinstance(name, str) else "something that is no string"
            raise UnsupportedParameter(
                f"{at}[{i}] asks for {shown}: this node includes only {_LOGPROBS}",
                param=f"{at}[{i}]",
            )
        wanted = wanted or name == _LOGPROBS
    return wanted


def _text_options(value: object, at: str) -> str | None:
    fields = Fields(value, at)
    schema = fields.take("format", read_text_format, None)
    fields.refuse_but({"verbosity": ("medium",)})
    return schema


@described({"enum": ["disabled"]})
def _truncation(value: object, at: str) -> None:
    if value != "disabled":
        raise UnsupportedParameter(
            f'{at} must be "disabled": this node never drops a part of what it is sent', param=at
        )


def _stream_options(value: object, at: str) -> None:
    Fields(value, at).refuse_but({"include_obfuscation": (False,)})


@described(
    {
        "type": "object",
        "maxProperties": _MOST_PAIRS,
        "propertyNames": {"maxLength": _LONGEST_KEY},
        "additionalProperties": text.schema | {"maxLength": _LONGEST_VALUE},
    }
)
def _check_metadata(value: object, at: str) -> None:
    if not isinstance(value, dict):
        raise RequestError(f"{at} must be an object", param=at)
    if len(value) > _MOST_PAIRS:
        raise RequestError(f"{at} must not have more than {_MOST_PAIRS} pairs", param=at)
    for key, said in value.items():
        for part, longest in ((key, _LONGEST_KEY), (said, _LONGEST_VALUE)):
            if len(text(part, at)) > longest:
                raise RequestError(f"{at} has a string over {longest} characters", param=at)
