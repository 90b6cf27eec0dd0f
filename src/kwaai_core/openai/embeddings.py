"""Calls of ``/v1/embeddings``: from the wire to types, and back."""

import json
import struct
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

from kwaai_core.errors import KwaaiError, RequestError, RequestTooLarge, UnsupportedParameter
from kwaai_core.openai.described import described
from kwaai_core.openai.fields import Fields, filled, integer
from kwaai_core.openai.prompts import read_tokens
from kwaai_core.openai.strict import load_object
from kwaai_core.types import Embedding, ModelCard, TokenIds

MAX_INPUTS = 2048
MAX_TOKENS = 300_000
"""In all arrays of tokens together."""

_IGNORED = ("user",)
_LARGEST = 2**31 - 1
_TOKENS = read_tokens.schema | {"minItems": 1}
_TEXTS = {
    "type": "array",
    "minItems": 1,
    "maxItems": MAX_INPUTS,
    "items": {"anyOf": [filled.schema, _TOKENS]},
}


@dataclass(frozen=True, slots=True)
class EmbeddingsCall:
    """What a client wants as vectors, and in which form; ``dimensions`` None is what there are."""

    model: str
    texts: tuple[str | TokenIds, ...]
    base64: bool = False
    dimensions: int | None = None

    def check(self, card: ModelCard) -> None:
        """Refuse what this model does not do. Errors: UnsupportedParameter."""
        if self.dimensions not in (None, card.dimensions):
            raise UnsupportedParameter(
                f"dimensions: a vector of the model “{card.id}” has {card.dimensions} of them, not "
                f"{self.dimensions}: leave it out, or give {card.dimensions}",
                param="dimensions",
            )


def parse_embeddings(body: bytes) -> EmbeddingsCall:
    """A call of ``/v1/embeddings``.

    Errors:
      RequestError: not JSON, malformed or out of range; ``param`` names the field.
      UnsupportedParameter: a field that this node does not know.
      RequestTooLarge: more than ``MAX_TOKENS`` in arrays of tokens.
    """
    return read_embeddings(load_object(body))


def read_embeddings(body: dict[str, object]) -> EmbeddingsCall:
    """As :func:`parse_embeddings`, of a body that is JSON already."""
    fields = Fields(body)
    call = EmbeddingsCall(
        model=fields.require("model", filled),
        texts=fields.require("input", _texts),
        base64=fields.take("encoding_format", _is_base64, False),
        dimensions=fields.take("dimensions", integer(1, _LARGEST), None),
    )
    fields.ignore(*_IGNORED)
    fields.refuse_but({})
    return call


@described({"anyOf": [filled.schema, _TOKENS, _TEXTS]})
def _texts(value: object, at: str) -> tuple[str | TokenIds, ...]:
    """One text or several, each of them a string or an array of tokens."""
    if not isinstance(value, list) or any(isinstance(part, int | float) for part in value):
        _limit_tokens([value], at)
        return (_text(value, at),)
    if not value:
        raise RequestError(f"{at} must not be empty", param=at)
    if len(value) > MAX_INPUTS:
        raise RequestError(
            f"{at} has {len(value)} texts, over this node's limit of {MAX_INPUTS}: send them in "
            "several calls",
            param=at,
        )
    _limit_tokens(value, at)
    several = len(value) > 1
    return tuple(_text(part, f"{at}[{i}]" if several else at) for i, part in enumerate(value))


def _limit_tokens(texts: Sequence[object], at: str) -> None:
    count = sum(len(text) for text in texts if isinstance(text, list))
    if count > MAX_TOKENS:
        raise RequestTooLarge(
            f"{at} has {count} tokens, over this node's limit of {MAX_TOKENS}: send them in "
            "several calls",
            param=at,
        )


def _text(value: object, at: str) -> str | TokenIds:
    if not isinstance(value, list):
        return filled(value, at)
    if not value:
        raise RequestError(f"{at} must not be empty", param=at)
    return read_tokens(value, at)


@described({"enum": ["float", "base64"]})
def _is_base64(value: object, at: str) -> bool:
    if value not in ("float", "base64"):
        raise RequestError(f'{at} must be "float" or "base64"', param=at)
    return value == "base64"


def embeddings(
    card: ModelCard, found: Sequence[Embedding], *, base64: bool = False
) -> Iterator[bytes]:
    """The answer in pieces of JSON, each made in a fraction of a millisecond.

    Errors:
      KwaaiError: a vector has what is no number, for which JSON has no words.
    """
    yield b'{"object":"list","data":['
    for index, embedding in enumerate(found):
        comma, said = b"," * (index > 0), _base64 if base64 else _numbers
        yield b'%b{"object":"embedding","index":%d,"embedding":%b}' % (
            comma,
            index,
            said(embedding.vector),
        )
    tokens = sum(embedding.tokens for embedding in found)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    yield b'],"model":%b,"usage":%b}' % (
        json.dumps(card.id).encode(),
        json.dumps(usage, separators=(",", ":")).encode(),
    )


def _base64(vector: Sequence[float]) -> bytes:
    """As OpenAI's SDKs ask for it: float32, the low byte first."""
    return b'"' + b64encode(struct.pack(f"<{len(vector)}f", *_finite(vector))) + b'"'


def _numbers(vector: Sequence[float]) -> bytes:
    """With nine digits each, from which every float32 can be had again."""
    return ("[" + ",".join(["%.9g"] * len(vector)) % tuple(_finite(vector)) + "]").encode()


def _finite(vector: Sequence[float]) -> Sequence[float]:
    if not all(map(isfinite, vector)):
        raise KwaaiError("the embedder gave a vector with what is no number: that is a bug of it")
    return vector
