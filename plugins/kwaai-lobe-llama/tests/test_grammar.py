"""Schemas: what is honoured is kept to, the rest is refused by name, and none stalls a worker."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import date, datetime
from typing import Any
from uuid import UUID

import jsonschema
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from kwaai_core import Sampling
from kwaai_core.testing.models import TINY_QWEN2, write_random_model
from kwaai_lobe_llama.worker.bindings import C
from kwaai_lobe_llama.worker.constraint import Constraint
from kwaai_lobe_llama.worker.grammar.branches import branches, widest
from kwaai_lobe_llama.worker.grammar.build import json_grammar
from kwaai_lobe_llama.worker.grammar.shapes import SchemaError

from .dice import Dice, dice, fits

AT = "response_format.json_schema.schema"
ANY: dict[str, Any] = {"type": "object"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dice]:
    path = write_random_model(tmp_path_factory.mktemp("dice") / "dice.gguf", TINY_QWEN2)
    with dice(path) as made:
        yield made


def grammar(schema: object) -> str:
    return json_grammar(json.dumps(schema), AT)


def linked(**more: object) -> dict[str, Any]:
    node = {"type": "object", "properties": {"v": {"type": "integer"}} | more, "required": ["v"]}
    return {"$defs": {"node": node}, "$ref": "#/$defs/node"}


HONOURED: list[dict[str, Any]] = [
    {},
    ANY,
    {"type": "array"},
    {"type": "string"},
    {"type": "string", "minLength": 3, "maxLength": 5},
    {"type": "string", "maxLength": 0},
    {"type": ["integer", "null"], "minimum": 3},
    {"type": "number", "exclusiveMinimum": -2, "maximum": 7},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"type": "integer", "minimum": -12.5, "exclusiveMaximum": 1e3},
    {"const": {"a": [1, "ü", None]}},
    {"enum": ["a", "ab", 'q"\\', 7, None]},
    {"enum": ["a", 1], "type": "string"},
    {"type": "boolean"},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"type": "array", "prefixItems": [{"const": 1}, {"type": "null"}], "items": False},
    {"type": "array", "prefixItems": [{"const": 1}], "items": {"const": 2}, "minItems": 3},
    {"type": "array", "maxItems": 0},
    {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}, "c": {"const": 3}}},
    {"properties": {"a": {}, "b": {"const": 2}, "c": {}}, "required": ["b"]},
    {"type": "object", "properties": {}, "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "integer"}},
    {"type": "object", "additionalProperties": False},
    {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "integer"}, {"type": "null"}]},
    {"anyOf": [{"type": "string", "maxLength": 2}, {"const": "long"}]},
    {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "null"}}]},
    {"allOf": [{"$ref": "#/$defs/a~1b"}], "$defs": {"a/b": {"enum": [1]}}},
    {"$ref": "#/$defs/a%20b", "$defs": {"a b": {"enum": [1]}}, "description": "x", "x-y": 1},
    linked(next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}),
    linked(children={"type": "array", "items": {"$ref": "#/$defs/node"}}),
    {
        "$defs": {
            "expr": {
                "anyOf": [
                    {
                        "type": "object",
                        "properties": {"op": {"enum": ["+", "-"]}, "of": {"$ref": "#/$defs/expr"}},
                        "required": ["op", "of"],
                    },
                    {
                        "type": "object",
                        "properties": {"value": {"type": "integer"}},
                        "required": ["value"],
                    },
                ]
            }
        },
        "$ref": "#/$defs/expr",
    },
]


@pytest.mark.parametrize("schema", HONOURED, ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_a_model_writes_at_random_fits_its_schema(
    model: Dice, schema: dict[str, Any], temperature: float
) -> None:
    written = 0
    for seed in range(8):
        model.seed(seed)
        text = model.write(grammar(schema), Sampling(temperature, seed=seed))
        if text is not None:
            written += 1
            jsonschema.validate(json.loads(text), schema)
    assert written > 3


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("date", date.fromisoformat),
        ("date-time", datetime.fromisoformat),
        ("time", lambda text: datetime.fromisoformat(f"2000-01-01T{text}")),
        ("uuid", UUID),
    ],
)
def test_a_format_is_kept_to(model: Dice, name: str, read: Any) -> None:
    for seed in range(20):
        model.seed(seed)
        text = model.write(grammar({"type": "string", "format": name}), Sampling(1.0, seed=seed))
        assert text is not None
        read(json.loads(text))


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string"}, ['""', '"ü\\u00e4\\n😀"'],
         ['"\n"', '"\\x"', '"\\ud800"', '"', "a", ""]),
        ({"type": "string", "format": "date"}, ['"2024-02-29"', '"1999-12-31"'],
         ['"2023-02-29"', '"1900-02-29"', '"2024-04-31"', '"2024-13-01"', '"0000-01-01"']),
        ({"type": "integer"}, ["0", "-7", "120"], ["01", "1.0", "1e3", "+1", "-"]),
        ({"type": "number"}, ["0", "-7.25", "1e3", "2.5E-2"], [".5", "1.", "00", "NaN"]),
        (ANY, ["{}", '{"a": 1}', '{\n  "a": [true, null]\n}'],
         ["[]", '{"a": 1,}', "{'a': 1}", '{"a" : 1}x', '{"a": 1} ']),
        ({"type": "object", "properties": {"a": {}, "b": {}}}, ["{}", '{"b":1}', '{"a":1,"b":2}'],
         ['{"c":1}', '{"b":1,"a":2}', '{"a":1,}', '{,"b":1}']),
        ({"enum": ["a", "ab", 1, 12]}, ['"a"', '"ab"', "1", "12"], ['"b"', '"abc"', "2", "121"]),
    ],
    ids=str,
)  # fmt: skip
def test_which_texts_fit(
    model: Dice, schema: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    made = grammar(schema)
    assert [text for text in good if not fits(model, made, text)] == []
    assert [text for text in bad if fits(model, made, text)] == []


@pytest.mark.parametrize("wrong", [b"\xf0\x80\x82\x80", b"\xe0\x80\xa0", b"\xed\xa0\x80", b"\xff"])
def test_bytes_that_are_no_text_are_no_characters(model: Dice, wrong: bytes) -> None:
    """llama.cpp's grammar takes the first of these for one character, and a reader for four."""
    constraint = Constraint(model, grammar({"type": "string"}))
    try:
        for byte in b'"' + wrong:
            token = model.token_of[bytes([byte])]
            if not constraint._fits(token):
                return
            C.llama_sampler_accept(constraint._grammar, token)
            constraint._begun = constraint._rest(token) or b""
    finally:
        constraint.close()
    raise AssertionError("all of it fits")


bounds = st.integers(-1200, 1200)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(low=bounds, high=bounds, values=st.lists(bounds, min_size=1, max_size=8), data=st.data())
def test_integers_are_those_within_the_bounds(
    model: Dice, low: int, high: int, values: list[int], data: st.DataObject
) -> None:
    low, high = min(low, high), max(low, high)
    made = grammar({"type": "integer", "minimum": low, "maximum": high})
    for value in [low - 1, low, high, high + 1, *values]:
        assert fits(model, made, str(value)) == (low <= value <= high), value


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    low=st.integers(-30, 30),
    high=st.integers(-30, 30),
    above=st.booleans(),
    below=st.booleans(),
    value=st.decimals(-40, 40, places=2),
)
def test_numbers_are_those_within_the_bounds(
    model: Dice, low: int, high: int, above: bool, below: bool, value: Any
) -> None:
    low, high = min(low, high), max(low, high)
    assume(low < high)
    schema = {
        "type": "number",
        "exclusiveMinimum" if above else "minimum": low,
        "exclusiveMaximum" if below else "maximum": high,
    }
    made = grammar(schema)
    jsonable = float(value)
    inside = (low < jsonable if above else low <= jsonable) and (
        jsonable < high if below else jsonable <= high
    )
    text = str(value).removesuffix("0") if "." in str(value) else str(value)
    text = text.removesuffix("0").removesuffix(".") or "0"
    if text not in ("-0", "-"):
        assert fits(model, made, text) == inside, text


def path(*names: str) -> str:
    return ".".join((AT, *names))


def doubling(depth: int) -> dict[str, Any]:
    """Each level has two ways that begin alike: 2 to the depth in all."""
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = {"anyOf": [{"type": "array", "items": schema},
                            {"type": "array", "items": schema, "maxItems": 9}]}  # fmt: skip
    return schema


DEEP: dict[str, Any] = {
    "$defs": {
        f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(190)
    }
    | {"d190": {"type": "null"}},
    "$ref": "#/$defs/d0",
}


def laddered(depth: int) -> dict[str, Any]:
    """Each level may be either of the next one's two: 2 to the depth ways to come to the end."""
    rungs: dict[str, Any] = {
        f"{side}{i}": {"anyOf": [{"$ref": f"#/$defs/{other}{i + 1}"} for other in "ab"]}
        for i in range(depth)
        for side in "ab"
    }
    ends = {f"a{depth}": {"type": "null"}, f"b{depth}": {"type": "boolean"}}
    return {"$defs": rungs | ends, "$ref": "#/$defs/a0"}


VALUES = [{"enum": list(range(i, i + 1000))} for i in range(10_000, 24_000, 1000)]


def chained(depth: int) -> dict[str, Any]:
    """Each level may be a value of its own, or one of the thousands at the end."""
    levels: dict[str, Any] = {
        f"{i}": {"anyOf": [{"$ref": f"#/$defs/{i + 1}"}, {"const": f"x{i}"}]} for i in range(depth)
    }
    return {"$defs": levels | {f"{depth}": {"anyOf": VALUES}}, "$ref": "#/$defs/0"}


def doubly_linked(depth: int) -> dict[str, Any]:
    """What the first costs comes to the last by as many steps."""
    nodes: dict[str, Any] = {
        f"{i}": {
            "type": "object",
            "properties": {
                "next": {"$ref": f"#/$defs/{min(i + 1, depth)}"},
                "last": {"$ref": f"#/$defs/{max(i - 1, 0)}"},
            },
        }
        for i in range(depth + 1)
    }
    nodes["0"]["properties"]["value"] = {"anyOf": VALUES}
    return {"$defs": nodes, "$ref": "#/$defs/0"}


REFUSED: list[tuple[object, str]] = [
    ({"type": "string", "pattern": "(a*)*b"}, path("pattern")),
    ({"type": "string", "format": "email"}, path("format")),
    ({"type": "string", "format": "date", "maxLength": 3}, path("format")),
    ({"type": "number", "multipleOf": 2}, path("multipleOf")),
    ({"type": "number", "minimum": 0.5}, f"{AT}.minimum"),
    ({"type": "integer", "minimum": 1e300}, AT),
    ({"type": "integer", "minimum": 10**400}, AT),
    ({"type": "integer", "exclusiveMinimum": 10**15 - 1}, AT),
    ({"type": "number", "exclusiveMaximum": 1 - 10**15}, AT),
    ({"type": "integer", "minimum": True}, path("minimum")),
    ({"type": "integer", "minimum": 5, "maximum": 4}, AT),
    ({"type": "array", "uniqueItems": True}, path("uniqueItems")),
    ({"type": "array", "minItems": 10**9}, path("minItems")),
    ({"type": "array", "maxItems": 2001}, path("maxItems")),
    ({"type": "array", "minItems": 3, "maxItems": 2}, path("maxItems")),
    ({"type": "array", "prefixItems": [{}], "items": False, "minItems": 2}, path("items")),
    ({"type": "string", "minLength": -1}, path("minLength")),
    ({"type": "string", "maxLength": 1e999}, path("maxLength")),
    ({"type": "string", "maxLength": 10**400}, path("maxLength")),
    ({"not": {}}, path("not")),
    ({"if": {}, "then": {}}, path("if")),
    ({"type": "object", "patternProperties": {}}, path("patternProperties")),
    ({"type": "object", "minProperties": 1}, path("minProperties")),
    ({"type": "object", "propertyNames": {}}, path("propertyNames")),
    ({"type": "object", "nonsense": 1}, path("nonsense")),
    ({"type": "object", "properties": {"a": {"b": 1}}}, path("properties", "a", "b")),
    ({"type": "object", "properties": {"a": False}}, path("properties", "a")),
    ({"type": "object", "properties": {}, "required": ["a"]}, path("required")),
    ({"type": "object", "required": ["a"]}, AT),
    ({"type": "object", "properties": []}, path("properties")),
    ({"type": "object", "properties": {"a": {}}, "additionalProperties": 3},
     path("additionalProperties")),
    ({"type": "nope"}, path("type")),
    ({"type": []}, path("type")),
    ({"type": [[]]}, path("type")),
    ({"enum": []}, AT),
    ({"enum": [1], "type": "string"}, AT),
    ({"const": 1e999}, AT),
    ({"const": 1e999, "enum": [1]}, AT),
    ({"const": 1, "enum": [[1e999]]}, AT),
    ({"enum": list(range(1001))}, path("enum")),
    ({"enum": [chr(0x4E00 + i) for i in range(200)]}, AT),
    ({"anyOf": []}, path("anyOf")),
    ({"anyOf": [{"type": "null"}], "properties": {}}, path("properties")),
    ({"allOf": [{}, {}]}, path("allOf")),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, path("oneOf")),
    ({"oneOf": [{"const": 1}, {"enum": [1, 2]}]}, path("oneOf")),
    ({"$ref": "http://127.0.0.1:1/schema"}, path("$ref")),
    ({"$ref": "file:///etc/passwd"}, path("$ref")),
    ({"$ref": "#/nowhere"}, path("$ref")),
    ({"$ref": "#anchor"}, path("$ref")),
    ({"$ref": 3}, path("$ref")),
    ({"$ref": "#"}, AT),
    ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, AT),
    ({"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"]}, AT),
    ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, AT),
    ({"anyOf": [{"type": "array", "items": {"$ref": "#"}},
                {"type": "array", "items": {"$ref": "#"}, "maxItems": 9}]}, path("anyOf")),
    (doubling(9), AT),
    (laddered(40), AT),
    (chained(90), AT),
    ({"type": "object", "properties": {f"k{i}": {} for i in range(200)}}, AT),
    ({"type": "array", "items": [{}]}, path("items")),
    ({"type": "array", "prefixItems": [{"type": "string", "maxLength": 999}] * 30}, AT),
    ({"enum": ["x" * (1 << 17)]}, AT),
    ({"anyOf": [{"const": "x" * i} for i in range(1, 400)]}, AT),
    (DEEP, AT),
    (False, AT),
    (3, AT),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "at"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_is_not_honoured_is_refused_by_name(schema: object, at: str) -> None:
    began = time.perf_counter()
    with pytest.raises(SchemaError) as caught:
        grammar(schema)
    assert caught.value.at == at
    assert time.perf_counter() - began < 2


def test_keywords_that_do_not_apply_are_left_aside() -> None:
    plain = grammar({"type": "integer"})
    assert grammar({"type": "integer", "minLength": 3, "properties": {}}) == plain


LARGEST: list[dict[str, Any]] = [
    {"type": "object", "properties": {f"k{i}": {} for i in range(126)}},
    {"type": "object", "properties": {f"{chr(0x4E00 + i)}": {} for i in range(126)}},
    {"enum": [chr(0x4E00 + i) for i in range(127)]},
    {"enum": [f"{i:03}" for i in range(1000)]},
    {"type": "string", "maxLength": 1000},
    {"type": "array", "items": {"type": "array", "maxItems": 1000}, "maxItems": 1000},
    {"type": "array", "items": {"type": "string", "maxLength": 900}, "maxItems": 900},
    doubling(5),
    {"anyOf": [{"type": "string", "minLength": i} for i in range(100)]},
]


@pytest.mark.parametrize("schema", LARGEST, ids=lambda value: str(value)[:60])
def test_the_largest_that_is_taken_is_followed_in_bounded_time(
    model: Dice, schema: dict[str, Any]
) -> None:
    made = grammar(schema)
    began = time.perf_counter()
    for seed in range(2):
        model.seed(seed)
        model.write(made, Sampling(1.0, seed=seed), most=200)
    assert time.perf_counter() - began < 20  # 400 tokens, of which each redraws


def test_what_is_costly_to_look_at_is_looked_at_once() -> None:
    began = time.perf_counter()
    assert grammar(doubly_linked(75))
    assert time.perf_counter() - began < 2


KEYWORDS = [
    "$defs", "$ref", "a", "additionalProperties", "allOf", "anyOf", "const", "enum",
    "exclusiveMaximum", "exclusiveMinimum", "format", "items", "maxItems", "maxLength", "maximum",
    "minItems", "minLength", "minimum", "oneOf", "prefixItems", "properties", "required", "type",
]  # fmt: skip
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([10**400, 10**15 - 1, float("inf")])
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(KEYWORDS) | st.text(max_size=3),
            inner
            | st.sampled_from(
                ["object", "array", "string", "integer", "#", "#/$defs/a", "date", 3]
            ),
            max_size=5,
        )
    ),
    max_leaves=25,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(json_values)
def test_any_schema_at_all_is_refused_or_taken_by_llama_cpp(model: Dice, schema: object) -> None:
    try:
        made = grammar(schema)
    except SchemaError as error:
        assert error.at.startswith(AT)
        return
    Constraint(model, made).close()


@given(st.lists(st.text(alphabet="ab", max_size=4), min_size=1, max_size=8))
def test_branches_are_the_texts(texts: list[str]) -> None:
    def spelled(tree: Any) -> list[str]:
        return [
            branch.text + rest
            for branch in tree
            for rest in [""] * branch.ends + spelled(branch.others)
        ]

    tree = branches(texts)
    assert sorted(spelled(tree)) == sorted(set(texts))
    assert widest(tree) <= 3
