"""Prefix tags: proofs that two positions of a session stand for the same tokens.

A position proves a length, not a content. So each step carries a tag of the owner's tokens before
it and one after each of its rows, and a host compares what it is told with what it holds. A tag is
eight bytes of BLAKE2b (RFC 7693) over the tag before it and the token, under a key that never
leaves the owner; a host that had it could find the tokens by trying the vocabulary.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Iterable
from hashlib import blake2b
from sys import byteorder

from kwaai_core.span.frames import TAG_SIZE


class PrefixTags:
    """The tags of one session's tokens. ``secret`` is of this session alone, or equal texts in two
    sessions would have equal tags, which tells a host that they are equal."""

    def __init__(self, secret: bytes | None = None) -> None:
        self._secret = secrets.token_bytes(32) if secret is None else secret
        self._tags = [self._tag(b"", -1)]

    def _tag(self, before: bytes, token: int) -> bytes:
        data = before + token.to_bytes(4, "little", signed=True)
        return blake2b(data, digest_size=TAG_SIZE, key=self._secret).digest()

    def __len__(self) -> int:
        """How many tokens have tags."""
        return len(self._tags) - 1

    def extend(self, tokens: Iterable[int]) -> None:
        """Tag more tokens."""
        last = self._tags[-1]
        for token in tokens:
            last = self._tag(last, token)
            self._tags.append(last)

    def at(self, length: int) -> bytes:
        """The tag of the first ``length`` tokens."""
        return self._tags[length]

    def of(self, position: int, rows: int) -> bytes:
        """What a step carries: the tag before its first row, and one after each row."""
        return b"".join(self._tags[position : position + rows + 1])


def as_numbers(tags: bytes) -> array[int]:
    """Tags as a host keeps them, eight bytes each, to be compared and no more."""
    numbers = array("Q", tags)
    if byteorder == "big":
        numbers.byteswap()
    return numbers
