"""identify and ping, as every implementation of libp2p has them."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection, Sequence

import trio
from google.protobuf.message import DecodeError
from libp2p.crypto.keys import PublicKey
from libp2p.identity.identify.pb.identify_pb2 import Identify
from multiaddr import Multiaddr

from kwaai_core import FrameError, PeerLost
from kwaai_lobe_libp2p.streams import ByteStream

IDENTIFY, PING = "/ipfs/id/1.0.0", "/ipfs/ping/1.0.0"

_VERSION = "ipfs/0.1.0"
_AGENT = "kwaai/0.1"
_LONGEST = 1 << 16
_PING_SIZE = 32
_IDLE = 60.0

_log = logging.getLogger(__name__)


def description(
    key: PublicKey, addresses: Sequence[str], protocols: Collection[str], observed: str
) -> bytes:
    """What this node says of itself, with its length in front."""
    message = Identify(
        protocol_version=_VERSION,
        agent_version=_AGENT,
        public_key=key.serialize(),
        listen_addrs=[Multiaddr(address).to_bytes() for address in addresses],
        observed_addr=Multiaddr(observed).to_bytes(),
        protocols=sorted(protocols),
    ).SerializeToString()
    return _length(len(message)) + message


def _length(size: int) -> bytes:
    out = bytearray()
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes([*out, size])


async def read_message(stream: ByteStream, longest: int = _LONGEST) -> bytes:
    """A message with its length in front. Errors: :class:`FrameError`, :class:`PeerLost`."""
    size = shift = 0
    while True:
        byte = (await stream.read(1))[0]
        size |= (byte & 127) << shift
        if byte < 128:
            break
        shift += 7
        if shift > 21:
            raise FrameError("what came is longer than any message")
    if size > longest:
        raise FrameError(f"a message of {size} bytes came: there may be {longest}")
    return await stream.read(size)


def message(body: bytes) -> bytes:
    """A message with its length in front."""
    return _length(len(body)) + body


async def ask_identity(stream: ByteStream) -> tuple[list[str], str]:
    """Where a peer says that it listens, and where it sees this node.

    Errors: :class:`FrameError`, :class:`PeerLost`.
    """
    body = await read_message(stream)
    try:
        said = Identify.FromString(body)
    except DecodeError as error:
        raise FrameError("what came is no message of identify") from error
    listens = [text for raw in said.listen_addrs[:16] if (text := text_of(raw))]
    return listens, text_of(said.observed_addr)


def text_of(raw: bytes) -> str:
    """A multiaddress that a peer sent, empty where it is none."""
    try:
        return str(Multiaddr(raw))
    except Exception:  # noqa: BLE001 - a peer's bytes, and the library raises whatever it runs into
        return ""


async def answer_ping(stream: ByteStream) -> None:
    """Send back what comes, until the peer has enough or says nothing for a minute."""
    try:
        while True:
            with trio.fail_after(_IDLE):
                body = await stream.read(_PING_SIZE)
            await stream.write(body)
    except (PeerLost, trio.TooSlowError):
        _log.debug("%s pings no more", stream.peer)


async def ping(stream: ByteStream, clock: Callable[[], float] = trio.current_time) -> float:
    """How many seconds a round trip takes. Errors: :class:`FrameError`, :class:`PeerLost`."""
    sent = secrets.token_bytes(_PING_SIZE)
    began = clock()
    await stream.write(sent)
    if await stream.read(_PING_SIZE) != sent:
        raise FrameError(f"{stream.peer} answers a ping with something else")
    return clock() - began
