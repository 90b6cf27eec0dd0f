"""Which messages were there before."""

from __future__ import annotations


class Seen:
    """Ids of messages, each put down to the neighbour who brought it first.

    Of more than ``size`` the oldest is forgotten of those that came from the neighbour who brought
    most. So whoever floods a node makes it forget what itself has brought, and nothing else.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._senders: dict[bytes, str] = {}
        self._brought: dict[str, dict[bytes, float]] = {}

    def __contains__(self, identity: bytes) -> bool:
        return identity in self._senders

    def __len__(self) -> int:
        return len(self._senders)

    def add(self, identity: bytes, sender: str, now: float) -> None:
        """Note a new message; times are only compared with one another."""
        self._senders[identity] = sender
        self._brought.setdefault(sender, {})[identity] = now
        if len(self) > self._size:
            self._drop_oldest(max(self._brought, key=lambda one: len(self._brought[one])))

    def forget(self, before: float) -> None:
        """Forget what came before a time."""
        for sender, ids in list(self._brought.items()):
            while ids and next(iter(ids.values())) < before:
                self._drop_oldest(sender)

    def _drop_oldest(self, sender: str) -> None:
        ids = self._brought[sender]
        oldest = next(iter(ids))
        del ids[oldest], self._senders[oldest]
        if not ids:
            del self._brought[sender]
