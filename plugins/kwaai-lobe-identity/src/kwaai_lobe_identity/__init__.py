"""Who a node is: its key as ``did:key`` and peer id, its owner, its groups; and the commands."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kwaai_core import Host, Identity, Offer, hookimpl

if TYPE_CHECKING:
    import click


@dataclass(frozen=True, slots=True)
class IdentitySettings:
    """The table ``[identity]``.

    ``passphrase_file`` names a file whose first line locks and unlocks the keys; empty leaves new
    keys unlocked. ``membership_days`` is how long a membership that this node gives is good.
    """

    passphrase_file: str = ""
    membership_days: int = 365

    def __post_init__(self) -> None:
        if not 1 <= self.membership_days <= 366:
            raise ValueError(f"membership_days = {self.membership_days}: must be 1 to 366")


@hookimpl
def provide_identity() -> Offer[Identity]:
    """The identity of the lobe's state folder, made where there is none."""
    return Offer("identity", _open, IdentitySettings)


@hookimpl
def add_commands(cli: click.Group) -> None:
    """`kwaai identity`."""
    from kwaai_lobe_identity.commands import identity

    cli.add_command(identity)


def _open(host: Host) -> AbstractAsyncContextManager[Identity]:
    from kwaai_lobe_identity.identity import open_identity

    return open_identity(host)
