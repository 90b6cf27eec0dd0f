"""What a parser takes, as JSON Schema: readers that know theirs, objects that note what is taken.

The document of the API is made from the parsers themselves: each runs once on an example whose
objects are :class:`Watched`, so that it cannot say anything that they do not do.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial, update_wrapper
from typing import Generic, TypeVar

T = TypeVar("T")
Schema = dict[str, object]

IGNORED = "Accepted, and changes nothing."
NEUTRAL = "Accepted only where it changes nothing."


class Described(Generic[T]):
    """A reader of :mod:`kwaai_core.openai.fields` that knows the JSON Schema of what it takes."""

    def __init__(self, read: Callable[[object, str], T], schema: Schema) -> None:
        update_wrapper(self, read)
        self._read = read
        self.schema = schema

    def __call__(self, value: object, at: str) -> T:
        return self._read(value, at)


def described(schema: Schema) -> Callable[[Callable[[object, str], T]], Described[T]]:
    """Say of a reader what it takes."""
    return lambda read: Described(read, schema)


def kinds(read: Callable[[object, str], object], *examples: "Watched") -> list[Schema]:
    """What a reader takes that tells objects apart, from an example of each kind of them."""
    for example in examples:
        read(example, "")
    return [example.schema() for example in examples]


class Watched(dict[str, object]):
    """An object that notes which of its fields are taken, and how.

    ``told_by`` names the field whose value tells objects of this kind from others of their list.
    """

    def __init__(self, members: Mapping[str, object] | None = None, *, told_by: str = "") -> None:
        super().__init__(members or {})
        self._told_by = told_by
        self._noted: dict[str, Callable[[], Schema]] = {}
        self._required: dict[str, None] = {}  # in the order in which they were taken

    def took(self, name: str, read: object, default: object) -> None:
        """A field that may be absent, or null."""
        told = _default(read, default)
        self._noted[name] = lambda: _or_null(self._schema_of(name, read)) | told

    def required(self, name: str, read: object) -> None:
        """A field that must be there."""
        self._noted[name] = lambda: self._schema_of(name, read)
        self._required[name] = None

    def ignored(self, names: Iterable[str]) -> None:
        """Fields that may hold anything."""
        for name in names:
            self._noted[name] = lambda: {"description": IGNORED}

    def neutral(self, values: Mapping[str, tuple[object, ...]]) -> None:
        """Fields that may hold only these, or null."""
        for name, accepted in values.items():
            found: Schema = {"enum": [*accepted, None], "description": NEUTRAL}
            self._noted[name] = partial(dict, found)

    def schema(self) -> Schema:
        """Of an object that has what was noted, and nothing else."""
        noted = {name: schema() for name, schema in self._noted.items()}
        found: Schema = {"type": "object", "properties": noted, "additionalProperties": False}
        return found | ({"required": [*self._required]} if self._required else {})

    def _schema_of(self, name: str, read: object) -> Schema:
        own = read.schema if isinstance(read, Described) else None
        value = self.get(name)
        if name == self._told_by:
            return {"const": value}
        if isinstance(value, Watched):
            return value.schema()
        if isinstance(value, list) and value and isinstance(value[0], Watched):
            kinds = [one.schema() for one in value if isinstance(one, Watched)]
            return (own or {"type": "array"}) | {"items": {"anyOf": kinds}}
        if own is None:
            raise TypeError(f"the reader of {name} is not described, nor its example watched")
        return own


_PYTHON: Mapping[object, type] = {"boolean": bool, "integer": int, "number": float, "string": str}


def _default(read: object, default: object) -> Schema:
    """That of a field, where it is a value of the wire too."""
    if not isinstance(read, Described):
        return {}
    choices = read.schema.get("enum")
    if isinstance(choices, list):
        known = default in choices
    else:
        known = type(default) is _PYTHON.get(read.schema.get("type"))
    return {"default": default} if known else {}


def _or_null(schema: Schema) -> Schema:
    if isinstance(schema.get("type"), str):
        return schema | {"type": [schema["type"], "null"]}
    if isinstance(choices := schema.get("enum"), list):
        return schema | {"enum": [*choices, None]}
    return {"anyOf": [schema, {"type": "null"}]}
