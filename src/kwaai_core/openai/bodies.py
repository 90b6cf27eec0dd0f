"""The schemas of what is sent to a node: each parser is run on examples that note what it takes."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import get_args

from kwaai_core.openai.described import Described, Schema, Watched, kinds
from kwaai_core.openai.embeddings import read_embeddings
from kwaai_core.openai.fields import text
from kwaai_core.openai.formats import read_format, read_text_format
from kwaai_core.openai.prompts import messages_up_to, read_content
from kwaai_core.openai.requests import read_chat, read_completion
from kwaai_core.openai.responses import read_input, read_item, read_response
from kwaai_core.openai.tokens import read_detokenize, read_tokenize
from kwaai_core.openai.tools import read_calls, read_choice
from kwaai_core.types import ChatRole, Tool


def _chat(max_messages: int) -> Schema:
    messages = _messages()
    body = _example(messages=messages, tools=[_tool(flat=False)])
    read_chat(body, max(max_messages, len(messages)))
    _describe_messages(body, messages, max_messages)
    body.took("response_format", _format(), None)
    body.took("tool_choice", _choice(flat=False), None)
    return body.schema()


def _completion(max_messages: int) -> Schema:
    body = _example(prompt="hi")
    read_completion(body)
    return body.schema()


def _embeddings(max_messages: int) -> Schema:
    body = Watched({"model": "m", "input": "hi"})
    read_embeddings(body)
    return body.schema()


def _response(max_messages: int) -> Schema:
    options = Watched()
    body = _example(input="hi", text=options, tools=[_tool(flat=True)])
    read_response(body, max_messages)
    body.required("input", _input(max_messages))
    options.took("format", _text_format(), None)
    body.took("tool_choice", _choice(flat=True), None)
    return body.schema()


def _tokenize_text(max_messages: int) -> Schema:
    body = Watched({"prompt": "hi"})
    read_tokenize(body, max_messages)
    body.required("prompt", text)
    body.neutral({"messages": ()})
    return body.schema()


def _tokenize_messages(max_messages: int) -> Schema:
    messages = _messages()
    body = Watched({"messages": messages})
    read_tokenize(body, max(max_messages, len(messages)))
    _describe_messages(body, messages, max_messages)
    body.neutral({"prompt": ()})
    return body.schema()


def _detokenize(max_messages: int) -> Schema:
    body = Watched({"tokens": []})
    read_detokenize(body)
    return body.schema()


def _example(**members: object) -> Watched:
    """A body whose parser takes the fields of each object in it as well."""
    return Watched({"model": "m", "stream_options": Watched(), "kwaai": Watched()} | members)


def _typed(kind: str, **members: object) -> Watched:
    return Watched({"type": kind} | members, told_by="type")


def _messages() -> list[Watched]:
    """One of each role, and at last one of calls alone."""
    said = [Watched({"role": role, "content": "hi"}, told_by="role") for role in get_args(ChatRole)]
    calling = Watched({"role": "assistant"}, told_by="role")
    for message in (*said, calling):
        if message["role"] == "assistant":
            function = Watched({"name": "f", "arguments": "{}"})
            message["tool_calls"] = [_typed("function", id="c", function=function)]
    return [*said, calling]


def _describe_messages(body: Watched, messages: list[Watched], max_messages: int) -> None:
    """What the parser cannot note, after it has read them."""
    *said, calling = messages
    for message in said:
        message.required("content", read_content)  # though there are calls: there need not be
    calling.required("tool_calls", Described(read_calls, read_calls.schema | {"minItems": 1}))
    body.required("messages", messages_up_to(max_messages))  # which may be less than the example's


def _tool(*, flat: bool) -> Watched:
    """A tool, or a choice of it: the name is all that both must have."""
    if flat:
        return _typed("function", name="f")
    return _typed("function", function=Watched({"name": "f"}))


def _choice(*, flat: bool) -> Described[object]:
    allowed: dict[str, object] = {"mode": "auto", "tools": [_tool(flat=flat)]}
    if not flat:
        allowed = {"allowed_tools": Watched(allowed)}
    read = partial(read_choice, flat, [Tool("f", None, "{}")])
    objects = kinds(read, _tool(flat=flat), _typed("allowed_tools", **allowed))
    return Described(read, {"anyOf": [{"enum": ["none", "auto", "required"]}, *objects]})


def _format() -> Described[object]:
    named = _typed("json_schema", json_schema=Watched({"name": "n"}))
    found = kinds(read_format, _typed("text"), _typed("json_object"), named)
    return Described(read_format, {"anyOf": found})


def _text_format() -> Described[object]:
    named = _typed("json_schema", name="n")
    found = kinds(read_text_format, _typed("text"), _typed("json_object"), named)
    return Described(read_text_format, {"anyOf": found})


def _input(limit: int) -> Described[object]:
    said = _typed("message", role="user", content="hi")
    called = _typed("function_call", call_id="c", name="f", arguments="{}")
    answered = _typed("function_call_output", call_id="c", output="hi")
    for one in (said, called, answered):
        read_item(one, "")
    for one in (called, answered):
        one.required("type", text)  # which only a message may leave out
    items = {"anyOf": [one.schema() for one in (said, called, answered)]}
    several = {"type": "array", "minItems": 1, "maxItems": limit, "items": items}
    return Described(partial(read_input, limit), {"anyOf": [text.schema, several]})


REQUESTS: Mapping[str, Callable[[int], Schema]] = {
    "ChatRequest": _chat,
    "CompletionRequest": _completion,
    "EmbeddingsRequest": _embeddings,
    "ResponseRequest": _response,
    "TokenizeText": _tokenize_text,
    "TokenizeMessages": _tokenize_messages,
    "DetokenizeRequest": _detokenize,
}
"""The schemas of bodies, by name, for a node that takes so many messages."""
