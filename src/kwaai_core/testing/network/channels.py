"""Data channels of a simulated network: real sockets, with real certificates for one use."""

from __future__ import annotations

import datetime
import socket
from math import inf
from typing import TYPE_CHECKING

from kwaai_core.peering import DataChannel

if TYPE_CHECKING:
    from kwaai_core.testing.network.streams import Wire


async def meet(wire: Wire) -> DataChannel | None:
    """What this end of a stream gets, once the other asks for it as well.

    Errors: :class:`PeerLost`.
    """
    connection, end, far = wire.connection, wire.end, wire.far
    wire.meetings += 1
    number = wire.meetings
    far.stir()
    await wire.until(lambda: -inf if far.meetings >= number else inf)
    wire.check()
    await connection.cross(end, end)
    await connection.cross(1 - end, end)
    wire.check()
    if not wire.channels:
        mine, theirs = _pair(wire.opener) if connection.pair.direct else (None, None)
        wire.channels.append(mine)
        far.channels.append(theirs)
    return wire.channels.popleft()


def _pair(first_is_client: bool) -> tuple[DataChannel, DataChannel]:
    near, far = socket.socketpair()
    (mine, my_key), (theirs, their_key) = _certificate(), _certificate()
    return (
        DataChannel(near, mine, my_key, theirs, server=not first_is_client),
        DataChannel(far, theirs, their_key, mine, server=first_is_client),
    )


def _certificate() -> tuple[bytes, bytes]:
    """A fresh certificate, signed by its own key; and that key. Both PEM."""
    from cryptography import x509  # slow, and only who opens a data channel needs it
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, day = ec.generate_private_key(ec.SECP256R1()), datetime.timedelta(days=1)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "data channel")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    made = builder.not_valid_before(now - day).not_valid_after(now + day).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
