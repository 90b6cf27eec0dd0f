"""TLS for the port, where a certificate is configured."""

from __future__ import annotations

import ssl
from pathlib import Path

from kwaai_core.config import ServerSettings
from kwaai_core.errors import ConfigError

_KINDS = {"certfile": b"-----BEGIN CERTIFICATE-----", "keyfile": b"PRIVATE KEY-----"}


def tls_context(settings: ServerSettings) -> ssl.SSLContext | None:
    """What the port speaks TLS with, or None where it is not to.

    Errors: :class:`ConfigError` for files that are not there or not of the right kind.
    """
    if not settings.certfile:
        return None
    files = {key: Path(getattr(settings, key)).expanduser() for key in _KINDS}
    for key, file in files.items():
        _look_at(key, file)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # which costs us more than whoever asks for it
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without the password OpenSSL would ask for it on the terminal.
        context.load_cert_chain(**files, password=_no_password)
    except ssl.SSLError as error:
        why = "the key is that of another certificate"
        if error.reason != "KEY_VALUES_MISMATCH":
            why = f"they are damaged ({error.reason or error})"
        raise ConfigError(
            f"[server] certfile = {files['certfile']}, keyfile = {files['keyfile']}: {why}"
        ) from None
    return context


def _look_at(key: str, file: Path) -> None:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"[server] {key} = {file} cannot be read: {error.strerror}") from None
    if _KINDS[key] not in content:
        raise ConfigError(
            f"[server] {key} = {file} has no “{_KINDS[key].decode()}” in it: "
            "it must be a file in PEM"
        )


def _no_password() -> bytes:
    raise ConfigError(
        "[server] keyfile is locked with a password, which a node cannot type: "
        "openssl pkey -in … -out … writes it without"
    )
