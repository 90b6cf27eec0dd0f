"""The local network: tell it of this node, and hear of others there, by multicast DNS (RFC 6762).

The service is ``_kwaai._udp.local.``, and each address a TXT entry ``dnsaddr=…`` as in libp2p's
specification. What comes is what anybody on that network says: it is bounded, and who is there is
proved by the handshake.
"""

from __future__ import annotations

import logging
import random
import re
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import trio
from zeroconf import (
    Error,
    InterfaceChoice,
    IPVersion,
    ServiceBrowser,
    ServiceInfo,
    ServiceListener,
    Zeroconf,
)

from kwaai_lobe_libp2p.statements import plausible

SERVICE = "_kwaai._udp.local."
WAITING = 1024
"""How many names that were heard may wait to be asked about."""

ANSWER = 3.0
AGAIN = 600.0
"""After how many seconds a name is asked about again; until then once is enough."""

KNOWN = 1024
"""Of how many names it is known that they were asked about."""

AT_ONCE = 8
"""How many names are asked about, and the peers behind them dialled, at the same time."""

Told = tuple[str, tuple[str, ...]]
"""A peer, and where it says that it is."""

Ask = Callable[[str], Told | None]
Found = Callable[[str, Sequence[str]], Awaitable[None]]

_PLACE = re.compile(r"/ip4/([0-9.]{7,15})/tcp/([0-9]{1,5})/")
_log = logging.getLogger(__name__)


class Names:
    """Names that were heard and wait to be asked about.

    Anybody can make names up, and none says who made it. So each has the same chance: the next is
    drawn from all that wait, and so is the one that makes room where too many do. Which names were
    asked about is forgotten in their order, at the worst to be asked about again.
    """

    def __init__(self) -> None:
        self._waiting: list[str] = []
        self._asked: OrderedDict[str, float] = OrderedDict()
        self._lot = trio.lowlevel.ParkingLot()

    def put(self, name: str) -> None:
        if name in self._waiting or self._asked.get(name, 0.0) > trio.current_time():
            return
        self._waiting.append(name)
        if len(self._waiting) > WAITING:
            self._draw()
        self._lot.unpark()

    async def take(self) -> str:
        """The next to be asked about."""
        while not self._waiting:
            await self._lot.park()
        name = self._draw()
        self._asked[name] = trio.current_time() + AGAIN
        self._asked.move_to_end(name)
        if len(self._asked) > KNOWN:
            self._asked.popitem(last=False)
        return name

    def _draw(self) -> str:
        return self._waiting.pop(random.randrange(len(self._waiting)))


class _Listener(ServiceListener):
    """Runs in zeroconf's thread; hands names over to the loop."""

    def __init__(self, token: trio.lowlevel.TrioToken, names: Names) -> None:
        self._token = token
        self._names = names

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        try:
            self._token.run_sync_soon(self._names.put, name)
        except trio.RunFinishedError:
            pass  # the node has closed

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """Who is gone is noticed where it matters, when it is dialled."""


def entries(peer: str, addresses: Sequence[str]) -> Mapping[str | bytes, str | bytes | None]:
    """The TXT record of a node. A TXT entry has at most 255 bytes."""
    told = [one for one in plausible(peer, list(addresses)) if "/p2p-circuit" not in one]
    fit = [one for one in told if len(f"dnsaddr10={one}") <= 255][:10]
    return {f"dnsaddr{number or ''}": one for number, one in enumerate(fit)}


def heard(properties: Mapping[bytes, bytes | None]) -> Told | None:
    """Who makes itself known by a TXT record, and where it says that it is; None for nobody."""
    told = [
        value.decode("ascii", "replace")
        for key, value in list(properties.items())[:32]
        if key.startswith(b"dnsaddr") and value is not None
    ]
    peer = told[0].rpartition("/p2p/")[2] if told else ""
    addresses = plausible(peer, list(told)) if peer else ()
    return (peer, addresses) if addresses else None


async def run(
    peer: str,
    addresses: Sequence[str],
    found: Found,
    *,
    interfaces: Sequence[str] | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Make this node known, and call ``found`` for each other, until it is cancelled.

    ``interfaces``: numbers of the network interfaces to use, None for all. The library waits and
    blocks, so it has threads of its own. Errors: OSError where multicast is impossible.
    """
    names = Names()
    listener = _Listener(trio.lowlevel.current_trio_token(), names)
    host, port = _place(addresses)
    info = ServiceInfo(
        SERVICE,
        f"{secrets.token_hex(16)}.{SERVICE}",
        parsed_addresses=[host],
        port=port,
        properties=dict(entries(peer, addresses)),
        server=f"{secrets.token_hex(16)}.local.",
    )
    zeroconf = await trio.to_thread.run_sync(_open, interfaces)
    try:
        await trio.to_thread.run_sync(_begin, zeroconf, info, listener)
        task_status.started()
        await look_up(names, partial(_ask, zeroconf), peer, found)
    finally:
        with trio.CancelScope(shield=True):  # brief: it says goodbye, and joins its threads
            await trio.to_thread.run_sync(zeroconf.close)


def _open(interfaces: Sequence[str] | None) -> Zeroconf:
    use = InterfaceChoice.All if interfaces is None else list(interfaces)
    with _as_os_error():
        return Zeroconf(use, ip_version=IPVersion.V4Only)


def _begin(zeroconf: Zeroconf, info: ServiceInfo, listener: _Listener) -> None:
    with _as_os_error():
        if info.properties:
            zeroconf.register_service(info)
        ServiceBrowser(zeroconf, SERVICE, listener=listener)


@contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except (Error, RuntimeError) as error:  # of a machine without a network, or two of one name
        raise OSError(f"multicast DNS fails: {error!r}") from error


async def look_up(names: Names, ask: Ask, me: str, found: Found) -> None:
    """Ask about names, in threads, and tell of who is behind them, until it is cancelled."""

    async def work() -> None:
        while True:
            other = await trio.to_thread.run_sync(ask, await names.take())
            if other is not None and other[0] != me:
                # all who hear of a new node at once do not dial it at once
                await trio.sleep(random.uniform(0, 0.5))
                await found(*other)

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(work)


def _ask(zeroconf: Zeroconf, name: str) -> Told | None:
    try:
        info = zeroconf.get_service_info(SERVICE, name, timeout=int(ANSWER * 1000))
        return heard(info.properties) if info is not None else None
    except Exception:  # noqa: BLE001 - the library reads what anybody on the network says
        _log.info("what %r says on the local network cannot be read", name, exc_info=True)
        return None


def _place(addresses: Sequence[str]) -> tuple[str, int]:
    """A service has a host and a port; who looks for a node takes those of the TXT record."""
    found = (_PLACE.match(address) for address in addresses)
    return next(((one[1], int(one[2])) for one in found if one), ("127.0.0.1", 1))
