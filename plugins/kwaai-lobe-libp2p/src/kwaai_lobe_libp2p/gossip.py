"""What neighbours on topics say to one another: frames that start with a byte for their kind.

``S`` lists the topics that the sender subscribes to, each on a line; ``M`` is a message; ``H``
lists the ids of messages that the sender has, ``W`` of those that the receiver should send. A
message is a topic, a newline, the author's DID, a space and a JWS for the purpose ``topic``, whose
payload is the topic, the time in milliseconds, a number, and the body. The time bounds how long a
message may be told again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kwaai_core import FrameError, Identity, NotVerified

PROTOCOL = "/kwaai/gossip/1"
MAX_BODY = 32 << 10
MAX_FRAME = 48 << 10
"""The longest frame: the longest message, in base64, and what is around it."""

MAX_TOPIC = 256
MAX_TOPICS = 128
MAX_IDS = 256
ID = 16
OLD = 120.0
"""How many seconds old a message may be, and how far ahead its author's clock."""

_PURPOSE = "topic"
_NUMBER = re.compile(rb"[0-9]{1,16}")


@dataclass(frozen=True, slots=True)
class Message:
    """A verified message; ``frame`` is what is passed on, ``at`` seconds since 1970."""

    topic: str
    peer: str
    body: bytes
    at: float
    id: bytes
    frame: bytes

    def is_recent(self, now: float) -> bool:
        """Whether it may still be taken: neither old nor from a clock that is far ahead."""
        return abs(now - self.at) <= OLD


def fit_topic(topic: str) -> bool:
    """Whether this can be a topic."""
    return 0 < len(topic) <= MAX_TOPIC and topic.isprintable()


def message(identity: Identity, topic: str, body: bytes, *, at: float, number: int) -> Message:
    """A message of this node."""
    milliseconds = int(at * 1000)
    head = f"{topic}\n{milliseconds}\n{number}\n".encode()
    told = f"{topic}\n{identity.did} {identity.sign(_PURPOSE, head + body)}".encode()
    peer = identity.peer_id
    return Message(topic, peer, body, milliseconds / 1000, identify(told), b"M" + told)


def identify(told: bytes) -> bytes:
    """The id of a message, from all of its frame but the first byte."""
    return hashlib.sha256(told).digest()[:ID]


def topic_of(told: bytes) -> str:
    """The topic that a message claims to be on. Errors: :class:`NotVerified`."""
    try:
        topic = told[: told.index(b"\n", 0, 4 * MAX_TOPIC + 1)].decode()
    except ValueError:
        raise NotVerified("a message has no topic") from None
    if not fit_topic(topic):
        raise NotVerified("a message has no topic")
    return topic


def verified(identity: Identity, told: bytes) -> Message:
    """A message as its author made it. Errors: :class:`NotVerified`."""
    topic = topic_of(told)
    try:
        did, _, jws = told[len(topic.encode()) + 1 :].decode("ascii").partition(" ")
    except UnicodeDecodeError:
        raise NotVerified("a message is no text") from None
    peer = identity.peer_of(did)
    payload = identity.verify(_PURPOSE, did, jws)
    signed, _, rest = payload.partition(b"\n")
    time, _, rest = rest.partition(b"\n")
    number, newline, body = rest.partition(b"\n")
    if not newline or signed != topic.encode():
        raise NotVerified(f"{peer} has signed a message that is not on {topic}")
    if not _NUMBER.fullmatch(time) or not _NUMBER.fullmatch(number) or len(body) > MAX_BODY:
        raise NotVerified(f"{peer} has signed a malformed message")
    return Message(topic, peer, body, int(time) / 1000, identify(told), b"M" + told)


def subscriptions(topics: Iterable[str]) -> bytes:
    return b"S" + "\n".join(sorted(topics)).encode()


def read_subscriptions(listed: bytes) -> frozenset[str]:
    """Errors: :class:`FrameError`."""
    try:
        topics = listed.decode().split("\n") if listed else []
    except UnicodeDecodeError:
        raise FrameError("a peer subscribes to what is no topic") from None
    if len(topics) > MAX_TOPICS or not all(map(fit_topic, topics)):
        raise FrameError("a peer subscribes to what is no topic, or to too many")
    return frozenset(topics)


def having(ids: Sequence[bytes]) -> bytes:
    return b"H" + b"".join(ids[:MAX_IDS])


def wanting(ids: Sequence[bytes]) -> bytes:
    return b"W" + b"".join(ids[:MAX_IDS])


def read_ids(listed: bytes) -> Sequence[bytes]:
    """Errors: :class:`FrameError`."""
    if len(listed) % ID or len(listed) > ID * MAX_IDS:
        raise FrameError("a peer lists what are no ids of messages")
    return [listed[at : at + ID] for at in range(0, len(listed), ID)]
