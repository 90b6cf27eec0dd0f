"""``kwaai.toml`` and ``KWAAI_*`` to frozen settings: each value checked, and its source known."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from fractions import Fraction
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from kwaai_core.errors import ConfigError
from kwaai_core.types import MANY, RoleName

S = TypeVar("S")

Count = Annotated[int, "of anything but bytes"]
"""The type of a setting that is a whole number and no size, where an ``int`` may be ``"2GiB"``."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The table ``[server]``: where the API listens, and its limits.

    ``hosts`` are names by which clients may call the node, besides the addresses that they reach.
    """

    host: str = "127.0.0.1"
    port: Count = 8000
    hosts: tuple[str, ...] = ()
    certfile: str = ""
    keyfile: str = ""
    connections: Count = 256
    max_body: int = 1 << 20
    max_messages: Count = 2048
    body_timeout: float = 30.0
    ping_seconds: float = 5.0
    grace_seconds: float = 10.0

    def __post_init__(self) -> None:
        if not (self.loopback or _is_address(self.host)):
            raise ValueError(f"host = “{self.host}”: must be an address, or localhost")
        for name in self.hosts:
            if not (_HOST_NAME.fullmatch(name) or _is_address(name)):
                raise ValueError(f"hosts: “{name}” must be a name or an address, without a port")
        if bool(self.certfile) != bool(self.keyfile):
            raise ValueError("certfile and keyfile: one does nothing without the other")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port = {self.port}: must be 0 to 65535")
        for key in ("connections", "max_body", "max_messages", "body_timeout", "ping_seconds"):
            if not getattr(self, key) > 0:  # which a NaN is not either
                raise ValueError(f"{key} = {getattr(self, key)}: must be more than 0")
        if not self.grace_seconds >= 0:
            raise ValueError(f"grace_seconds = {self.grace_seconds}: must not be less than 0")

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the port."""
        return self.host == "localhost" or (
            _is_address(self.host) and ip_address(self.host).is_loopback
        )


def _is_address(host: str) -> bool:
    with suppress(ValueError):
        return bool(ip_address(host))
    return False


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """The table ``[chat]``: ``model`` is what `kwaai chat` talks to; empty is the first."""

    model: str = ""


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The table ``[log]``."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


@dataclass(frozen=True, slots=True)
class PeersSettings:
    """The table ``[peers]``: with whom this node deals besides the members of its groups.

    ``allow`` and ``deny`` are peer ids: dealt with in spite of no common group, and never.
    """

    open_to: Literal["members", "anyone"] = "members"
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for peer in (*self.allow, *self.deny):
            if not PEER_ID.fullmatch(peer):
                raise ValueError(f"{peer!r} is no peer id: it must be like 12D3KooW…, in full")


CORE_TABLES: Mapping[str, type[Any]] = {
    "server": ServerSettings,
    "chat": ChatSettings,
    "log": LogSettings,
    "peers": PeersSettings,
}
RESERVED = frozenset({*CORE_TABLES, "lobes", "roles"})
"""What stands at the top of ``kwaai.toml`` and belongs to no lobe."""

_HOST_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.IGNORECASE | re.ASCII)
PEER_ID = re.compile(r"12D3KooW[1-9A-HJ-NP-Za-km-z]{44}")
"""What the peer id of an Ed25519 key looks like."""

_VARIABLES = frozenset(f"KWAAI_{name}" for name in ("CONFIG", "LOBES", "STATE", "STRICT"))
_SINGLE = tuple(role.value for role in RoleName if role not in MANY)
_WORDS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(i)?)?B?\s*", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """``"2GiB"`` and the like in bytes; K, M, G, T are powers of 1000, Ki, Mi, … of 1024."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is not a size: write it like 512MiB or 2GiB")
    power = " KMGT".index((match[2] or " ").upper())
    return int(Fraction(match[1]) * (1024 if match[3] else 1000) ** power)


def default_state() -> Path:
    """Where a node keeps what it must not lose: ``KWAAI_STATE``, or the platform's place."""
    import platformdirs

    return Path(os.environ.get("KWAAI_STATE") or platformdirs.user_state_path("kwaai"))


def default_file() -> Path:
    """The configuration file: ``KWAAI_CONFIG``, or the platform's place. It need not exist."""
    import platformdirs

    return Path(
        os.environ.get("KWAAI_CONFIG") or platformdirs.user_config_path("kwaai") / "kwaai.toml"
    )


@dataclass(frozen=True, slots=True)
class Config:
    """What was configured: one file, the environment over it, and flags over both.

    ``flags`` maps ``table.key`` to what was given on the command line.
    """

    file: Path
    state: Path
    document: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, Any] = field(default_factory=dict)

    @property
    def server(self) -> ServerSettings:
        return self.table("server", ServerSettings)

    @property
    def log(self) -> LogSettings:
        return self.table("log", LogSettings)

    @property
    def lobes(self) -> tuple[str, ...] | None:
        """The complete set of lobes, or None for all that are installed."""
        return self.sourced_lobes()[0]

    def sourced_lobes(self) -> tuple[tuple[str, ...] | None, str]:
        """:attr:`lobes`, and where that comes from."""
        return self._given("", "lobes", tuple[str, ...], self.document) or (None, "default")

    @property
    def roles(self) -> Mapping[str, str]:
        """Which lobe fills a single role, where the user chose."""
        chosen = {}
        for role, name in _as_table(self.document.get("roles", {}), "roles", self.file).items():
            if role not in _SINGLE:
                raise ConfigError(f"{self.file}: [roles] {role}: {_nearest(role, _SINGLE, 'role')}")
            chosen[role] = _convert(name, str, f"[roles] {role}", self.file)
        return chosen

    def table(self, name: str, kind: type[S]) -> S:
        """A table as its settings dataclass, whose ``__post_init__`` may refuse with ValueError.

        Errors: :class:`ConfigError`.
        """
        found = self.sourced(name, kind)
        try:
            return kind(**{key: value for key, (value, _) in found.items()})
        except ValueError as error:
            sources = sorted({source for _, source in found.values()} - {"default"})
            raise ConfigError(f"{', '.join(sources)}: [{name}] {error}") from None

    def sourced(self, name: str, kind: type[Any]) -> dict[str, tuple[Any, str]]:
        """Every key of a table with its value and where that comes from."""
        given = _as_table(self.document.get(name, {}), name, self.file)
        hints, found = get_type_hints(kind, include_extras=True), dict[str, tuple[Any, str]]()
        keys, defaults = [f.name for f in fields(kind)], kind()

        def take(key: str) -> None:
            if key not in keys:
                raise ConfigError(f"{self.file}: [{name}] {key}: {_nearest(key, keys, 'key')}")
            default = (getattr(defaults, key), "default")
            found[key] = self._given(name, key, hints[key], given) or default

        every(*(partial(take, key) for key in dict.fromkeys([*keys, *given])))
        return found

    def _given(
        self, table: str, key: str, kind: Any, document: Mapping[str, Any]
    ) -> tuple[Any, str] | None:
        """A value and where it comes from, or None where only the default is left."""
        place, variable = f"[{table}] {key}" if table else key, _variable(table, key)
        flag, text = self.flags.get(f"{table}.{key}".strip(".")), self.environment.get(variable)
        for value, source in ((flag, "the command line"), (text, variable)):
            if value is not None:
                read = _from_text(value, kind) if isinstance(value, str) else value
                return _convert(read, kind, place, source), source
        source = str(self.file)
        return (_convert(document[key], kind, place, source), source) if key in document else None

    def check(self, tables: Mapping[str, type[Any]], broken: Collection[str] = ()) -> list[str]:
        """Check everything, given the tables of the installed lobes; returns warnings.

        The tables of ``broken`` lobes may be there, and cannot be checked.

        Errors: :class:`ConfigError` with all that cannot be used, a line each.
        """
        known: Mapping[str, type[Any]] = {**CORE_TABLES, **tables}
        warnings = [*self._strange_variables(known, broken)]

        def look_at(name: str) -> None:
            place, there = f"{self.file}: {name}", [*known, *RESERVED]
            if not isinstance(self.document[name], Mapping):
                raise ConfigError(f"{place}: {_nearest(name, ['lobes'], 'key')}")
            if difflib.get_close_matches(name, there, 1, 0.75):
                raise ConfigError(f"{place}: {_nearest(name, there, 'table')}")
            warnings.append(f"{self.file}: [{name}] belongs to no installed lobe and does nothing")

        strange = self.document.keys() - known.keys() - RESERVED - {*broken}
        every(
            *(partial(self.table, name, kind) for name, kind in known.items()),
            *(lambda: self.lobes, lambda: self.roles),
            *(partial(look_at, name) for name in sorted(strange)),
        )
        return sorted(warnings)

    def _strange_variables(
        self, tables: Mapping[str, type[Any]], broken: Collection[str]
    ) -> Iterator[str]:
        known = {_variable(name, f.name) for name, kind in tables.items() for f in fields(kind)}
        theirs = tuple(_variable(name, "") for name in broken)
        for name in self.environment.keys() - known - _VARIABLES:
            if name.startswith(theirs):
                continue
            near = difflib.get_close_matches(name, [*known, *_VARIABLES], 1, 0.8)
            hint = f"; did you mean {near[0]}?" if near else ", and does nothing"
            yield f"{name} is no setting of core or of an installed lobe{hint}"


def every(*steps: Callable[[], object]) -> None:
    """Take all steps, then raise one :class:`ConfigError` for those that failed, a line each."""
    failed = dict[str, None]()  # each line once
    for step in steps:
        try:
            step()
        except ConfigError as error:
            failed |= dict.fromkeys(error.message.splitlines())
    if failed:
        raise ConfigError("\n".join(failed))


def _variable(table: str, key: str) -> str:
    return "_".join(("KWAAI", table, key)[:: 1 if table else 2]).upper().replace("-", "_")


def load_config(flags: Mapping[str, Any] | None = None, *, state: Path | None = None) -> Config:
    """Read the file (a missing one is empty) and the environment; raises :class:`ConfigError`."""
    file = default_file()
    try:
        document = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        if os.environ.get("KWAAI_CONFIG"):
            raise ConfigError(
                f"KWAAI_CONFIG names {file}, which does not exist: write it, or unset the variable"
            ) from None
        document = {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from None
    environment = {key: value for key, value in os.environ.items() if key.startswith("KWAAI_")}
    return Config(file, state or default_state(), document, environment, flags or {})


def _as_table(value: Any, name: str, file: Path) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{file}: {name} must be a table: [{name}]")
    return value


def _nearest(name: str, valid: Collection[str], what: str) -> str:
    return f"there is no such {what}; {nearest(name, valid)}"


def nearest(name: str, valid: Collection[str]) -> str:
    """What somebody may have meant, or all that there is, to end an error with."""
    near = difflib.get_close_matches(name, valid, 1, 0.5)
    return f"did you mean “{near[0]}”?" if near else f"there are: {', '.join(valid) or 'none'}"


def _from_text(text: str, kind: Any) -> Any:
    """A text as TOML would have it; one that does not fit stays, and is refused as a value is."""
    kind = _given_kind(kind)
    if kind is bool:
        return _WORDS.get(text.lower(), text)
    if kind in (int, float, Count):
        with suppress(ValueError):
            return float(text) if kind is float else int(text)
    if get_origin(kind) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _given_kind(kind: Any) -> Any:
    """The type of a value that is given, where it may also be None."""
    if get_origin(kind) in (Union, types.UnionType):
        return next(a for a in get_args(kind) if a is not type(None))
    return kind


def _convert(value: Any, kind: Any, place: str, source: object) -> Any:
    """A value of TOML as the type that a setting has, or a :class:`ConfigError`."""
    kind = _given_kind(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value in arguments:
            return value
        allowed = ", ".join(map(str, arguments))
        raise ConfigError(f"{source}: {place} = {value!r}: must be one of {allowed}")
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{source}: {place} = {value!r}: must be a list")
        return tuple(_convert(item, arguments[0], place, source) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, str) and _SIZE.fullmatch(value):
        return parse_size(value)
    plain = int if kind == Count else kind
    if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
        whole = "a whole number"
        words = {int: f"{whole}, or a size like 512MiB", Count: whole, float: "a number"}
        words |= {str: "a text", bool: "true or false"}
        raise ConfigError(f"{source}: {place} = {value!r}: must be {words.get(kind, kind)}")
    return value
