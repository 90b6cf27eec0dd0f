"""Where peers may be reached, as far as this node has heard, and where it failed lately."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kwaai_lobe_libp2p.addresses import Address

PEERS, EACH = 2048, 16
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""For how many seconds an address is left alone after it failed once, and at most."""


@dataclass(slots=True)
class _Failure:
    cause: str
    times: int
    until: float


class AddressBook:
    """Addresses by peer, of a bounded number of peers; those that worked last come first.

    ``clock`` is monotonic, in seconds; ``belongs`` says of a peer whether it is let in now. Anybody
    can say where it is, and under a thousand names. So who neither belongs nor was ever reached and
    let in is forgotten first.
    """

    def __init__(
        self, clock: Callable[[], float], belongs: Callable[[str], bool] = lambda peer: False
    ) -> None:
        self._clock = clock
        self._belongs = belongs
        self._peers: OrderedDict[str, OrderedDict[Address, _Failure | None]] = OrderedDict()
        self._met: set[str] = set()

    def __len__(self) -> int:
        return len(self._peers)

    def learn(self, peer: str, addresses: Iterable[Address]) -> None:
        """Add addresses; the oldest that are not known to work make room."""
        known = self._peers.setdefault(peer, OrderedDict())
        self._peers.move_to_end(peer)
        for address in addresses:
            known.setdefault(address, None)
        while len(known) > EACH:
            known.popitem()
        if len(self._peers) > PEERS:
            self._make_room()

    def _make_room(self) -> None:
        strange = [one for one in self._peers if one not in self._met and not self._belongs(one)]
        # half of many, so that not each of a crowd is a reason to go through all
        for peer in strange[: (len(strange) + 1) // 2] or [next(iter(self._peers))]:
            del self._peers[peer]
            self._met.discard(peer)

    def worked(self, address: Address) -> None:
        """Note that a peer was reached there."""
        known = self._peers.setdefault(address.peer, OrderedDict())
        known[address] = None
        known.move_to_end(address, last=False)
        self.learn(address.peer, ())

    def met(self, peer: str) -> None:
        """Note that a peer that was reached was let in."""
        if peer in self._peers:
            self._met.add(peer)

    def failed(self, address: Address, cause: str) -> None:
        """Leave an address alone for a while, each time for longer."""
        known = self._peers.get(address.peer, OrderedDict())
        if address in known:
            before = known[address]
            times = before.times + 1 if before else 1
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (times - 1)) * random.uniform(0.75, 1.25)
            known[address] = _Failure(cause, times, self._clock() + pause)
            known.move_to_end(address)

    def of(self, peer: str) -> list[Address]:
        """All addresses of a peer, the one that worked last first."""
        return list(self._peers.get(peer, ()))

    def resting(self, address: Address) -> str | None:
        """Why an address is left alone now; None where it may be tried."""
        failure = self._peers.get(address.peer, OrderedDict()).get(address)
        if failure is None or failure.until <= self._clock():
            return None
        return f"{failure.cause} (tried again in {failure.until - self._clock():.1f} s)"
