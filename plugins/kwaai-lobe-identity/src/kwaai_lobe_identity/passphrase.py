"""Passphrases, which come from the first line of a file."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from kwaai_core import ConfigError
from kwaai_lobe_identity import IdentitySettings
from kwaai_lobe_identity.generations import Passphrase


def passphrase_of(settings: IdentitySettings) -> Passphrase:
    """That of the settings, read when it is first needed; None where they name no file."""

    @cache
    def ask() -> bytes | None:
        file = settings.passphrase_file
        return first_line(Path(file), "[identity] passphrase_file") if file else None

    return ask


def first_line(path: Path, place: str) -> bytes:
    """The first line of a file that ``place`` names. Errors: :class:`ConfigError`."""
    try:
        with path.expanduser().open("rb") as file:
            line = file.readline(4096).rstrip(b"\r\n")
    except OSError as error:
        raise ConfigError(f"{place} = {str(path)!r}: {error.strerror}") from None
    if not line:
        raise ConfigError(f"{place} = {str(path)!r}: its first line is empty")
    return line
