"""How OpenAI's API writes the probabilities of tokens: one way in chats, another in completions."""

import codecs
from collections.abc import Sequence
from typing import Literal

from kwaai_core.types import Logprob, TokenLogprob

Kind = Literal["chat", "text", "response"]

_LEAST = -9999.0
"""What stands for a token that has no chance at all, since JSON has no infinity."""


class Logprobs:
    """Writes those of one answer, piece by piece; in completions each token says where in the text
    it begins."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, tokens: Sequence[TokenLogprob]) -> dict[str, object]:
        """The ``logprobs`` of a choice, or of a chunk, with these tokens."""
        if self._kind == "chat":
            content = [_entry(one) | {"top_logprobs": [*map(_entry, one.top)]} for one in tokens]
            return {"content": content, "refusal": None}
        return {
            "tokens": [_shown(one.token) for one in tokens],
            "token_logprobs": [_finite(one) for one in tokens],
            "top_logprobs": [_likeliest(one) for one in tokens],
            "text_offset": [self._advance(one.token) for one in tokens],
        }

    def _advance(self, token: bytes) -> int:
        begin = self._offset
        self._offset += len(self._decoder.decode(token))
        return begin


def _entry(one: Logprob | TokenLogprob) -> dict[str, object]:
    return {
        "token": one.token.decode("utf-8", "replace"),
        "logprob": _finite(one),
        "bytes": list(one.token),
    }


def _likeliest(one: TokenLogprob) -> dict[str, object] | None:
    if one.logprob is None:
        return None
    return {_shown(other.token): _finite(other) for other in reversed(one.top)}


def _finite(one: Logprob | TokenLogprob) -> float | None:
    return None if one.logprob is None else max(one.logprob, _LEAST)


def _shown(token: bytes) -> str:
    """Its text; or its bytes, as OpenAI shows those that are no UTF-8, so that two such tokens are
    told apart."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
