"""``tools`` and ``tool_choice``: what an answer may call, and the calls that it made."""

import json
import re
from collections.abc import Sequence
from functools import partial

from kwaai_core.errors import RequestError, UnsupportedParameter
from kwaai_core.openai.described import Described, described
from kwaai_core.openai.fields import Fields, array, flag, text
from kwaai_core.openai.formats import json_object, name_of
from kwaai_core.openai.strict import brief, load_object
from kwaai_core.types import Tool, ToolCall, Tools

MAX_TOOLS = 128
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NO_PARAMETERS = json.dumps({"type": "object", "properties": {}})


def read_tools(fields: Fields, *, flat: bool = False) -> Tools | None:
    """What may be called; None where nothing may.

    ``flat``: as in a response, where what is in ``function`` stands beside the type.
    """
    shown = fields.take("tools", _tools_of(flat), ())
    parallel = fields.take("parallel_tool_calls", flag, True)
    choice = fields.take("tool_choice", partial(read_choice, flat, shown), None)
    if choice is None:
        choice = tuple(range(len(shown))), False
    allowed, required = choice
    return Tools(shown, allowed, required, parallel) if allowed else None


def _tools_of(flat: bool) -> Described[tuple[Tool, ...]]:
    return Described(partial(_tools, flat), {"type": "array", "maxItems": MAX_TOOLS})


def _tools(flat: bool, value: object, at: str) -> tuple[Tool, ...]:
    given = array(value, at)
    if len(given) > MAX_TOOLS:
        raise RequestError(f"{at} has {len(given)} tools, over the limit of {MAX_TOOLS}", param=at)
    tools = tuple(_tool(flat, one, f"{at}[{i}]") for i, one in enumerate(given))
    names = [tool.name for tool in tools]
    for i, name in enumerate(names):
        if name in names[:i]:
            where = f"{at}[{i}].name" if flat else f"{at}[{i}].function.name"
            raise RequestError(f"{where} is “{name}”, as another is already", param=where)
    return tools


def _tool(flat: bool, value: object, at: str) -> Tool:
    fields = _typed(value, at, "function")
    if flat:
        return _described(fields)
    tool = fields.require("function", _function)
    fields.refuse_but({})
    return tool


def _typed(value: object, at: str, wanted: str) -> Fields:
    fields = Fields(value, at)
    kind = fields.require("type", text)
    if kind != wanted:
        raise UnsupportedParameter(
            f"{at}.type must be {wanted}, not “{brief(kind)}”", param=f"{at}.type"
        )
    return fields


def _function(value: object, at: str) -> Tool:
    return _described(Fields(value, at))


def _described(fields: Fields) -> Tool:
    tool = Tool(
        fields.require("name", name_of(_NAME)),
        fields.take("description", text, None),
        fields.take("parameters", json_object, _NO_PARAMETERS),
        fields.take("strict", flag, False),
    )
    fields.refuse_but({})
    return tool


def read_choice(
    flat: bool, tools: Sequence[Tool], value: object, at: str
) -> tuple[tuple[int, ...], bool]:
    """The numbers of those that may be called, and whether one has to be."""
    everything = tuple(range(len(tools)))
    if value in ("none", "auto"):
        return (everything if value == "auto" else ()), False
    if not tools:
        raise RequestError(f"{at} needs tools to choose from", param=at)
    if value == "required":
        return everything, True
    if not isinstance(value, dict):
        raise RequestError(f"{at} must be none, auto, required, or an object", param=at)
    if value.get("type") == "allowed_tools":
        return _allowed(flat, tools, value, at)
    return (_named(flat, tools, value, at),), True


def _allowed(
    flat: bool, tools: Sequence[Tool], value: object, at: str
) -> tuple[tuple[int, ...], bool]:
    fields = _typed(value, at, "allowed_tools")
    inside = at if flat else f"{at}.allowed_tools"
    inner = fields if flat else Fields(fields.require("allowed_tools", _as_it_is), inside)
    if not flat:
        fields.refuse_but({})
    required = inner.require("mode", _is_required)
    given = inner.require("tools", _some)
    inner.refuse_but({})
    where = f"{inside}.tools"
    found = {_named(flat, tools, one, f"{where}[{i}]") for i, one in enumerate(given)}
    return tuple(sorted(found)), required


@described({"enum": ["auto", "required"]})
def _is_required(value: object, at: str) -> bool:
    if value not in ("auto", "required"):
        raise RequestError(f"{at} must be auto or required", param=at)
    return value == "required"


@described({"type": "array", "minItems": 1})
def _some(value: object, at: str) -> list[object]:
    given = array(value, at)
    if not given:
        raise RequestError(f"{at} must not be empty", param=at)
    return given


def _named(flat: bool, tools: Sequence[Tool], value: object, at: str) -> int:
    """The number of a tool that is named."""
    fields = _typed(value, at, "function")
    inside = at if flat else f"{at}.function"
    inner = fields if flat else Fields(fields.require("function", _as_it_is), inside)
    name = inner.require("name", text)
    inner.refuse_but({})
    fields.refuse_but({})
    for number, tool in enumerate(tools):
        if tool.name == name:
            return number
    where = f"{inside}.name"
    raise RequestError(f"{where} is “{brief(name)}”, and no tool is called so", param=where)


def _as_it_is(value: object, at: str) -> object:
    return value


@described({"type": "array"})
def read_calls(value: object, at: str) -> tuple[ToolCall, ...]:
    """The calls that an earlier answer made."""
    return tuple(_call(one, f"{at}[{i}]") for i, one in enumerate(array(value, at)))


def _call(value: object, at: str) -> ToolCall:
    fields = _typed(value, at, "function")
    number = fields.require("id", text)
    inner = Fields(fields.require("function", _as_it_is), f"{at}.function")
    call = ToolCall(number, inner.require("name", text), inner.require("arguments", read_arguments))
    inner.refuse_but({})
    fields.refuse_but({})
    return call


@described(
    {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"type": "object"},
    }
)
def read_arguments(value: object, at: str) -> str:
    """The arguments of a call."""
    arguments = text(value, at)
    try:
        load_object(arguments.encode())
    except RequestError as error:
        what = error.message.replace("the body", "it")
        raise RequestError(f"{at} must be JSON, an object: {what}", param=at) from None
    return arguments
