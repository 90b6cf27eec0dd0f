"""From JSON Schema to shapes. What is not honoured is refused by name, and nothing is fetched."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from math import ceil, floor, isfinite
from typing import cast, get_args
from urllib.parse import unquote

from kwaai_lobe_llama.worker.grammar.shapes import (
    Anything,
    Array,
    Choice,
    Format,
    Literals,
    Map,
    Member,
    Number,
    Record,
    Reference,
    SchemaError,
    Shape,
    Shapes,
    Text,
)

MAX_SCHEMA = 1 << 17  # characters
MAX_SHAPES = 2000
MAX_REFERENCES = 200
MAX_REPEAT = 1000
"""Of characters or items; from 2001 on llama.cpp takes a bound for none at all."""

MAX_DIGITS = 15
_NINES = 10**MAX_DIGITS - 1
_MAX_VALUES = 1000  # of an enum

ANNOTATIONS = frozenset({
    "$anchor", "$comment", "$defs", "$id", "$schema", "contentEncoding", "contentMediaType",
    "default", "definitions", "deprecated", "description", "discriminator", "example", "examples",
    "readOnly", "title", "writeOnly",
})  # fmt: skip
KEYWORDS = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
FORMATS: tuple[Format, ...] = get_args(Format)
CHOICES = ("anyOf", "oneOf", "allOf")


def read_schema(text: str, at: str) -> Shapes:
    """The shapes of a schema, which stands at a place of the request; :class:`SchemaError`."""
    if len(text) > MAX_SCHEMA:
        raise SchemaError(f"the schema has {len(text)} characters, over {MAX_SCHEMA}", at)
    reader = _Reader(json.loads(text), at)
    return Shapes(reader.read(reader.root, at), reader.named)


class _Reader:
    def __init__(self, root: object, at: str) -> None:
        self.root = root
        self.named: dict[str, Shape] = {}
        self._at = at
        self._left = MAX_SHAPES

    def read(self, schema: object, at: str) -> Shape:
        self._left -= 1
        if self._left < 0:
            raise SchemaError(f"the schema is made of over {MAX_SHAPES} schemas", self._at)
        if schema is True:
            return Anything()
        if schema is False:
            raise SchemaError(f"{at} is false, so nothing could be written there", at)
        given = _object(schema, at)
        left = {
            name: value
            for name, value in given.items()
            if name not in ANNOTATIONS and not name.startswith("x-")
        }
        shape = self._shape(left, at)
        if left:
            strange = f"{at}.{_brief(next(iter(left)))}"
            raise _unsupported(strange)
        return shape

    def _shape(self, left: dict[str, object], at: str) -> Shape:
        """What the keywords mean that are taken out of ``left``."""
        if "$ref" in left:
            return self._reference(left.pop("$ref"), f"{at}.$ref")
        for word in CHOICES:
            if word in left:
                return self._choice(word, left.pop(word), f"{at}.{word}")
        if "const" in left or "enum" in left:
            return self._literals(left, at)
        types = _types(left, at)
        groups = {"number" if one == "integer" else one for one in types or KEYWORDS}
        for group, words in KEYWORDS.items():
            if group not in groups:  # it says nothing of what may stand here
                for word in words:
                    left.pop(word, None)
        if types is None:
            types = [one for one, words in KEYWORDS.items() if any(w in left for w in words)]
        return _either([self._typed(one, left, at) for one in types], at) if types else Anything()

    def _typed(self, kind: str, left: dict[str, object], at: str) -> Shape:
        own = {word: left.pop(word) for word in KEYWORDS.get(kind, ()) if word in left}
        match kind:
            case "object":
                return self._record(own, at)
            case "array":
                return self._array(own, at)
            case "string":
                return _text(own, at)
            case "number" | "integer":
                own |= {word: left.pop(word) for word in KEYWORDS["number"] if word in left}
                return _number(own, at, whole=kind == "integer")
            case "boolean":
                return Literals(("true", "false"))
            case _:
                return Literals(("null",))

    def _reference(self, value: object, at: str) -> Shape:
        if not isinstance(value, str) or not value.startswith("#"):
            raise SchemaError(
                f"{at} must begin with #, a place in the schema itself: nothing is fetched", at
            )
        if value not in self.named:
            if len(self.named) >= MAX_REFERENCES:
                raise SchemaError(f"the schema refers to over {MAX_REFERENCES} places in it", at)
            self.named[value] = Anything()  # until it is read
            shape = self.read(self._target(value, at), f"{self._at}{_dotted(value)}")
            del self.named[value]  # so that what others refer to comes before them
            self.named[value] = shape
        return Reference(value)

    def _target(self, pointer: str, at: str) -> object:
        """What a JSON pointer (RFC 6901) means, as the fragment of a URI."""
        found = self.root
        for step in unquote(pointer[1:]).split("/")[1:] if pointer != "#" else ():
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name.isdecimal() and len(name) < 6:
                found = dict(enumerate(found)).get(int(name))
            else:
                found = found.get(name) if isinstance(found, dict) else None
        if found is None or not (pointer == "#" or pointer.startswith("#/")):
            raise SchemaError(f"{at} has “{_brief(pointer)}”, which is nowhere in the schema", at)
        return found

    def _choice(self, word: str, value: object, at: str) -> Shape:
        options = _array(value, at)
        if not options:
            raise SchemaError(f"{at} must have at least one schema", at)
        if word == "allOf" and len(options) > 1:
            raise _unsupported(at, " of several schemas")
        shapes = [self.read(one, f"{at}[{i}]") for i, one in enumerate(options)]
        return _either(shapes, at, sole=word == "oneOf")

    def _literals(self, left: dict[str, object], at: str) -> Shape:
        types = _types(left, at)
        values = _array(left.pop("enum", None), f"{at}.enum") if "enum" in left else None
        if "const" in left:
            const = left.pop("const")
            written = _written(const, at)
            same = values is None or written in (_written(one, at) for one in values)
            values = [const] if same else []
        found = [v for v in values or () if types is None or _is_of(v, types)]
        if not found:
            raise SchemaError(f"{at} has no value that could be written", at)
        if len(found) > _MAX_VALUES:
            raise SchemaError(f"an enum has {len(found)} values, over {_MAX_VALUES}", f"{at}.enum")
        return Literals(tuple(dict.fromkeys(_written(one, at) for one in found)))

    def _record(self, own: Mapping[str, object], at: str) -> Shape:
        more = own.get("additionalProperties", True)
        names = _array(own.get("required", []), f"{at}.required")
        if "properties" not in own:
            if names:
                raise SchemaError(f"{at}.required names what {at}.properties does not have", at)
            if more is False:
                return Record(())
            return Map(self.read(more, f"{at}.additionalProperties"))
        properties = _object(own["properties"], f"{at}.properties")
        strange = [name for name in names if not isinstance(name, str) or name not in properties]
        if strange:
            what = f"“{_brief(str(strange[0]))}”, which {at}.properties does not have"
            raise SchemaError(f"{at}.required has {what}", f"{at}.required")
        if not isinstance(more, bool | dict):
            where = f"{at}.additionalProperties"
            raise SchemaError(f"{where} must be a schema", where)
        members: list[Member] = []
        for name, one in properties.items():
            shape = self.read(one, f"{at}.properties.{_brief(name)}")
            members.append(Member(_json(name), shape, name in names))
        return Record(tuple(members))

    def _array(self, own: Mapping[str, object], at: str) -> Shape:
        least, most = _bounds(own, "minItems", "maxItems", at)
        prefix = _array(own.get("prefixItems", []), f"{at}.prefixItems")
        first = [self.read(one, f"{at}.prefixItems[{i}]") for i, one in enumerate(prefix)]
        if most is not None:
            del first[most:]
            most -= len(first)
        items, least = own.get("items", True), max(0, least - len(first))
        if items is False and least == 0:
            return Array(tuple(first), Anything(), 0, 0)
        return Array(tuple(first), self.read(items, f"{at}.items"), least, most)


def _unsupported(at: str, what: str = "") -> SchemaError:
    message = f"{at}{what} is not supported by this node: leave it out"
    return SchemaError(message, at, unsupported=True)


def _either(shapes: Sequence[Shape], at: str, *, sole: bool = False) -> Shape:
    """One of several shapes, without those that are parts of others."""
    if not sole:
        if any(isinstance(one, Anything) for one in shapes):
            return Anything()
        if Number(whole=False) in shapes:
            shapes = [one for one in shapes if not isinstance(one, Number) or not _bounded(one)]
            shapes = [one for one in shapes if one != Number(whole=True)]
    texts = tuple(text for one in shapes if isinstance(one, Literals) for text in one.texts)
    if sole and len(set(texts)) < len(texts):
        raise SchemaError(f"{at} has a value that fits two of its schemas", at)
    options: list[Shape] = [one for one in shapes if not isinstance(one, Literals)]
    if not sole:
        options = list(dict.fromkeys(options))
    if texts:
        options.append(Literals(tuple(dict.fromkeys(texts))))
    return options[0] if len(options) == 1 else Choice(tuple(options), at, sole)


def _bounded(number: Number) -> bool:
    return number.least is not None or number.most is not None


def _types(left: dict[str, object], at: str) -> list[str] | None:
    if "type" not in left:
        return None
    value = left.pop("type")
    types = value if isinstance(value, list) else [value]
    if not types or any(one not in _TYPES for one in types):
        raise SchemaError(f"{at}.type must be of {', '.join(_TYPES)}", f"{at}.type")
    return [one for one in dict.fromkeys(types) if one != "integer" or "number" not in types]


def _is_of(value: object, types: Sequence[str]) -> bool:
    found = _TYPE_OF.get(type(value), "null")
    if found == "number" and "integer" in types and cast("float", value).is_integer():
        return True
    return found in types or (found == "integer" and "number" in types)


_TYPE_OF: dict[type, str] = {
    dict: "object", list: "array", str: "string", float: "number", int: "integer", bool: "boolean",
}  # fmt: skip


def _text(own: Mapping[str, object], at: str) -> Shape:
    least, most = _bounds(own, "minLength", "maxLength", at)
    wanted = own.get("format")
    if wanted is None:
        return Text(least, most)
    for known in FORMATS:
        if wanted == known and least == 0 and most is None:
            return Text(format=known)
    if wanted in FORMATS:
        raise _unsupported(f"{at}.format", " with a length beside it")
    raise _unsupported(f"{at}.format", f", unless it is one of {', '.join(FORMATS)},")


def _bounds(own: Mapping[str, object], low: str, high: str, at: str) -> tuple[int, int | None]:
    least = _count(own.get(low, 0), f"{at}.{low}")
    most = _count(own[high], f"{at}.{high}") if high in own else None
    if most is not None and most < least:
        raise SchemaError(f"{at}.{high} is less than {at}.{low}", f"{at}.{high}")
    return least, most


def _count(value: object, at: str) -> int:
    number = _finite(value, at)
    if number != int(number) or not 0 <= number <= MAX_REPEAT:
        raise SchemaError(f"{at} must be a whole number from 0 to {MAX_REPEAT}", at)
    return int(number)


def _number(own: Mapping[str, object], at: str, *, whole: bool) -> Shape:
    low, above = _bound(own, "minimum", "exclusiveMinimum", max, at)
    high, below = _bound(own, "maximum", "exclusiveMaximum", min, at)
    if whole:
        least = None if low is None else floor(low) + 1 if above else ceil(low)
        most = None if high is None else ceil(high) - 1 if below else floor(high)
        above = below = False
    else:
        for word, bound in own.items():
            if _finite(bound, f"{at}.{word}") % 1:
                where = f"{at}.{word}"
                raise SchemaError(f"{where}, of a number, must be a whole one", where)
        least = None if low is None else int(low)
        most = None if high is None else int(high)
    first, last = (-_NINES if least is None else least), (_NINES if most is None else most)
    if first + (above or below) > last:  # without a bound they are of as many digits
        raise SchemaError(f"no number is within the bounds of {at}", at)
    return Number(whole, least, most, above, below)


def _bound(
    own: Mapping[str, object], word: str, exclusive: str, tighter: Callable[..., float], at: str
) -> tuple[float | None, bool]:
    """The tighter of two bounds, and whether it is excluded itself."""
    given = {name: _finite(own[name], f"{at}.{name}") for name in (word, exclusive) if name in own}
    if any(abs(value) >= 10**MAX_DIGITS for value in given.values()):
        raise SchemaError(f"a bound at {at} has over {MAX_DIGITS} digits", at)
    if not given:
        return None, False
    bound = tighter(given.values())
    return bound, given.get(exclusive) == bound


def _finite(value: object, at: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SchemaError(f"{at} must be a number", at)
    if isinstance(value, float) and not isfinite(value):  # an integer may be beyond all floats
        raise SchemaError(f"{at} must be a number", at)
    return value


def _object(value: object, at: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise SchemaError(f"{at} must be an object", at)
    return value


def _array(value: object, at: str) -> list[object]:
    if not isinstance(value, list):
        raise SchemaError(f"{at} must be an array", at)
    return value


def _written(value: object, at: str) -> str:
    try:
        return _json(value)
    except ValueError:
        raise SchemaError(f"{at} has a number that is too large", at) from None


def _json(value: object) -> str:
    """The shortest JSON of a value, in UTF-8 where it can be."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(value, separators=(",", ":"))
    return text


def _brief(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"


def _dotted(pointer: str) -> str:
    """``#/$defs/a`` as it stands in the paths of errors."""
    return "".join(f".{_brief(step)}" for step in pointer[1:].split("/")[1:])
