"""JSON Schemas of responses and of their events: see :mod:`kwaai_core.openai.response_events`."""

from kwaai_core.openai.described import Schema
from kwaai_core.openai.schemas import (
    COUNT,
    FLAG,
    NULL,
    NUMBER,
    TEXT,
    array_of,
    object_of,
    or_null,
    ref,
)

_STATUS: Schema = {"enum": ["in_progress", "completed", "incomplete"]}
_LOGPROBS: Schema = array_of(ref("TokenLogprob"))
_PART = object_of(
    {
        "type": {"const": "output_text"},
        "text": TEXT,
        "annotations": array_of({}),
        "logprobs": _LOGPROBS,
    }
)
_MESSAGE = object_of(
    {
        "id": TEXT,
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "status": _STATUS,
        "content": array_of(_PART),
    }
)
_CALL = object_of(
    {
        "id": TEXT,
        "type": {"const": "function_call"},
        "call_id": TEXT,
        "name": TEXT,
        "arguments": TEXT,
        "status": _STATUS,
    }
)
_ITEM: Schema = {"anyOf": [_MESSAGE, _CALL]}
_USAGE = object_of(
    {
        "input_tokens": COUNT,
        "input_tokens_details": object_of({"cached_tokens": COUNT, "cache_write_tokens": COUNT}),
        "output_tokens": COUNT,
        "output_tokens_details": object_of({"reasoning_tokens": COUNT}),
        "total_tokens": COUNT,
    }
)
_ERROR = object_of({"code": TEXT, "message": TEXT, "param": or_null(TEXT)})


def _asked(name: str) -> Schema:
    """What the response repeats of its request."""
    return {"$ref": f"#/components/schemas/ResponseRequest/properties/{name}"}


_RESPONSE = object_of(
    {
        "id": TEXT,
        "object": {"const": "response"},
        "created_at": COUNT,
        "completed_at": COUNT,
        "status": {"enum": ["in_progress", "completed", "incomplete", "failed"]},
        "background": {"const": False},
        "error": or_null(_ERROR),
        "incomplete_details": or_null(object_of({"reason": {"const": "max_output_tokens"}})),
        "instructions": or_null(TEXT),
        "max_output_tokens": or_null(COUNT),
        "metadata": _asked("metadata"),
        "model": TEXT,
        "output": array_of(_ITEM),
        "parallel_tool_calls": FLAG,
        "previous_response_id": NULL,
        "reasoning": object_of({"effort": NULL, "summary": NULL}),
        "store": {"const": False},
        "temperature": NUMBER,
        "text": _asked("text"),
        "tool_choice": _asked("tool_choice"),
        "tools": _asked("tools"),
        "top_logprobs": COUNT,
        "top_p": NUMBER,
        "truncation": {"const": "disabled"},
        "usage": or_null(_USAGE),
        "kwaai": ref("Facts"),
    },
    "completed_at",
    "kwaai",
)
_OF_ITEM: Schema = {"item_id": TEXT, "output_index": COUNT}
_OF_PART: Schema = _OF_ITEM | {"content_index": COUNT}


def _event(kind: str, more: Schema) -> Schema:
    named: Schema = {"type": {"const": f"response.{kind}"}, "sequence_number": COUNT}
    return object_of(named | more)


_EVENTS = [
    *(
        _event(kind, {"response": ref("Response")})
        for kind in ("created", "in_progress", "completed", "incomplete", "failed")
    ),
    *(
        _event(f"output_item.{kind}", {"output_index": COUNT, "item": _ITEM})
        for kind in ("added", "done")
    ),
    *(_event(f"content_part.{kind}", _OF_PART | {"part": _PART}) for kind in ("added", "done")),
    _event("output_text.delta", _OF_PART | {"delta": TEXT, "logprobs": _LOGPROBS}),
    _event("output_text.done", _OF_PART | {"text": TEXT, "logprobs": _LOGPROBS}),
    _event("function_call_arguments.delta", _OF_ITEM | {"delta": TEXT}),
    _event("function_call_arguments.done", _OF_ITEM | {"name": TEXT, "arguments": TEXT}),
]

RESPONSE_SCHEMAS: dict[str, Schema] = {
    "Response": _RESPONSE,
    "ResponseEvent": {"anyOf": _EVENTS},
}
"""By name."""
