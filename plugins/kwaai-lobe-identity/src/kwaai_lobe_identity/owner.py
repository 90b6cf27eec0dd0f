"""Owners: the key of one, made and kept on a machine of its own, and the credential on a node."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, cast

from kwaai_core import ConfigError, NotVerified, Owner, RequestError
from kwaai_lobe_identity.credentials import Control, certify, control, valid_name
from kwaai_lobe_identity.documents import loaded, parsed, parsing
from kwaai_lobe_identity.folder import Folder
from kwaai_lobe_identity.keyfile import KeyFile, open_key_file, read_key_file
from kwaai_lobe_identity.keys import Key

KEY, ABOUT, CREDENTIAL = "owner-key.jwk", "owner.json", "owner.jwt"
MAX_DAYS = 3660


@dataclass(frozen=True, slots=True)
class _About:
    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class OwnerKey:
    """The owner whose key is in a folder; signing needs the passphrase."""

    folder: Folder
    file: KeyFile
    owner: Owner

    @classmethod
    def create(
        cls,
        folder: Folder,
        name: str,
        kind: Literal["person", "organisation"],
        passphrase: Callable[[], bytes],
    ) -> OwnerKey:
        """Make an owner's key. Errors: :class:`RequestError` where there is one, or a bad name."""
        if folder.read(KEY) is not None:
            raise RequestError(f"{folder.path / KEY} is there already, and is never overwritten")
        try:
            about = _About(valid_name(name), kind)
        except ValueError as error:
            raise RequestError(str(error)) from None
        file = KeyFile.of(Key.generate(), passphrase())
        with folder.locked():
            folder.create(KEY, file.content)
            folder.replace(ABOUT, json.dumps({"name": name, "kind": kind}).encode() + b"\n")
        return cls(folder, file, Owner(file.did, about.name, kind))

    @classmethod
    def find(cls, folder: Folder) -> OwnerKey:
        """The owner here. Errors: :class:`RequestError` where there is none, ConfigError."""
        file, content = read_key_file(folder, KEY), folder.read(ABOUT)
        if file is None or content is None:
            raise RequestError(
                f"there is no owner's key in {folder.path}: kwaai identity owner create"
            )
        try:
            with parsing(ABOUT):
                about = parsed(_About, loaded(content))
                if about.kind not in ("person", "organisation"):
                    raise ValueError(f"kind is {about.kind!r:.80}")
                kind = cast(Literal["person", "organisation"], about.kind)
                return cls(folder, file, Owner(file.did, valid_name(about.name), kind))
        except NotVerified as error:
            raise ConfigError(f"{folder.path / ABOUT} cannot be used: {error.message}") from None

    def sign(self, node: str, passphrase: bytes | None, *, begins: float, days: int) -> str:
        """The credential for a node. Errors: :class:`NotVerified` for no DID, ConfigError."""
        key = open_key_file(self.folder.path / KEY, self.file, passphrase)
        return certify(key, self.owner, node, begins=begins, expires=begins + days * 86_400)


class Attached:
    """The credential on a node, read again when it has changed."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._cached: tuple[tuple[int, ...] | None, Control | None] = (None, None)

    def now(self, names: Collection[str], now: float) -> Control | None:
        """The credential that is good now, None where there is none or it has expired."""
        found = self.control()
        return found if found is not None and found.holds(names, now) else None

    def control(self) -> Control | None:
        """What is there, good or not. Errors: :class:`ConfigError` where it cannot be used."""
        stamp = self._folder.stamp(CREDENTIAL)
        if stamp is None or stamp != self._cached[0]:
            content = self._folder.read(CREDENTIAL)
            self._cached = stamp, None if content is None else self._parsed(content)
        return self._cached[1]

    def _parsed(self, content: bytes) -> Control:
        try:
            with parsing("it"):
                return control(content.decode("ascii").strip())
        except NotVerified as error:
            path = self._folder.path / CREDENTIAL
            raise ConfigError(
                f"{path} cannot be used: {error.message}: kwaai identity owner attach again, "
                "or move it away"
            ) from None

    def attach(self, jwt: str, names: Collection[str], now: float) -> Control:
        """Verify a credential and keep it. Errors: :class:`RequestError`."""
        try:
            found = control(jwt)
        except NotVerified as error:
            raise RequestError(f"the credential cannot be taken: {error.message}") from None
        if found.node not in names:
            raise RequestError(f"the credential is for {found.node}, and not for this node")
        if found.expires <= now:
            raise RequestError("the credential has expired: sign another")
        with self._folder.locked():
            self._folder.replace(CREDENTIAL, jwt.encode() + b"\n")
        return found
