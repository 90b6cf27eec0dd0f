"""The role identity over a folder: :class:`kwaai_core.Identity`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from kwaai_core import (
    Acquaintance,
    Group,
    Host,
    Invitation,
    NotVerified,
    Owner,
)
from kwaai_lobe_identity import IdentitySettings, invitations, jose, meeting, names
from kwaai_lobe_identity.admission import Admission
from kwaai_lobe_identity.folder import Folder
from kwaai_lobe_identity.generations import IN_USE, Generations, load
from kwaai_lobe_identity.keys import Key
from kwaai_lobe_identity.memberships import DAY
from kwaai_lobe_identity.owner import Attached
from kwaai_lobe_identity.passphrase import passphrase_of


@asynccontextmanager
async def open_identity(host: Host) -> AsyncIterator[LobeIdentity]:
    """The identity of the host's folder; until it closes, its key cannot be rotated."""
    settings, folder = host.settings(IdentitySettings), Folder(host.state)
    with folder.locked(IN_USE, shared=True):
        yield await trio.to_thread.run_sync(_opened, folder, settings)


def _opened(folder: Folder, settings: IdentitySettings) -> LobeIdentity:
    passphrase = passphrase_of(settings)
    found = load(folder, passphrase)
    identity = LobeIdentity(found, found.key(passphrase), days=settings.membership_days)
    identity.members.renew()
    return identity


class LobeIdentity:
    """See :class:`kwaai_core.Identity`. What a command changes in the folder is seen at once."""

    def __init__(
        self,
        found: Generations,
        key: Key,
        *,
        days: int = 365,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._key = key
        self._now = now
        self.members = Admission(found, key, days * DAY, now)
        self._attached = Attached(found.folder)
        self.members.circle.state()  # where a file cannot be used, that is said now
        self._attached.control()

    @property
    def did(self) -> str:
        return self._key.did

    @property
    def peer_id(self) -> str:
        return self._key.peer_id

    @property
    def owner(self) -> Owner | None:
        control = self._attached.now(self.members.names, self._now())
        return control.owner if control is not None else None

    @property
    def groups(self) -> Sequence[Group]:
        return self.members.groups(self.members.circle.state())

    def describe(self) -> Mapping[str, Any]:
        """For `kwaai lobes --json`."""
        return {"did": self.did, "peer_id": self.peer_id}

    def did_of(self, peer: str) -> str:
        return names.did_of_key(names.key_of_peer(peer))

    def peer_of(self, did: str) -> str:
        return names.peer_of_key(names.key_of_did(did))

    def resolve(self, did: str) -> Mapping[str, Any]:
        return names.document(did)

    def sign(self, purpose: str, payload: bytes, *, typ: str = "JOSE") -> str:
        return jose.sign(self._key, purpose, payload, typ=typ)

    def verify(self, purpose: str, did: str, jws: str, *, typ: str = "JOSE") -> bytes:
        signer, payload = jose.opened(purpose, jws, typ=typ)
        if signer != did:
            raise NotVerified(f"the statement was signed by {signer}, not by {did:.100}")
        return payload

    def derive(self, label: str, n: int) -> bytes:
        return self._key.derive(label, n)

    def agree(self, did: str, label: str) -> bytes:
        return self._key.agree(did, label)

    def handshake_key(self) -> bytes:
        return self._key.seed

    def introduce(self) -> bytes:
        control = self._attached.now(self.members.names, self._now())
        return meeting.introduction(self.members, control)

    def meet(self, peer: str, introduction: bytes) -> Acquaintance:
        return meeting.meet(self.members, peer, introduction)

    async def invite(
        self, group: str, addresses: Sequence[str], *, seconds: float, may_invite: bool = False
    ) -> Invitation:
        invite = partial(self.members.invite, may_invite=may_invite)
        return await trio.to_thread.run_sync(invite, group, addresses, seconds)

    def invitation(self, line: str) -> Invitation:
        return invitations.read(line, self._now())

    def answer_to(self, invitation: Invitation) -> bytes:
        return invitations.answer(invitation, self.did)

    async def admit(self, peer: str, answer: bytes) -> bytes:
        return await trio.to_thread.run_sync(self.members.admit, peer, answer)

    async def join(self, invitation: Invitation, membership: bytes) -> Group:
        return await trio.to_thread.run_sync(self.members.join, invitation, membership)
