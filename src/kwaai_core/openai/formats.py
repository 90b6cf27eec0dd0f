"""``response_format``: what form an answer has to have."""

import json
import re

from kwaai_core.errors import RequestError
from kwaai_core.openai.described import Described, described
from kwaai_core.openai.fields import Fields, flag, text
from kwaai_core.openai.strict import brief

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def read_format(value: object, at: str) -> str | None:
    """The JSON Schema that an answer has to fit, as JSON; None where it may be any text.

    A schema is enforced whether it is ``strict`` or not.
    """
    fields = Fields(value, at)
    kind = fields.require("type", text)
    schema: str | None = None
    if kind == "json_schema":
        schema = fields.require("json_schema", _schema)
    elif kind == "json_object":
        schema = _ANY_OBJECT
    elif kind != "text":
        raise RequestError(
            f"{at}.type must be text, json_object or json_schema, not “{brief(kind)}”",
            param=f"{at}.type",
        )
    fields.refuse_but({})
    return schema


def read_text_format(value: object, at: str) -> str | None:
    """The same of a response, where what is in ``json_schema`` stands beside the type."""
    fields = Fields(value, at)
    if fields.require("type", text) == "json_schema":
        return _named(fields)
    return read_format(value, at)


def _schema(value: object, at: str) -> str:
    return _named(Fields(value, at))


def _named(fields: Fields) -> str:
    fields.require("name", name_of(_NAME))
    fields.take("strict", flag, False)
    schema = fields.take("schema", json_object, _ANY_OBJECT)
    fields.take("description", text, None)
    fields.refuse_but({})
    return schema


def name_of(pattern: re.Pattern[str]) -> Described[str]:
    """A name that fits a pattern."""

    @described({"type": "string", "pattern": f"^{pattern.pattern}$"})
    def read(value: object, at: str) -> str:
        name = text(value, at)
        if not pattern.fullmatch(name):
            raise RequestError(f"{at} must be of the form {pattern.pattern}", param=at)
        return name

    return read


@described({"type": "object"})
def json_object(value: object, at: str) -> str:
    """An object as the JSON that it came as, its members in their order."""
    if not isinstance(value, dict):
        raise RequestError(f"{at} must be an object", param=at)
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:  # such as 1e999, which was read as infinity
        raise RequestError(f"{at} has a number that is too large", param=at) from None


_ANY_OBJECT = '{"type": "object"}'
