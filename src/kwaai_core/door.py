"""The door in front of every transport: which peers come in, and with which this node deals.

Peers show each other what they are on first contact, by ``/kwaai/hello/1``: one introduction each
way, the dialler's first. Unless it is opened further, the door lets only those pass who have proved
to be in a group of this node's. All others reach that protocol and ``/kwaai/join/1``: the answer to
an invitation, and back comes the membership, or an empty frame where there is no such invitation.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import trio

from kwaai_core.config import PEER_ID, PeersSettings
from kwaai_core.errors import (
    ConfigError,
    KwaaiError,
    NotVerified,
    PeerDenied,
    PeerUnreachable,
    ProtocolRefused,
    RequestError,
    UpstreamLost,
)
from kwaai_core.peering import HELLO, Acquaintance, Group, Identity, Record, Stream, Transport
from kwaai_core.roles import Describes, Host, Offer

JOIN = "/kwaai/join/1"
MAX_SHOWN = 1 << 18
"""The longest introduction or membership in bytes."""

STEP_SECONDS = 10.0
"""How long each step of the two protocols may take."""

ROUND_SECONDS = 30.0
"""How often, about, links are looked at. A stranger found for the second time is left."""

PER_ROUND = 16
"""How often in that time a peer may say hello or answer invitations; more, and it is left."""

RENEW_SECONDS = 300.0
"""How long before an acquaintance expires it is renewed."""

AGAIN_SECONDS = 2.0
"""After how long a renewal that broke off is tried again, for as long as a step may take."""

_BROKEN_OFF = UpstreamLost, PeerUnreachable
"""What says no more of a peer than that it was not heard: for that alone no member is put out."""


@dataclass(frozen=True, slots=True)
class _Met:
    """A peer that was met, the digests of what each showed, and the peer ids that it had before."""

    who: Acquaintance
    mine: bytes
    theirs: bytes
    formerly: frozenset[str]


class Gate:
    """The :class:`kwaai_core.Door` of a node, the same through all openings of its transport.

    ``file`` is where it keeps whom a user has blocked. Errors: :class:`ConfigError` for that file.
    """

    _transport: Transport
    _identity: Identity

    def __init__(
        self, settings: PeersSettings, file: Path, now: Callable[[], float] = time.time
    ) -> None:
        self._open_to_all = settings.open_to == "anyone"
        self._allowed, self._denied = frozenset(settings.allow), frozenset(settings.deny)
        self._file, self._blocked = file, _read(file)
        self._now = now
        self._met: dict[str, _Met] = {}
        self._begun = Counter[str]()
        self._inviters = set[str]()

    @asynccontextmanager
    async def opened(self, offer: Offer[Transport], host: Host) -> AsyncIterator[Transport]:
        """What ``offer`` opens, with this door in front of it.

        Errors: :class:`KwaaiError` where there is no identity, besides those of the offer.
        """
        if host.identity is None:
            raise KwaaiError("without an identity nobody is let in: install kwaai-lobe-identity")
        self._identity = host.identity
        chance = random.Random(self._identity.peer_id)  # which raises where that lobe is not open
        async with (
            offer.open(host) as transport,
            transport.serve(HELLO, self._answer_hello, max_frame=MAX_SHOWN),
            transport.serve(JOIN, self._answer_join, max_frame=MAX_SHOWN),
            trio.open_nursery() as nursery,
        ):
            self._transport = transport
            transport.guard(self)
            nursery.start_soon(self._keep_up, chance)
            yield _Guarded(transport, self)
            nursery.cancel_scope.cancel()

    def allows(self, peer: str, protocol: str) -> bool:
        """See :meth:`kwaai_core.Door.allows`."""
        return not self._shut(peer) if protocol in (HELLO, JOIN) else self.admits(peer)

    def admits(self, peer: str) -> bool:
        """Whether this node deals with a peer now."""
        met = self._met.get(peer)
        proved = met is not None and bool(met.who.groups) and met.who.expires > self._now()
        return not self._shut(peer) and (proved or self._open_to_all or peer in self._allowed)

    def _shut(self, peer: str) -> bool:
        formerly = self._met[peer].formerly if peer in self._met else ()
        return not (self._blocked | self._denied).isdisjoint((peer, *formerly))

    async def greet(self, peer: str) -> None:
        """See :meth:`kwaai_core.Door.greet`."""
        if self._shut(peer):
            raise PeerDenied(f"{peer} is blocked here: kwaai peers unblock, or [peers] deny")
        try:
            await self._hello(peer)
        except KwaaiError as error:
            if not isinstance(error, _BROKEN_OFF):
                await self._forget(peer, self._met.get(peer))
            if not (isinstance(error, ProtocolRefused) and self.admits(peer)):
                raise PeerDenied(f"{peer} and this node have not met: {error.message}") from error
        if not self.admits(peer) and peer not in self._inviters:
            raise PeerDenied(f"{peer} is in no group of this node: kwaai peers invite, or join")

    async def _hello(self, peer: str) -> None:
        opening = self._transport.open(peer, HELLO, max_frame=MAX_SHOWN, seconds=STEP_SECONDS)
        async with opening as stream:
            mine = self._identity.introduce()
            await stream.send(mine, seconds=STEP_SECONDS)
            await self._meet(peer, mine, await stream.receive(seconds=STEP_SECONDS))

    async def _answer_hello(self, stream: Stream) -> None:
        async with self._metered(stream.peer):
            theirs = await stream.receive(seconds=STEP_SECONDS)
            mine = self._identity.introduce()
            await self._meet(stream.peer, mine, theirs)
        await stream.send(mine, seconds=STEP_SECONDS)
        await stream.end()

    async def _meet(self, peer: str, mine: bytes, theirs: bytes) -> None:
        """Take in what a peer shows. What changed nothing the last time is not verified again."""
        shown = sha256(mine).digest(), sha256(theirs).digest()
        met, admitted = self._met.get(peer), self.admits(peer)
        if met and admitted and shown == (met.mine, met.theirs) and not self._ends(met):
            self._begun[peer] -= 1
            return
        try:
            self._met.pop(peer, None)
            who = self._identity.meet(peer, theirs)
            formerly = frozenset(map(self._identity.peer_of, who.formerly))
            self._met[peer] = _Met(who, *shown, formerly)
        finally:
            if (admitted or (met and met.who.groups)) and not self.admits(peer):
                await self._transport.disconnect(peer)  # its open streams are a member's

    async def _forget(self, peer: str, met: _Met | None) -> None:
        """End with an acquaintance at once what is open by it, unless the two have met anew."""
        if met and self._met.get(peer) is met:
            del self._met[peer]
            if met.who.groups and not self.admits(peer):
                await self._transport.disconnect(peer)

    def _ends(self, met: _Met) -> bool:
        return met.who.expires < self._now() + RENEW_SECONDS

    @asynccontextmanager
    async def _metered(self, peer: str) -> AsyncIterator[None]:
        """Drop a peer that begins too often, or sends garbage, or, being no member, nothing."""
        self._begun[peer] += 1
        try:
            if self._begun[peer] > PER_ROUND:
                raise PeerDenied(f"{peer} says hello, or answers invitations, too often")
            yield
        except KwaaiError as error:
            if not (isinstance(error, _BROKEN_OFF) and self.admits(peer)):
                await self._transport.disconnect(peer)
            raise

    async def _answer_join(self, stream: Stream) -> None:
        membership = b""
        async with self._metered(stream.peer):
            answer = await stream.receive(seconds=STEP_SECONDS)
            with suppress(NotVerified):
                membership = await self._identity.admit(stream.peer, answer)
        await stream.send(membership, seconds=STEP_SECONDS)
        await stream.end()

    async def join(self, line: str) -> Group:
        """Take an invitation, after which both sides deal with each other.

        Errors: :class:`RequestError` where it is none, has expired, or is not accepted;
        :class:`NotVerified` for what comes back; and those of reaching a peer.
        """
        invitation = self._identity.invitation(line.strip())
        inviter = invitation.peer
        if inviter == self._identity.peer_id:
            raise RequestError("this invitation is this node's own: take it to the other node")
        self._inviters.add(inviter)
        try:
            await self._transport.connect(invitation.addresses)
            async with self._transport.open(inviter, JOIN, max_frame=MAX_SHOWN) as stream:
                await stream.send(self._identity.answer_to(invitation))
                membership = await stream.receive()
            if not membership:
                raise RequestError("the invitation was used before, or has expired: get another")
            group = await self._identity.join(invitation, membership)
            await self._hello(inviter)
        finally:
            self._inviters.discard(inviter)
        return group

    async def block(self, peer: str, *, blocked: bool) -> None:
        """Never deal with a peer, whatever it proves; or end that. It is kept on disk."""
        if not PEER_ID.fullmatch(peer):
            raise RequestError(f"{peer!r} is no peer id: it must be like 12D3KooW…, in full")
        if peer == self._identity.peer_id:
            raise RequestError(f"{peer} is this node itself")
        self._blocked = self._blocked | {peer} if blocked else self._blocked - {peer}
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps({"blocked": sorted(self._blocked)}))
        fresh.replace(self._file)
        if blocked:
            await self._transport.disconnect(peer)

    async def peers(self) -> list[dict[str, Any]]:
        """What is known of those who are connected, or dealt with, or blocked; for JSON."""
        for link in self._transport.links():
            if link.rtt is None:
                with suppress(KwaaiError):
                    await self._transport.ping(link.peer, seconds=2)
        links = {link.peer: asdict(link) for link in self._transport.links()}
        seen = [*links, *filter(self.admits, self._met), *sorted(self._blocked)]
        absent = {"address": None}
        return [self._known(peer) | links.get(peer, absent) for peer in dict.fromkeys(seen)]

    def _known(self, peer: str) -> dict[str, Any]:
        nobody = Acquaintance(peer, self._identity.did_of(peer), None, (), 0.0)
        who = self._met[peer].who if peer in self._met else nobody
        return asdict(who) | {"admitted": self.admits(peer), "blocked": peer in self._blocked}

    async def _keep_up(self, chance: random.Random) -> None:
        """Have acquaintances renewed, and forget and leave those who are none."""
        strangers = set[str]()
        while True:
            await trio.sleep(ROUND_SECONDS * chance.uniform(0.75, 1.25))
            self._begun.clear()
            linked = {link.peer for link in self._transport.links()}
            async with trio.open_nursery() as nursery:
                for peer, met in self._met.items():
                    nursery.start_soon(self._renew, peer, met, peer in linked)
            for peer, met in list(self._met.items()):
                if met.who.expires <= self._now() or not (met.who.groups or peer in linked):
                    await self._forget(peer, met)
            before, strangers = strangers, {peer for peer in linked if not self.admits(peer)}
            for peer in strangers & before:
                await self._transport.disconnect(peer)

    async def _renew(self, peer: str, met: _Met, linked: bool) -> None:
        """Meet again who is soon forgotten, or was met before this node knew what it knows now."""
        with suppress(KwaaiError, OSError):  # of the files that an identity reads
            outdated = met.mine != sha256(self._identity.introduce()).digest()
            if linked and (outdated or self._ends(met)):
                with suppress(KwaaiError):
                    await self._hello_again(peer)
            if outdated:
                await self._forget(peer, met)

    async def _hello_again(self, peer: str) -> None:
        with trio.move_on_after(STEP_SECONDS):
            while True:
                with suppress(*_BROKEN_OFF):
                    return await self._hello(peer)
                await trio.sleep(AGAIN_SECONDS)


class _Guarded:
    """A transport by which nobody is reached but who is dealt with, whichever side dialled.

    A record is public, so the directory may hold those of a peer that is shut out, for others; but
    here nothing is found of it.
    """

    def __init__(self, transport: Transport, gate: Gate) -> None:
        self._transport = transport
        self._gate = gate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def describe(self) -> Mapping[str, Any]:
        """See :class:`kwaai_core.roles.Describes`; python 3.12 asks the class for it."""
        return self._transport.describe() if isinstance(self._transport, Describes) else {}

    @asynccontextmanager
    async def open(self, peer: str, protocol: str, **limits: Any) -> AsyncIterator[Stream]:
        """See :meth:`kwaai_core.Transport.open`."""
        async with self._transport.open(peer, protocol, **limits) as stream:
            if not self._gate.admits(peer):  # it has dialled this node, and not said hello
                await self._gate.greet(peer)
            yield stream

    async def lookup(self, peer: str, name: str, **limits: Any) -> Record | None:
        """See :meth:`kwaai_core.Transport.lookup`."""
        found = await self._transport.lookup(peer, name, **limits)
        return found if self._gate.allows(peer, HELLO) else None

    async def providers(self, key: str, **limits: Any) -> Sequence[str]:
        """See :meth:`kwaai_core.Transport.providers`."""
        found = await self._transport.providers(key, **limits)
        return [peer for peer in found if self._gate.allows(peer, HELLO)]


def _read(file: Path) -> frozenset[str]:
    try:
        return frozenset(map(str, json.loads(file.read_text())["blocked"]))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{file} must say which peers are blocked: {error!r}") from None
