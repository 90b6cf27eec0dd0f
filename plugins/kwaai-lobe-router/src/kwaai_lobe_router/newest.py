"""A memory of peers that stays small, however many of them there have been."""

from __future__ import annotations

from typing import TypeVar

MOST = 4096

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Newest(dict[_Key, _Value]):
    """A dictionary of at most :data:`MOST` keys, the ones that were set last."""

    def __setitem__(self, key: _Key, value: _Value) -> None:
        self.pop(key, None)  # so that it is the last in order
        super().__setitem__(key, value)
        while len(self) > MOST:
            del self[next(iter(self))]
