"""The inputs: each is made from a seed and its number alone, so that it can be made again."""

from __future__ import annotations

import json
import random
import re
import struct
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from hostile.channel import KINDS
from hostile.noise import claim
from hostile.protobuf import field, fields, read_varint, varint
from hostile.reporting import DATA
from hostile.wire import MULTISTREAM, NOISE, YAMUX, frame, line

TRAFFIC = Path(__file__).with_name("traffic.json")

Layer = Literal[
    "tcp", "handshake", "muxing", "yamux", "stream", "answer", "listener", "channel", "flood"
]
End = Literal["end", "reset", "hang"]


@dataclass(frozen=True, slots=True)
class Input:
    """What is done once: ``parts`` are written one after the other, on a layer.

    ``tcp``: to a fresh connection. ``handshake``: as the frames of noise; a part of the form
    ``claim:…`` is sealed as a sound third message that claims what follows. ``muxing``: sealed,
    where the muxer is agreed on. ``yamux``: in the place of frames. ``stream``: to a stream of
    ``protocol``. ``answer``: to every stream that the node opens. ``listener``: to the node when it
    dials. ``channel``: see ``channel.py``. ``flood``: see ``attack.py``.
    """

    number: int
    kind: str
    layer: Layer
    parts: tuple[bytes, ...] = ()
    protocol: str = ""
    end: End = "hang"

    def __str__(self) -> str:
        said = b"".join(self.parts)
        about = f" of {self.protocol}" if self.protocol else ""
        return (
            f"input {self.number}: {self.layer}{about}, {self.kind}, {len(said)} bytes in "
            f"{len(self.parts)} parts, then {self.end}: {said[:48].hex()}"
        )


def family(protocol: str) -> str:
    """``kad`` of ``/ipfs/kad/1.0.0``, and of kwaai's own ``/kwaai/kad/1`` ``kwaai/kad``."""
    named = [part for part in protocol.split("/") if not re.fullmatch(r"[\d.]*", part)]
    return "/".join(named[-2 if named[:1] == ["kwaai"] else -1 :]) or protocol


@cache
def traffic() -> Mapping[str, Mapping[str, Sequence[bytes]]]:
    """Honest streams by family and side; of ``push`` and ``dcutr``, which say what others say."""
    read = json.loads(TRAFFIC.read_text())
    found = {
        name: {side: [b64decode(said) for said in all_] for side, all_ in sides.items()}
        for name, sides in read.items()
    }
    punch = field(1, 100) + field(2, b"\x04\x7f\0\0\x01\x06\x0f\xa1")
    found.setdefault("dcutr", {"asked": [varint(len(punch)) + punch + b"\x03\x08\xac\x02"]})
    found.setdefault("push", {"asked": found["id"]["answered"]})
    return found


def make(seed: int, number: int, protocols: Sequence[str]) -> Input:
    """The input of this number for a node that serves these protocols."""
    rng = random.Random(f"{seed} {number}")
    if number % 500 == 250:
        return Input(number, rng.choice(FLOODS), "flood", protocol=rng.choice(protocols))
    if number % 250 == 100 and DATA in protocols:
        return Input(number, rng.choice(KINDS), "channel", protocol=DATA)
    if number % 250 == 200:
        return _as_listener(number, rng)
    makers, weights = zip(*_LAYERS, strict=True)
    maker: Maker = rng.choices(makers, weights)[0]
    return maker(number, rng, protocols)


FLOODS = (
    "half-open",
    "connections",
    "streams",
    "unread echo",
    "unread data",
    "pings",
    "endless message",
    "endless negotiation",
)
Maker = Callable[[int, random.Random, Sequence[str]], Input]


# -- what is said ------------------------------------------------------------------------------


def _recorded(rng: random.Random, name: str, side: str = "asked") -> bytes:
    """An honest stream of a family, or of another where there is none."""
    known = traffic()
    sides = known.get(name) or known[rng.choice(sorted(known))]
    return rng.choice(sides.get(side) or [said for all_ in sides.values() for said in all_])


def _garbage(rng: random.Random, honest: bytes) -> bytes:
    return rng.randbytes(rng.choice((1, 2, 7, 64, 500, 2000)))


def _prefixed(rng: random.Random, honest: bytes) -> bytes:
    """Messages of random bytes, each behind a sound length."""
    bodies = [rng.randbytes(rng.randrange(200)) for _ in range(rng.randrange(1, 5))]
    prefix = rng.choice((varint, lambda n: n.to_bytes(4, "big")))
    return b"".join(prefix(len(body)) + body for body in bodies)


def _oversized(rng: random.Random, honest: bytes) -> bytes:
    """A length that no memory holds, and the beginning of what it announces."""
    size = 1 << rng.randrange(20, 63)
    length = rng.choice((varint(size), (size - 1 & 0xFFFFFFFF).to_bytes(4, "big"), b"\xff" * 12))
    return length + honest


def _mutated(rng: random.Random, honest: bytes) -> bytes:
    said = bytearray(honest)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(said) + 1)
        match rng.randrange(4):
            case 0:
                said[at : at + 1] = bytes(
                    [rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))]
                )
            case 1:
                said[at:at] = rng.randbytes(rng.randrange(1, 20))
            case 2:
                del said[at : at + rng.randrange(1, 20)]
            case _:
                said[at:at] = said[at : at + rng.randrange(1, 60)]
    return bytes(said)


def _spliced(rng: random.Random, honest: bytes) -> bytes:
    other = _recorded(rng, rng.choice(sorted(traffic())))
    return honest[: rng.randrange(len(honest) + 1)] + other[rng.randrange(len(other) + 1) :]


def _cut(rng: random.Random, honest: bytes) -> bytes:
    return honest[: rng.randrange(len(honest))] if honest else b""


def _repeated(rng: random.Random, honest: bytes) -> bytes:
    return honest * rng.randrange(1, 30)


def _altered(rng: random.Random, honest: bytes) -> bytes:
    """Sound messages with wrong fields, each behind a length that is right again."""
    if (frames := _frames_of(honest)) is not None:
        changed = [_alter_text(rng, frame) for frame in frames]
        return b"".join(len(frame).to_bytes(4, "big") + frame for frame in changed)
    said, at = b"", 0
    try:
        while at < len(honest):
            size, start = read_varint(honest, at)
            at = start + size
            body = _alter(rng, honest[start:at], 4)
            said += varint(len(body)) + body
    except ValueError:
        return said + _alter(rng, honest, 4)
    return said


def _frames_of(said: bytes) -> list[bytes] | None:
    """The frames of kwaai's own protocols without the mark of their end, None for others."""
    found, at = [], 0
    while at < len(said) and said[at : at + 4] != b"\xff" * 4:
        end = at + 4 + int.from_bytes(said[at : at + 4], "big")
        if end > len(said):
            return None
        found.append(said[at + 4 : end])
        at = end
    return found


def _alter_text(rng: random.Random, frame: bytes) -> bytes:
    """A frame of JSON with one value changed, or another frame with some bytes changed."""
    try:
        value = json.loads(frame)
    except ValueError:
        return _mutated(rng, frame)
    if rng.random() < 0.1:
        return rng.choice((b"[" * 100_000, b'{"a":' * 50_000, b"NaN", b'"\\ud800"', b"1" * 5000))
    return json.dumps(_alter_value(rng, value)).encode()


def _alter_value(rng: random.Random, value: Any) -> Any:
    inside = (
        list(value.items() if isinstance(value, dict) else enumerate(value))
        if isinstance(value, dict | list)
        else []
    )
    if inside and rng.random() < 0.9:
        which, old = rng.choice(inside)
        changed = dict(value) if isinstance(value, dict) else list(value)
        changed[which] = _alter_value(rng, old)
        return changed
    if isinstance(value, str) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice(("", ".", "A", "\0", "\ud800", value)) + value[at + 1 :]
    return rng.choice(
        (None, True, -1, 1 << 70, 1e308, float("nan"), "", "x" * 70_000, [], {}, [value] * 300,
         {"find": "0" * 64}, rng.randbytes(20).hex())
    )  # fmt: skip


def _alter(rng: random.Random, message: bytes, depth: int) -> bytes:
    try:
        known = list(fields(message))
    except ValueError:
        return _mutated(rng, message)
    if not known:
        return rng.randbytes(rng.randrange(8))
    which = rng.randrange(len(known))
    number, value = known[which]
    changed = [(number, _other(rng, value, depth))]
    match rng.randrange(8):
        case 0:
            changed = []
        case 1:
            changed = [(number, value)] * rng.randrange(2, 200)
        case 2:
            changed = [(rng.randrange(1, 30), value)]
        case _:
            pass
    known[which : which + 1] = changed
    return b"".join(field(number, value) for number, value in known)


def _other(rng: random.Random, value: int | bytes, depth: int) -> int | bytes:
    if rng.random() < 0.05:  # of the other kind
        return rng.randbytes(4) if isinstance(value, int) else rng.randrange(1 << 63)
    if isinstance(value, int):
        return rng.choice((0, 1, 2, 3, 4, 5, 100, 1 << 31, 1 << 32, (1 << 64) - 1, value ^ 1))
    if depth and rng.random() < 0.6:
        return _alter(rng, value, depth - 1)
    return rng.choice(
        (b"", b"\0", b"\xff\xfe", rng.randbytes(len(value)), value[:-1], value * 2,
         _mutated(rng, value), _KEYS[rng.randrange(len(_KEYS))], rng.randbytes(70_000))
    )  # fmt: skip


_KEYS = tuple(field(1, kind) + field(2, b"\x30\x82" + bytes(34)) for kind in range(6))
"""Public keys of every kind that libp2p knows, and of some that it does not, none of them sound."""

_SAYINGS = (
    _garbage, _prefixed, _oversized, _mutated, _mutated, _spliced, _cut, _repeated,
    _altered, _altered, _altered,
)  # fmt: skip


def _in_parts(rng: random.Random, said: bytes) -> tuple[bytes, ...]:
    """In one, in two, or byte by byte."""
    match rng.randrange(6):
        case 0:
            at = rng.randrange(len(said) + 1)
            return said[:at], said[at:]
        case 1 if len(said) < 40:
            return tuple(said[at : at + 1] for at in range(len(said)))
        case _:
            return (said,)


# -- on which layer ----------------------------------------------------------------------------


def _on_stream(number: int, rng: random.Random, protocols: Sequence[str]) -> Input:
    protocol = rng.choice(protocols)
    say = rng.choice(_SAYINGS)
    said = say(rng, _recorded(rng, family(protocol)))
    end: End = rng.choice(("end", "end", "reset", "hang"))
    return Input(number, say.__name__[1:], "stream", _in_parts(rng, said), protocol, end)


def _silent_stream(number: int, rng: random.Random, protocols: Sequence[str]) -> Input:
    end: End = rng.choice(("end", "reset", "hang"))
    return Input(number, "silent", "stream", (), rng.choice(protocols), end)


def _unknown_protocol(number: int, rng: random.Random, protocols: Sequence[str]) -> Input:
    odd = ("ls", "na", "", "/" * 300, "/x\n/y", "\0", "/ipfs/id/9.9.9", "é" * 500, MULTISTREAM)
    return Input(number, "unknown", "stream", (rng.randbytes(30),), rng.choice(odd), "end")


def _as_answer(number: int, rng: random.Random, protocols: Sequence[str]) -> Input:
    say = rng.choice(_SAYINGS)
    said = say(rng, _recorded(rng, rng.choice(("id", "id", "kad")), "answered"))
    end: End = rng.choice(("end", "reset", "hang"))
    return Input(number, say.__name__[1:], "answer", _in_parts(rng, said), "", end)


def _negotiation(rng: random.Random, then: str) -> bytes:
    sound = line(MULTISTREAM) + line(then)
    odd = (
        line("/" + "x" * 2000),
        b"\xff" * 11,
        varint(1 << 40) + b"/",
        b"\0" * 50,
        line("na") * 99,
    )
    return rng.choice(
        (_mutated(rng, sound), _cut(rng, sound), line(MULTISTREAM) + rng.choice(odd),
         rng.choice(odd), sound + rng.randbytes(rng.randrange(2000)), rng.randbytes(300))
    )  # fmt: skip


def _on_tcp(number: int, rng: random.Random, protocols: Sequence[str]) -> Input:
    alien = (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", b"")
    said = rng.choice((_negotiation(rng, NOISE), _negotiation(rng, NOISE), rng.choice(alien)))
    end: End = rng.choice(("end", "reset", "hang"))
    return Input(number, "negotiation", "tcp", _in_parts(rng, said), "", end)


def _claim_of_another_session(rng: random.Random) -> bytes:
    """Sound in itself, and as good as recorded: the key that it signs is not this session's."""
    key = Ed25519PrivateKey.from_private_bytes(rng.randbytes(32))
    return claim(key, X25519PrivateKey.from_private_bytes(rng.randbytes(32)))


def _as_listener(number: int, rng: random.Random) -> Input:
    agreed = line(MULTISTREAM) + line(NOISE)
    second = rng.randbytes(rng.choice((31, 32, 96, 200)))
    said = rng.choice(
        (_negotiation(rng, NOISE), b"", line(MULTISTREAM) + line("na"), agreed + b"\xff\xff",
         agreed + len(second).to_bytes(2, "big") + second, agreed + rng.randbytes(500))
    )  # fmt: skip
    end: End = rng.choice(("end", "hang"))
    return Input(number, "negotiation", "listener", _in_parts(rng, said), "", end)


def _in_handshake(number: int, rng: random.Random, protocols: Sequence[str]) -> Input:
    def framed(said: bytes) -> bytes:
        return len(said).to_bytes(2, "big") + said

    lies = (
        b"", rng.randbytes(100), field(1, _KEYS[1]) + field(2, bytes(64)), rng.randbytes(60_000),
        field(1, rng.choice(_KEYS)) + field(2, rng.randbytes(64)),
        field(1, field(1, 1) + field(2, rng.randbytes(32))) + field(2, rng.randbytes(64)),
        _claim_of_another_session(rng),
    )  # fmt: skip
    parts = rng.choice(
        (
            (framed(rng.randbytes(32)), framed(rng.randbytes(200))),
            (framed(b""),),
            (framed(rng.randbytes(rng.randrange(1, 31))),),
            (framed(bytes(32)),),
            (b"\xff\xff" + rng.randbytes(30),),
            (b"claim:" + rng.choice(lies),),
            (b"claim:" + rng.choice(lies),),
        )
    )
    return Input(number, "lies" if parts[0][:6] == b"claim:" else "frames", "handshake", parts)


def _in_muxing(number: int, rng: random.Random, protocols: Sequence[str]) -> Input:
    then = rng.choice((YAMUX, "/mplex/6.7.0"))
    return Input(number, "negotiation", "muxing", _in_parts(rng, _negotiation(rng, then)))


def _in_yamux(number: int, rng: random.Random, protocols: Sequence[str]) -> Input:
    """Frames that are mostly sound, but in the wrong place; or nothing like frames."""
    if rng.random() < 0.2:
        return Input(number, "garbage", "yamux", (rng.randbytes(rng.choice((1, 11, 12, 300))),))
    kind = rng.choice(_FRAMES)
    return Input(number, kind, "yamux", tuple(_frames(kind, rng)))


_FRAMES = (
    "any header",
    "no stream",
    "twice",
    "wide window",
    "go away",
    "endless",
    "overrun",
    "pongs",
)


def _frames(kind: str, rng: random.Random) -> Sequence[bytes]:
    stream = rng.choice((0, 1, 2, 3, 1001, 0xFFFFFFFF))
    match kind:
        case "any header":
            length = rng.choice((0, 1, 12, 1 << 16, 1 << 24, (1 << 24) + 1, 0xFFFFFFFF))
            version, kinds = rng.choice((0, 0, 1, 255)), rng.randrange(6)
            return [struct.pack("!BBHII", version, kinds, rng.getrandbits(16), stream, length)]
        case "no stream":
            return [frame(rng.randrange(2), flags, stream ^ 2, 0) for flags in (0, 2, 4, 8)]
        case "twice":
            return [frame(1, 1, 2001, 0)] * 3 + [frame(0, 1, 2001, 2, b"hi"), frame(1, 8, 2001, 0)]
        case "wide window":
            return [frame(1, 1, 3001, 0xFFFFFFFF)] + [frame(1, 0, 3001, 0xFFFFFFFF)] * 5
        case "go away":
            return [frame(3, 0, 0, rng.choice((0, 1, 2, 77, 0xFFFFFFFF)))]
        case "endless":  # announced, and never sent
            return [frame(0, 1, 4001, rng.choice((1 << 16, 1 << 24))), rng.randbytes(100)]
        case "overrun":
            body = rng.randbytes(60_000)
            return [frame(1, 1, 5001, 0)] + [frame(0, 0, 5001, len(body), body)] * 10
        case _:
            return [frame(2, rng.choice((0, 2, 3)), 0, n) for n in range(20)]


_LAYERS: tuple[tuple[Maker, int], ...] = (
    (_on_stream, 600), (_silent_stream, 20), (_unknown_protocol, 20), (_as_answer, 30),
    (_on_tcp, 110), (_in_handshake, 60), (_in_muxing, 30), (_in_yamux, 130),
)  # fmt: skip
