"""The fields of a request that say how tokens are drawn, and when an answer is over."""

import re
from typing import TypeVar

from kwaai_core.errors import RequestError
from kwaai_core.openai.described import described
from kwaai_core.openai.fields import Fields, Reader, filled, integer, number
from kwaai_core.openai.strict import brief
from kwaai_core.types import Sampling

T = TypeVar("T")

MAX_STOPS = 4
MAX_TOKENS = 2**31 - 1
MAX_BIASES = 1024
_TOKEN = re.compile(r"0|[1-9][0-9]{0,8}")
_BIAS = number(-100, 100)


def read_sampling(fields: Fields) -> Sampling:
    """All fields of a :class:`Sampling`."""
    default = Sampling()
    return Sampling(
        temperature=fields.take("temperature", number(0, 2), default.temperature),
        top_p=fields.take("top_p", number(0, 1), default.top_p),
        # -1 is how clients of vLLM write «off», which is 0 here and in llama.cpp.
        top_k=max(0, fields.take("top_k", integer(-1, 2**31 - 1), default.top_k)),
        seed=fields.take("seed", integer(-(2**63), 2**63 - 1), None),
        min_p=fields.take("min_p", number(0, 1), default.min_p),
        presence_penalty=fields.take("presence_penalty", number(-2, 2), default.presence_penalty),
        frequency_penalty=fields.take(
            "frequency_penalty", number(-2, 2), default.frequency_penalty
        ),
        repeat_penalty=_either(fields, number(0.01, 100), "repeat_penalty", "repetition_penalty")
        or default.repeat_penalty,
        logit_bias=fields.take("logit_bias", _logit_bias, ()),
    )


@described(
    {
        "type": "object",
        "maxProperties": MAX_BIASES,
        "propertyNames": {"pattern": f"^({_TOKEN.pattern})$"},
        "additionalProperties": _BIAS.schema,
    }
)
def _logit_bias(value: object, at: str) -> tuple[tuple[int, float], ...]:
    """From ``{"50256": -100}``; in the order of the tokens, so that equal maps are equal."""
    if not isinstance(value, dict):
        raise RequestError(f"{at} must be an object", param=at)
    if len(value) > MAX_BIASES:
        raise RequestError(f"{at} must not have more than {MAX_BIASES} tokens", param=at)
    found = dict[int, float]()
    for name, bias in value.items():
        if not _TOKEN.fullmatch(name):
            raise RequestError(
                f"{at} has “{brief(name)}”, which is not the number of a token", param=at
            )
        found[int(name)] = _BIAS(bias, f"{at}.{name}")
    return tuple(sorted(found.items()))


def read_max_tokens(fields: Fields, *names: str, least: int = 1) -> int | None:
    """The limit, under any of these names."""
    return _either(fields, integer(least, MAX_TOKENS), *names)


def _either(fields: Fields, read: Reader[T], *names: str) -> T | None:
    """One field that has several names."""
    given = {name: fields.take(name, read, None) for name in names}
    values = {value for value in given.values() if value is not None}
    if len(values) > 1:
        raise RequestError(f"{' and '.join(given)} differ: give only one", param=names[-1])
    return values.pop() if values else None


@described(
    {
        "anyOf": [
            filled.schema,
            {"type": "array", "maxItems": MAX_STOPS, "items": filled.schema},
        ]
    }
)
def read_stops(value: object, at: str) -> tuple[str, ...]:
    """One string or a few, none of them empty."""
    if isinstance(value, str):
        return (filled(value, at),)
    if not isinstance(value, list) or len(value) > MAX_STOPS:
        raise RequestError(f"{at} must be a string or up to {MAX_STOPS} strings", param=at)
    return tuple(filled(stop, f"{at}[{i}]") for i, stop in enumerate(value))
