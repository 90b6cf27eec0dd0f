"""What a schema asks for beyond what can be held, taken out of it.

A function that is not strict has a schema that says what its arguments are about, and the model is
shown all of it. What no grammar holds here is then a hint, as it is to OpenAI's own models: what
fits the schema without it is as near as can be.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, floor, isfinite

from kwaai_lobe_llama.worker.grammar.schema import (
    ANNOTATIONS,
    CHOICES,
    FORMATS,
    KEYWORDS,
    MAX_DIGITS,
    MAX_REPEAT,
)

_MAPS = ("properties", "$defs", "definitions")
_LISTS = (*CHOICES, "prefixItems")
_SINGLE = ("items", "additionalProperties")
_LENGTHS = ("minItems", "maxItems", "minLength", "maxLength")
_VALUES = ("const", "enum")
_KNOWN = frozenset(
    (*ANNOTATIONS, *CHOICES, *_VALUES, "$ref", "type", *(w for g in KEYWORDS.values() for w in g))
)


def without_hints(schema: object) -> object:
    """A schema that fits all that the given one does, or nearly: without keywords and bounds that
    are not honoured. What is malformed stays so, to be refused."""
    if not isinstance(schema, dict):
        return schema
    found = {word: _within(word, value) for word, value in schema.items() if word in _KNOWN}
    if not str(found.get("$ref", "#")).startswith("#"):
        del found["$ref"]  # nothing is fetched
    found = _alone(found)
    if "properties" not in found and "patternProperties" in schema:
        found.pop("additionalProperties", None)
    _names(found)
    if found.get("format") in FORMATS:
        found = {w: v for w, v in found.items() if w not in ("minLength", "maxLength")}
    else:
        found.pop("format", None)
    return {word: value for word, value in _bounds(found).items() if not _beyond(word, value)}


def _within(word: str, value: object) -> object:
    if word in _MAPS and isinstance(value, dict):
        return {name: without_hints(one) for name, one in value.items()}
    if word in _LISTS and isinstance(value, list):
        return [without_hints(one) for one in value]
    return without_hints(value) if word in _SINGLE else value


def _alone(found: dict[str, object]) -> dict[str, object]:
    """Without what cannot be held together: a reference, values, an object of its own or a choice
    stand for all that is beside them."""
    choices = [word for word in CHOICES if word in found]
    if "$ref" in found:
        kept: tuple[str, ...] = ("$ref",)
    elif any(word in found for word in _VALUES):
        kept = (*_VALUES, "type")
    elif choices and "properties" not in found:
        kept = (choices[0],)
    else:
        return {word: value for word, value in found.items() if word not in choices}
    found = {word: value for word, value in found.items() if word in kept or word in ANNOTATIONS}
    if "oneOf" in found:
        found["anyOf"] = found.pop("oneOf")
    if isinstance(several := found.get("allOf"), list):
        found["allOf"] = several[:1]
    return found


def _names(found: dict[str, object]) -> None:
    """Let no property be required that is not described."""
    properties, names = found.get("properties"), found.get("required")
    if properties is None:
        found.pop("required", None)
    elif isinstance(properties, dict) and isinstance(names, list):
        found["required"] = [name for name in names if name in properties]


def _bounds(found: Mapping[str, object]) -> dict[str, object]:
    """With whole bounds, further apart, of numbers that need not be whole themselves."""
    whole = dict(found)
    if found.get("type") == "integer":
        return whole
    for word, inclusive, outwards in (
        ("minimum", "minimum", floor),
        ("exclusiveMinimum", "minimum", floor),
        ("maximum", "maximum", ceil),
        ("exclusiveMaximum", "maximum", ceil),
    ):
        bound = found.get(word)
        if isinstance(bound, float) and isfinite(bound) and not bound.is_integer():
            del whole[word]
            whole[inclusive] = outwards(bound)
    return whole


def _beyond(word: str, value: object) -> bool:
    """Whether a bound is further away than any that can be held."""
    if not isinstance(value, int | float):
        return False
    if word in _LENGTHS:
        return value > MAX_REPEAT
    return word in KEYWORDS["number"] and abs(value) >= 10**MAX_DIGITS
