"""The port of data channels: who comes without a ticket, or with a certificate of another."""

from __future__ import annotations

import json
import socket
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from functools import cache

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hostile.wire import Broken, Stream

WELCOME = b"welcome"
KINDS = (
    "honest",
    "stranger",
    "no certificate",
    "wrong ticket",
    "no tls",
    "silence",
    "no connection",
)


class Breach(Exception):
    """The node lets in whom it must not let in."""


@cache
def certificate(number: int) -> bytes:
    """A certificate of this attacker's and its key, in PEM; one for each number."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"hostile {number}")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), number + 1)
        .not_valid_before(now - timedelta(1))
        .not_valid_after(now + timedelta(1))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return made.public_bytes(serialization.Encoding.PEM) + private


async def come(stream: Stream, host: str, kind: str) -> str:
    """Exchange offers on a stream, and come to the port as ``kind`` says; what became of it.

    Errors: :class:`Breach`.
    """
    mine = certificate(0).split(b"-----BEGIN PRIVATE")[0].decode()
    await _send(stream, {"certificate": mine, "ports": {}, "ticket": bytes(32).hex()})
    offer = json.loads(await stream.exactly(int.from_bytes(await stream.exactly(4), "big")))
    ticket = bytes(32) if kind == "wrong ticket" else bytes.fromhex(offer["ticket"])
    if kind == "no connection":
        await _send(stream, {"connected": True})
        return "shut out"
    with socket.create_connection((host, offer["ports"]["4"]), 2) as sock:
        if kind != "silence":
            sock.sendall(ticket)
        await _send(stream, {"connected": True})
        heard = await trio.to_thread.run_sync(_shake, sock, kind, offer["certificate"])
    if heard == WELCOME and kind != "honest":
        raise Breach(f"a data channel was opened to a peer with {kind}")
    return "welcomed" if heard == WELCOME else "shut out"


async def _send(stream: Stream, message: object) -> None:
    frame = json.dumps(message, separators=(",", ":")).encode()
    await stream.write(len(frame).to_bytes(4, "big") + frame)


def _shake(sock: socket.socket, kind: str, theirs: str) -> bytes:
    """What the node says, once TLS is up on a connection that has shown its ticket."""
    try:
        sock.settimeout(1)
        if kind in ("silence", "wrong ticket"):
            return sock.recv(1)
        if sock.recv(1) != b"\x01":
            raise Broken("the ticket was not welcome")
        if kind == "no tls":
            sock.sendall(bytes(500))
            return sock.recv(100)
        with _context(kind, theirs).wrap_socket(sock) as tls:
            return tls.recv(100)
    except OSError:
        return b""


def _context(kind: str, theirs: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=theirs)
    if kind != "no certificate":
        with tempfile.NamedTemporaryFile() as file:  # ssl reads keys from files alone
            file.write(certificate(0 if kind == "honest" else 1))
            file.flush()
            context.load_cert_chain(file.name)
    return context
