"""Writes the last section of docs/reference/http-api.md from the OpenAPI document of a node.

    python tests/docs/http_page.py

A test compares the page with what this would write.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kwaai_core.openai.describe import OPERATIONS, openapi
from kwaai_core.openai.described import IGNORED

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "http-api.md"
BEGIN = "## Every request\n"
HEAD = """\
This section is made from the OpenAPI document of a node (`/openapi.json`), and that from the code
which reads requests. A member of an object is written with a dot.
"""
_IGNORED = {"description": IGNORED}

Schema = Mapping[str, Any]


def page() -> str:
    """The page, with its last section written anew."""
    before = PAGE.read_text().partition(BEGIN)[0]
    return before + "\n".join([BEGIN, HEAD, *_operations()]).rstrip() + "\n"


def _operations() -> Iterator[str]:
    """Every path with a body, with one table for each kind of it."""
    document: Any = openapi(OPERATIONS, "")
    schemas = document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for operation in methods.values():
            content = operation.get("requestBody", {}).get("content", {})
            bodies = [_resolved(one["schema"], schemas) for one in content.values()]
            if bodies and f"/v1{path}" in document["paths"]:
                path = f"{path}, /v1{path}"
            elif path.removeprefix("/v1") in document["paths"]:
                continue
            if bodies:
                yield f"### {path}\n"
            for body in bodies:
                for one in body.get("anyOf", [body]):
                    yield from (*_table(_resolved(one, schemas)), "")


def _resolved(schema: Schema, schemas: Mapping[str, Schema]) -> Schema:
    return schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _table(body: Schema) -> Iterator[str]:
    yield "| parameter | what it may be | if left out |\n|---|---|---|"
    yield from _rows(body, "")
    ignored = (f"`{name}`" for name, one in body["properties"].items() if one == _IGNORED)
    if names := ", ".join(ignored):
        yield f"| {names} | anything; ignored | |"


def _rows(schema: Schema, before: str) -> Iterator[str]:
    """The parameters, the required ones first; then the members of those that are objects."""
    required = schema.get("required", ())
    for name, one in sorted(schema["properties"].items(), key=lambda item: item[0] not in required):
        if one == _IGNORED:
            continue
        default = "required" if name in required else _default(one)
        yield f"| `{before}{name}` | {_values(one)} | {default} |"
        if "properties" in one:
            yield from _rows(one, f"{before}{name}.")


def _default(schema: Schema) -> str:
    return f"`{_json(schema['default'])}`" if schema.get("default") is not None else ""


def _json(value: object) -> str:
    return json.dumps(_whole(value) if isinstance(value, float) else value)


def _whole(number: float) -> float:
    """As people write it: 1 rather than 1.0."""
    return int(number) if number == int(number) else number


def _values(schema: Schema) -> str:
    """What fits, in words, without null."""
    if "const" in schema:
        return f"`{_json(schema['const'])}`"
    if "enum" in schema:
        listed = [f"`{_json(one)}`" for one in schema["enum"] if one is not None]
        return ", ".join(listed) or "nothing but `null`"
    if "anyOf" in schema:
        words = dict.fromkeys(_values(one) for one in schema["anyOf"])
        return "; or ".join(one for one in words if one)
    kinds = schema["type"]
    words = dict.fromkeys(
        _kind(kind, schema) for kind in ([kinds] if isinstance(kinds, str) else kinds)
    )
    return "; or ".join(one for one in words if one)


def _kind(kind: str, schema: Schema) -> str:
    match kind:
        case "null":
            return ""
        case "integer" | "number":
            return f"{'an' if kind == 'integer' else 'a'} {kind}{_bounds(schema, 'imum', '')}"
        case "string":
            return f"a string{_bounds(schema, 'Length', ' characters')}"
        case "array":
            items = f": {_values(schema['items'])}" if schema.get("items") else ""
            return f"an array{_bounds(schema, 'Items', ' elements')}{items}"
        case "object" if "properties" in schema:
            names = ", ".join(f"`{name}`" for name in schema["properties"])
            return f"an object with {names}"
        case "object":
            return f"an object{_bounds(schema, 'Properties', ' members')}"
    return f"a {kind}"


def _bounds(schema: Schema, bound: str, unit: str) -> str:
    """What lies between the two, as ``, 1 to 5 elements``."""
    least, most = schema.get(f"min{bound}"), schema.get(f"max{bound}")
    if most is not None:
        return f", {least or 0:,} to {_whole(most):,}{unit}"
    return {None: "", 1: ", not empty"}.get(least, f", at least {least}{unit}")


if __name__ == "__main__":
    PAGE.write_text(page())
