"""The door of the node: who may come in, and how much they may bring.

Once there is an API key, whoever comes by the port needs one, whatever is asked for: what is behind
a path is decided later, and a path that is forgotten is closed. Only ``/health`` is open.

A page in a browser can send requests to 127.0.0.1, and by rebinding a name of its own to that
address it can read the answers (CVE-2024-28224). So both ``Host`` and ``Origin`` have to name this
machine, and everything is decided on the ASGI scope: a URL put together from the headers is in the
hands of whoever sent them (CVE-2026-48710).
"""

import re
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import trio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kwaai_core.config import ServerSettings
from kwaai_core.errors import (
    HostNotAllowed,
    InvalidKey,
    RequestError,
    RequestTooLarge,
    RequestTooSlow,
)
from kwaai_core.http.keys import Keys
from kwaai_core.http.quotas import Quotas
from kwaai_core.http.replies import FAILED, error_reply, public

REQUEST_ID = "kwaai.request_id"
"""The key of the scope under which a request's id stands."""

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_AUTHORITY = re.compile(rb"([a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)
_ORIGIN = re.compile(rb"https?://(.*)", re.ASCII)
_BEARER = "in the header “Authorization: Bearer …”"
_LINGER = 1.0


def new_request_id() -> str:
    """A name under which the log and the client can speak of one request."""
    return f"req_{secrets.token_hex(12)}"


def request_id_header(request_id: str) -> tuple[bytes, bytes]:
    """The header that tells a client the request's id."""
    return (b"x-request-id", request_id.encode())


def reached(scope: Scope) -> str:
    """The address of this machine at which the client has reached it, empty on the Unix socket."""
    address, port = scope.get("server") or ("", None)
    return str(address).removeprefix("::ffff:") if port else ""


def allowed_hosts(*names: str) -> frozenset[str]:
    """What ``Host`` and ``Origin`` may say to a node that has these names and addresses."""
    lower = map(str.lower, names)
    return _LOOPBACK | {f"[{name}]" if ":" in name else name for name in lower}


class Guard:
    """Who may come in by the port: whom the headers Host and Origin, and a key, let in."""

    def __init__(self, settings: ServerSettings, keys: Keys) -> None:
        self._names = settings.hosts
        self._keys = keys
        self._quotas = Quotas()

    @contextmanager
    def admitted(self, scope: Scope) -> Iterator[None]:
        """One request, until the block is left.

        The address that the client has reached is one of the node's names: a name that somebody
        else has pointed to it is no address. Errors: :class:`HostNotAllowed`, :class:`InvalidKey`,
        :class:`Busy`.
        """
        hosts = allowed_hosts(reached(scope), *self._names)
        check_host(scope["headers"], hosts, scope["http_version"])
        if scope["path"] == "/health" or not self.needs_key():
            yield
            return
        with self._quotas.request(self._keys.find(_bearer(scope["headers"]))):
            yield

    def needs_key(self) -> bool:
        """Whether a request needs a key now, but for one of ``/health``."""
        return self._keys.needed()


class Door:
    """ASGI middleware, the outermost: checks, limits, a request id, and JSON for every failure.

    Without a ``guard`` everybody may come in, as on the node's own Unix socket. The app behind gets
    the body in one piece.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, guard: Guard | None) -> None:
        self._app = app
        self._settings = settings
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[REQUEST_ID] = new_request_id()
        await self._admit(scope, receive, _Marked(send, scope[REQUEST_ID]))

    async def _admit(self, scope: Scope, receive: Receive, send: "_Marked") -> None:
        try:
            with self._guard.admitted(scope) if self._guard else nullcontext():
                body = await _read_body(scope["headers"], receive, self._settings)
                if body is not None:
                    await self._pass(scope, _replayed(body, receive), send)
        except RequestError as error:
            await _turn_away(scope, receive, send, error)

    async def _pass(self, scope: Scope, receive: Receive, send: "_Marked") -> None:
        try:
            await self._app(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - the last place that can make a bug an answer
            shown = public(error, scope[REQUEST_ID])
            if not send.started:
                await error_reply(shown)(scope, receive, send)


def _bearer(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """The key in the header Authorization. Errors: :class:`InvalidKey` where there is not one."""
    given = [value for name, value in headers if name == b"authorization"]
    if not given:
        raise InvalidKey(
            f"this node needs an API key, {_BEARER}: whoever runs it makes one by kwaai keys create"
        )
    if len(given) > 1:
        raise InvalidKey("the header Authorization is here more than once: it may be given once")
    scheme, _, key = given[0].decode("latin-1").partition(" ")
    if scheme.lower() != "bearer":
        raise InvalidKey(f"the header Authorization has no “Bearer”: the API key goes {_BEARER}")
    if not key.strip():
        raise InvalidKey(f"the header Authorization has no key in it: the API key goes {_BEARER}")
    return key.strip()


def check_host(
    headers: Sequence[tuple[bytes, bytes]], hosts: frozenset[str], http_version: str
) -> None:
    """Refuse a request whose Host, or Origin where there is one, does not name this machine.

    Errors:
      HostNotAllowed: it does not, or it is missing (before HTTP/1.1 it may be), or given twice.
    """
    named = [value for name, value in headers if name == b"host"]
    origins = [value for name, value in headers if name == b"origin"]
    if len(named) > 1 or len(origins) > 1:
        raise HostNotAllowed("the headers Host and Origin may be given only once")
    if not named and http_version != "1.0":
        raise HostNotAllowed("the request has no Host header")
    for value in named:
        _check_authority("Host", value, value, hosts)
    for value in origins:
        match = _ORIGIN.fullmatch(value.lower())
        _check_authority("Origin", value, match[1] if match else b"", hosts)


def _check_authority(header: str, value: bytes, authority: bytes, hosts: frozenset[str]) -> None:
    match = _AUTHORITY.fullmatch(authority.lower())
    if match is None or match[1].decode("ascii") not in hosts:
        shown = value[:80].decode("latin-1")
        raise HostNotAllowed(
            f"{header} “{shown}” is not allowed: this node answers to {', '.join(sorted(hosts))}"
        )


async def _read_body(
    headers: Sequence[tuple[bytes, bytes]], receive: Receive, settings: ServerSettings
) -> bytes | None:
    """The whole body, or None if the client left."""
    size = next((int(value) for name, value in headers if name == b"content-length"), 0)
    body, more = bytearray(), True
    with trio.move_on_after(settings.body_timeout):
        while max(size, len(body)) <= settings.max_body:
            if not more:
                return bytes(body)
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
        raise RequestTooLarge(
            f"the body is over the limit of {settings.max_body} bytes ([server] max_body in "
            "kwaai.toml)"
        )
    raise RequestTooSlow(f"the body did not arrive within {settings.body_timeout:g} seconds")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body in one message, then whatever comes after it."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay


async def _turn_away(scope: Scope, receive: Receive, send: Send, error: RequestError) -> None:
    """Answer a request whose body is not wanted, and close.

    What the client still sends has to be taken all the while: a connection that closes on unread
    bytes is reset, and the client never sees the answer; and hypercorn would wait for a reader.
    """
    reply = error_reply(error)
    reply.headers["connection"] = "close"
    scope[FAILED] = reply.code
    complete = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_discard, receive, complete)
        await send(
            {
                "type": "http.response.start",
                "status": reply.status_code,
                "headers": reply.raw_headers,
            }
        )
        await send({"type": "http.response.body", "body": reply.body, "more_body": True})
        with trio.move_on_after(_LINGER):
            await complete.wait()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive, complete: trio.Event) -> None:
    while (message := await receive())["type"] == "http.request":
        if not message.get("more_body", False):
            complete.set()
    complete.set()


class _Marked:
    """A ``send`` that puts the request's id on the answer, and knows whether one has begun."""

    def __init__(self, send: Callable[[Message], Awaitable[None]], request_id: str) -> None:
        self._send = send
        self._header = request_id_header(request_id)
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            message["headers"] = [*message.get("headers", ()), self._header]
        await self._send(message)
