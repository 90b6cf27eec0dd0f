"""JSON Schemas of what a node answers: see :mod:`kwaai_core.openai.answers` and ``chunks``."""

from typing import get_args

from kwaai_core.openai.described import Schema
from kwaai_core.types import FinishReason


def ref(name: str) -> Schema:
    """One of the document's schemas, by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def object_of(properties: Schema, *optional: str) -> Schema:
    """An object that has these, and no other."""
    required = [name for name in properties if name not in optional]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def array_of(items: Schema) -> Schema:
    """An array of these."""
    return {"type": "array", "items": items}


def or_null(schema: Schema) -> Schema:
    """This, or null."""
    return {"anyOf": [schema, NULL]}


NULL: Schema = {"type": "null"}
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
_LOGPROB: Schema = {"type": "number", "maximum": 0}
_FINISH: Schema = {"enum": [*get_args(FinishReason)]}

_HOP: Schema = {"peer": TEXT, "lo": COUNT, "hi": COUNT}
_TIMES: Schema = {"queue_ms": NUMBER, "compute_ms": NUMBER, "wire_ms": NUMBER}
_TOOK: Schema = {"peer": TEXT, "rows": COUNT, "replayed": COUNT} | _TIMES
_TOKEN: Schema = {"token": TEXT, "logprob": _LOGPROB, "bytes": array_of(COUNT)}
_CHAT_LOGPROBS = object_of(
    {
        "content": array_of(ref("TokenLogprob")),
        "refusal": NULL,
    }
)
_TEXT_LOGPROBS = object_of(
    {
        "tokens": array_of(TEXT),
        "token_logprobs": array_of(or_null(_LOGPROB)),
        "top_logprobs": array_of(or_null({"type": "object", "additionalProperties": _LOGPROB})),
        "text_offset": array_of(COUNT),
    }
)
_EMBEDDING = object_of(
    {
        "object": {"const": "embedding"},
        "index": COUNT,
        "embedding": {"anyOf": [array_of(NUMBER), TEXT]},
    }
)
_CALL: Schema = {
    "id": TEXT,
    "type": {"const": "function"},
    "function": object_of({"name": TEXT, "arguments": TEXT}),
}
_PIECE: Schema = {
    "index": COUNT,
    "id": TEXT,
    "type": {"const": "function"},
    "function": object_of({"name": TEXT, "arguments": TEXT}, "name"),
}
_ROLE: Schema = {"role": {"const": "assistant"}}
_MESSAGE = object_of(
    _ROLE
    | {
        "content": or_null(TEXT),
        "refusal": NULL,
        "tool_calls": array_of(object_of(_CALL)),
    },
    "tool_calls",
)
_DELTA = object_of(
    _ROLE | {"content": or_null(TEXT), "tool_calls": array_of(object_of(_PIECE, "id", "type"))},
    "role",
    "content",
    "tool_calls",
)


def _answer(kind: str, choice: Schema, usage: Schema, *optional: str) -> Schema:
    choice = object_of({"index": COUNT} | choice)
    head: Schema = {"id": TEXT, "object": {"const": kind}, "created": COUNT, "model": TEXT}
    return object_of(
        head | {"choices": array_of(choice), "usage": usage, "kwaai": ref("Facts")}, *optional
    )


def _chat(said: Schema, finish: Schema) -> Schema:
    return said | {"logprobs": or_null(_CHAT_LOGPROBS), "finish_reason": finish}


def _text(finish: Schema) -> Schema:
    return {"text": TEXT, "logprobs": or_null(_TEXT_LOGPROBS), "finish_reason": finish}


SCHEMAS: dict[str, Schema] = {
    "Error": object_of(
        {
            "error": object_of(
                {
                    "message": TEXT,
                    "type": TEXT,
                    "param": or_null(TEXT),
                    "code": or_null(TEXT),
                }
            )
        }
    ),
    "TokenLogprob": object_of(_TOKEN | {"top_logprobs": array_of(object_of(_TOKEN))}),
    "TokenizeRequest": {"anyOf": [ref("TokenizeText"), ref("TokenizeMessages")]},
    "Tokens": object_of(
        {
            "count": COUNT,
            "max_model_len": COUNT,
            "tokens": array_of(COUNT),
            "token_strs": or_null(array_of(TEXT)),
        }
    ),
    "Detokenized": object_of({"prompt": TEXT}),
    "TokenizerInfo": object_of(
        {
            "model": TEXT,
            "tokenizer_class": TEXT,
            "bos_token": or_null(TEXT),
            "eos_token": or_null(TEXT),
            "pad_token": or_null(TEXT),
            "add_bos_token": FLAG,
            "add_eos_token": FLAG,
            "chat_template": or_null(TEXT),
            "vocab_size": COUNT,
            "model_max_length": COUNT,
        }
    ),
    "Model": object_of(
        {
            "id": TEXT,
            "object": {"const": "model"},
            "created": COUNT,
            "owned_by": TEXT,
            "kwaai": object_of(
                {
                    "digest": TEXT,
                    "architecture": TEXT,
                    "size": COUNT,
                    "blocks": COUNT,
                    "context_length": COUNT,
                    "dimensions": COUNT,
                }
            ),
        }
    ),
    "ModelList": object_of({"object": {"const": "list"}, "data": array_of(ref("Model"))}),
    "Embeddings": object_of(
        {
            "object": {"const": "list"},
            "data": array_of(_EMBEDDING),
            "model": TEXT,
            "usage": object_of({"prompt_tokens": COUNT, "total_tokens": COUNT}),
        }
    ),
    "Usage": object_of(
        {
            "prompt_tokens": COUNT,
            "completion_tokens": COUNT,
            "total_tokens": COUNT,
            "prompt_tokens_details": object_of({"cached_tokens": COUNT}),
        }
    ),
    "Facts": object_of(
        {
            "route": array_of(object_of(_HOP)),
            "exact": FLAG,
            "same_text_guaranteed": FLAG,
            "timing": array_of(object_of(_TOOK)),
        },
        "exact",
        "same_text_guaranteed",
        "timing",
    ),
    "ChatCompletion": _answer(
        "chat.completion", _chat({"message": _MESSAGE}, _FINISH), ref("Usage")
    ),
    "ChatCompletionChunk": _answer(
        "chat.completion.chunk",
        _chat({"delta": _DELTA}, or_null(_FINISH)),
        or_null(ref("Usage")),
        "usage",
        "kwaai",
    ),
    "Completion": _answer("text_completion", _text(_FINISH), ref("Usage")),
    "CompletionChunk": _answer(
        "text_completion",
        _text(or_null(_FINISH)),
        or_null(ref("Usage")),
        "usage",
        "kwaai",
    ),
}
"""By name; ``Facts`` is what stands under ``kwaai`` in an answer."""
