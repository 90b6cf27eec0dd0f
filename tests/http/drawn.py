"""Values that a JSON Schema describes, for as much of JSON Schema as our document uses."""

import json
from typing import Any

from hypothesis import strategies as st

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
_KNOWN = {
    "additionalProperties", "anyOf", "const", "contentMediaType", "contentSchema", "default",
    "description", "enum", "items", "maxItems", "maxLength", "maxProperties", "maximum", "minItems",
    "minLength", "minimum", "pattern", "properties", "propertyNames", "required", "type",
}  # fmt: skip


def of_schema(schema: Any) -> st.SearchStrategy[Any]:
    """What the schema describes; a keyword that this module does not know is an error."""
    assert schema.keys() <= _KNOWN, schema.keys() - _KNOWN
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of([of_schema(one) for one in schema["anyOf"]])
    kinds = schema.get("type")
    if kinds is None:
        return JSON
    return st.one_of(
        [_of_kind(kind, schema) for kind in ([kinds] if isinstance(kinds, str) else kinds)]
    )


def _of_kind(kind: str, schema: Any) -> st.SearchStrategy[Any]:
    match kind:
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(schema["minimum"], schema["maximum"])
        case "number":
            return st.floats(schema["minimum"], schema["maximum"])
        case "string":
            return _text(schema)
        case "array":
            most = min(schema.get("maxItems", 4), schema.get("minItems", 0) + 4)
            return st.lists(
                of_schema(schema["items"]), min_size=schema.get("minItems", 0), max_size=most
            )
    assert kind == "object"
    return _of_object(schema)


def _text(schema: Any) -> st.SearchStrategy[str]:
    if "contentSchema" in schema:
        return of_schema(schema["contentSchema"]).map(json.dumps)
    if "pattern" in schema:
        return st.from_regex(schema["pattern"].replace("$", r"\Z"))
    return st.text(
        min_size=schema.get("minLength", 0), max_size=min(schema.get("maxLength", 20), 20)
    )


def _of_object(schema: Any) -> st.SearchStrategy[Any]:
    if "properties" not in schema:
        names = _text(schema.get("propertyNames", {}))
        values = of_schema(schema.get("additionalProperties", {}))
        return st.dictionaries(names, values, max_size=4)
    members = {name: of_schema(one) for name, one in schema["properties"].items()}
    required = {name: members.pop(name) for name in schema.get("required", ())}
    return st.fixed_dictionaries(required, optional=members)


def damaged(value: Any) -> st.SearchStrategy[Any]:
    """The same with one thing in it changed: a member left out or added, or another value."""
    changes = [JSON]
    if isinstance(value, dict) and value:
        names = st.sampled_from(sorted(value))
        changes += [
            names.map(lambda name: {key: one for key, one in value.items() if key != name}),
            JSON.map(lambda one: value | {"more": one}),
            names.flatmap(lambda name: damaged(value[name]).map(lambda one: value | {name: one})),
        ]
    if isinstance(value, list) and value:
        places = st.integers(0, len(value) - 1)
        changes += [
            JSON.map(lambda one: [*value, one]),
            places.flatmap(
                lambda i: damaged(value[i]).map(lambda one: [*value[:i], one, *value[i + 1 :]])
            ),
        ]
    return st.one_of(changes)
