"""What is left of a schema where all that cannot be held is a hint."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwaai_lobe_llama.worker.grammar.build import Calls, Function, calls_grammar
from kwaai_lobe_llama.worker.grammar.hints import without_hints
from kwaai_lobe_llama.worker.grammar.shapes import SchemaError

CALLS = Calls('<call>{"name": "', '", "arguments": ', "}</call>", None)
LEFT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"type": "string", "pattern": "^a", "minLength": 2}, {"type": "string", "minLength": 2}),
    ({"type": "string", "format": "uri"}, {"type": "string"}),
    ({"type": "string", "format": "date", "maxLength": 9}, {"type": "string", "format": "date"}),
    ({"type": "string", "maxLength": 2083}, {"type": "string"}),
    ({"type": "array", "maxItems": 1001, "minItems": 1}, {"type": "array", "minItems": 1}),
    ({"type": "number", "exclusiveMinimum": 0.5}, {"type": "number", "minimum": 0}),
    ({"type": "number", "maximum": -0.5}, {"type": "number", "maximum": 0}),
    ({"type": "integer", "minimum": 0.5}, {"type": "integer", "minimum": 0.5}),
    ({"type": "integer", "maximum": 2**63}, {"type": "integer"}),
    ({"enum": ["a"], "minLength": 1, "type": "string"}, {"enum": ["a"], "type": "string"}),
    ({"$ref": "https://else.where/"}, {}),
    ({"$ref": "#/$defs/a", "type": "object"}, {"$ref": "#/$defs/a"}),
    ({"oneOf": [{"type": "null"}, {"not": {}}]}, {"anyOf": [{"type": "null"}, {}]}),
    ({"allOf": [{"type": "object"}, {"minProperties": 1}]}, {"allOf": [{"type": "object"}]}),
    (
        {"type": "object", "anyOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
        {"anyOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
    ),
    (
        {"properties": {"a": {"pattern": "x"}}, "anyOf": [{"required": ["a"]}], "required": ["b"]},
        {"properties": {"a": {}}, "required": []},
    ),
    ({"patternProperties": {"x": {}}, "additionalProperties": False}, {}),
    ({"type": "object", "required": ["a"]}, {"type": "object"}),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "left"), LEFT)
def test_what_is_left(schema: dict[str, Any], left: dict[str, Any]) -> None:
    assert without_hints(schema) == left
    assert without_hints(left) == left


@pytest.mark.parametrize("schema", [schema for schema, _ in LEFT if "$ref" not in schema])
def test_a_function_has_arguments_whatever_is_asked_of_them(schema: dict[str, Any]) -> None:
    arguments = {"type": "object", "properties": {"it": schema}, "minProperties": 1}
    function = Function("f", json.dumps(arguments), "tools[0]", strict=False)
    assert "root ::=" in calls_grammar(CALLS, (function,), None, "").text()


WORDS = [
    "type", "properties", "required", "items", "anyOf", "oneOf", "allOf", "enum", "const", "format",
    "pattern", "minLength", "minimum", "exclusiveMaximum", "maxItems", "$ref", "$defs", "not",
    "additionalProperties", "patternProperties",
]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.sampled_from(["string", "#", "a"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(WORDS), VALUES))
def test_whatever_comes_is_taken_or_refused(schema: dict[str, Any]) -> None:
    function = Function("f", json.dumps(schema), "tools[0]", strict=False)
    try:
        calls_grammar(CALLS, (function,), None, "").text()
    except SchemaError as error:
        assert error.at.startswith("tools")
