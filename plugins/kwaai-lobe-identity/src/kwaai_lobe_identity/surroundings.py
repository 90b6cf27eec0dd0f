"""What the commands work on: the lobe's folder, its settings, and the names that a user types."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kwaai_core.config import Config
    from kwaai_lobe_identity.folder import Folder
    from kwaai_lobe_identity.generations import Passphrase


def _config() -> Config:
    from kwaai_core.config import load_config

    return load_config()


def folder_here() -> Folder:
    from kwaai_lobe_identity.folder import Folder

    return Folder(_config().state / "lobes" / "identity")


def did_of(name: str) -> str:
    """The DID of a DID or a peer id. Errors: :class:`kwaai_core.NotVerified`."""
    from kwaai_lobe_identity.names import METHOD, did_of_key, key_of_did, key_of_peer

    return did_of_key(key_of_did(name) if name.startswith(METHOD) else key_of_peer(name))


def passphrase_here() -> Passphrase:
    from kwaai_lobe_identity import IdentitySettings
    from kwaai_lobe_identity.passphrase import passphrase_of

    return passphrase_of(_config().table("identity", IdentitySettings))
