"""TLS over a data channel: 1.3, both sides known by the one certificate that the other may show."""

from __future__ import annotations

import ssl
import tempfile
from typing import TYPE_CHECKING

from kwaai_core.errors import PeerLost

if TYPE_CHECKING:
    import socket

    from kwaai_core.peering import DataChannel


def secure(channel: DataChannel, *, seconds: float) -> socket.socket:
    """The channel's socket after the handshake, blocking; the socket itself where the channel has
    no certificates, since another process of this node carries it then.

    It waits for the other side for at most ``seconds``. The caller closes what it gets; where this
    fails the channel's socket is closed.

    Errors: :class:`PeerLost`.
    """
    channel.socket.settimeout(seconds)
    if not channel.certificate:
        return channel.socket
    try:
        context = context_of(channel)
        return context.wrap_socket(channel.socket, server_side=channel.server)
    except (OSError, ValueError) as error:  # ssl.SSLError, or a certificate that is none
        channel.socket.close()
        raise PeerLost(f"the handshake of a data channel failed: {error}") from None


def context_of(channel: DataChannel) -> ssl.SSLContext:
    """What a handshake over the channel needs, for whoever does it without blocking.

    Errors: :class:`OSError` and :class:`ValueError` for certificates that are none.
    """
    side = ssl.PROTOCOL_TLS_SERVER if channel.server else ssl.PROTOCOL_TLS_CLIENT
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=channel.trusted.decode("ascii"))
    with tempfile.NamedTemporaryFile() as file:  # the ssl module reads keys from files only
        file.write(channel.certificate + channel.key)
        file.flush()
        context.load_cert_chain(file.name)
    return context
