"""What a request gives to go on from: messages, texts, or tokens."""

from collections.abc import Sequence
from functools import partial
from typing import get_args

from kwaai_core.errors import RequestError, RequestTooLarge, UnsupportedParameter
from kwaai_core.openai.described import Described, Schema, described
from kwaai_core.openai.fields import Fields, array, integer, text
from kwaai_core.openai.strict import brief
from kwaai_core.openai.tools import read_calls
from kwaai_core.types import ChatRole, Message, TokenIds

MAX_CHOICES = 128
_LARGEST = 2**31 - 1
_TOKEN = integer(0, _LARGEST)
_TOKENS: Schema = {"type": "array", "items": _TOKEN.schema}

_ROLES: tuple[ChatRole, ...] = get_args(ChatRole)

_NEUTRAL_MESSAGE: dict[str, tuple[object, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
}


@described(
    {
        "anyOf": [
            text.schema,
            _TOKENS | {"minItems": 1},
            {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_CHOICES,
                "items": {"anyOf": [text.schema, _TOKENS]},
            },
        ]
    }
)
def read_prompts(value: object, at: str) -> Sequence[str | TokenIds]:
    """One prompt or several, each of them a string or an array of tokens."""
    if isinstance(value, list) and not any(_is_number(part) for part in value):
        if not value:
            raise RequestError(f"{at} must not be empty", param=at)
        if len(value) > MAX_CHOICES:
            raise RequestError(
                f"{at} has {len(value)} prompts, over this node's limit of {MAX_CHOICES}", param=at
            )
        return [_prompt(part, f"{at}[{i}]") for i, part in enumerate(value)]
    return [_prompt(value, at)]


def _prompt(value: object, at: str) -> str | TokenIds:
    return read_tokens(value, at) if isinstance(value, list) else text(value, at)


@described(_TOKENS)
def read_tokens(value: object, at: str) -> TokenIds:
    """An array of the numbers of tokens."""
    given = array(value, at)
    whole = [token for token in given if type(token) is int]
    if whole and len(whole) == len(given) and min(whole) >= 0 and max(whole) <= _LARGEST:
        return TokenIds(tuple(whole))  # at once: one by one they take ten times as long
    return TokenIds(tuple(_TOKEN(token, f"{at}[{i}]") for i, token in enumerate(given)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def messages_up_to(limit: int) -> Described[tuple[Message, ...]]:
    """A reader of conversations of at most so many messages."""
    schema = {"type": "array", "minItems": 1, "maxItems": limit}
    return Described(partial(read_messages, limit), schema)


def read_messages(limit: int, value: object, at: str) -> tuple[Message, ...]:
    """A conversation of at most so many messages."""
    messages = turns(limit, value, at)
    return tuple(_message(message, f"{at}[{i}]") for i, message in enumerate(messages))


def turns(limit: int, value: object, at: str) -> list[object]:
    """An array of at least one and at most so many turns of a conversation."""
    found = array(value, at)
    if not found:
        raise RequestError(f"{at} must not be empty", param=at)
    if len(found) > limit:
        raise RequestTooLarge(
            f"there are {len(found)} turns in {at}, over this node's limit of {limit} "
            "([server] max_messages in kwaai.toml)",
            param=at,
        )
    return found


def _message(value: object, at: str) -> Message:
    fields = Fields(value, at)
    role = fields.require("role", _role)
    calls = fields.take("tool_calls", read_calls, ()) if role == "assistant" else ()
    content = (
        fields.take("content", read_content, "")
        if calls
        else fields.require("content", read_content)
    )
    name = fields.take("name", text, None)
    answered = fields.take("tool_call_id", text, None) if role == "tool" else None
    message = Message(role, content, name, calls, answered)
    fields.refuse_but(_NEUTRAL_MESSAGE if role == "assistant" else {})
    return message


@described({"enum": [*_ROLES]})
def _role(value: object, at: str) -> ChatRole:
    for role in _ROLES:
        if value == role:
            return role
    shown = f", not “{brief(value)}”" if isinstance(value, str) else ""
    raise RequestError(f"{at} must be one of {', '.join(_ROLES)}{shown}", param=at)


@described(
    {
        "anyOf": [
            text.schema,
            {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "properties": {"type": {"const": "text"}, "text": text.schema},
                    "required": ["type", "text"],
                    "additionalProperties": False,
                },
            },
        ]
    }
)
def read_content(value: object, at: str) -> str:
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
