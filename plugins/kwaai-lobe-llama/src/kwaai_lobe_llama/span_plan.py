"""What a worker of spans is given, at its start and later."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from kwaai_core import Span
from kwaai_lobe_llama.plan import Plan


@dataclass(frozen=True, slots=True)
class UnitFile:
    """A slice on disk, and the blocks in it."""

    span: Span
    path: str


@dataclass(frozen=True, slots=True)
class HoldPlan:
    """What to hold, and how: ``plan`` is for every engine but its ``path``, and its ``context``
    is that of the head too from now on, so that answers have room where they begin."""

    plan: Plan
    units: tuple[UnitFile, ...] = ()

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> HoldPlan:
        fields = json.loads(text)
        units = (UnitFile(Span(**unit["span"]), unit["path"]) for unit in fields["units"])
        return cls(Plan(**fields["plan"]), tuple(units))


@dataclass(frozen=True, slots=True)
class SpanPlan:
    """``plan`` is for every engine but its ``path``, which is the whole model's, until units are
    held that have one of their own. ``per_peer`` sessions of one peer are served, and all journals
    together have at most ``journal`` bytes."""

    plan: Plan
    width: int
    per_peer: int
    journal: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SpanPlan:
        fields = json.loads(text)
        return cls(**fields | {"plan": Plan(**fields["plan"])})


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """How to speak over a socket: to whom, as host or as owner of the sessions, and the
    certificates, none where another process of this node carries the bytes. Of a host: it replays
    up to ``replay_rows`` lone rows in one call, is ``rtt`` seconds away, and says what a lone row
    takes through each of its units: ``lone`` are their first blocks, their ends, and seconds."""

    peer: str
    hosting: bool
    server: bool
    certificate: str = ""
    key: str = ""
    trusted: str = ""
    replay_rows: int = 1
    rtt: float = 0.0
    lone: tuple[tuple[int, int, float], ...] = ()

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> LinkPlan:
        return cls(**json.loads(text))
