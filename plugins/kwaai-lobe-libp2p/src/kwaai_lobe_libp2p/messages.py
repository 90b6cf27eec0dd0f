"""What the nodes of the directory ask and answer one another: JSON, one object a frame.

A question is ``{"find": KEY}`` or ``{"store": STATEMENT}``. The answers are ``{"found": […],
"nearer": […]}``, statements under the key and contacts nearer to it, and ``{"held": STATEMENT}``:
what is held there now, null for nothing. Each may have a ``from``, its sender's own contact.
Statements travel as they were sealed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kwaai_core import FrameError
from kwaai_lobe_libp2p.statements import Statement

PROTOCOL = "/kwaai/kad/1"
MAX_MESSAGE = 256 << 10
MAX_FOUND = 64
MAX_NEARER = 20
_ROOM = MAX_MESSAGE // 4
_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Find:
    key: bytes
    sender: object


@dataclass(frozen=True, slots=True)
class Store:
    statement: object
    sender: object


@dataclass(frozen=True, slots=True)
class Found:
    """Statements and contacts, sealed as they came: nothing of them is verified yet."""

    statements: Sequence[object]
    nearer: Sequence[object]
    sender: object


@dataclass(frozen=True, slots=True)
class Held:
    statement: object
    sender: object


def find(key: bytes, sender: Statement | None) -> bytes:
    return _packed({"find": key.hex()}, sender)


def store(statement: Statement, sender: Statement | None) -> bytes:
    return _packed({"store": statement.sealed}, sender)


def found(
    statements: Sequence[Statement], nearer: Sequence[Statement], sender: Statement | None
) -> bytes:
    """An answer that stays below the limit: as many of the statements as there is room for."""
    told, room = [], _ROOM
    for statement in statements[:MAX_FOUND]:
        room -= len(statement.sealed) + 3
        if room >= 0:
            told.append(statement.sealed)
    contacts = [contact.sealed for contact in nearer[:MAX_NEARER]]
    return _packed({"found": told, "nearer": contacts}, sender)


def held(statement: Statement | None, sender: Statement | None) -> bytes:
    return _packed({"held": statement.sealed if statement else None}, sender)


def question(frame: bytes) -> Find | Store:
    """Errors: :class:`FrameError` for what is none."""
    message = _object(frame)
    sender = message.get("from")
    if "store" in message:
        return Store(message["store"], sender)
    key = message.get("find")
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise FrameError("a peer asks the directory for what is no key")
    return Find(bytes.fromhex(key), sender)


def answer_found(frame: bytes) -> Found:
    """Errors: :class:`FrameError` for what is none."""
    message = _object(frame)
    statements, nearer = message.get("found"), message.get("nearer")
    if not isinstance(statements, list) or not isinstance(nearer, list):
        raise FrameError("a peer answers the directory with what is no answer")
    return Found(statements[:MAX_FOUND], nearer[:MAX_NEARER], message.get("from"))


def answer_held(frame: bytes) -> Held:
    """Errors: :class:`FrameError` for what is none."""
    message = _object(frame)
    if "held" not in message:
        raise FrameError("a peer answers the directory with what is no answer")
    return Held(message["held"], message.get("from"))


def _packed(message: dict[str, Any], sender: Statement | None) -> bytes:
    if sender is not None:
        message["from"] = sender.sealed
    return json.dumps(message, separators=(",", ":")).encode()


def _object(frame: bytes) -> Mapping[str, Any]:
    try:
        message = json.loads(frame)
    except (ValueError, RecursionError):
        raise FrameError("a message to the directory is no JSON") from None
    if not isinstance(message, dict):
        raise FrameError("a message to the directory is no object")
    return message
