"""Hosts that are far from one another: network namespaces whose packets take their time."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.system.hosts import ip
from tests.system.hosts import missing as no_namespaces

_RELAY = Path(__file__).with_name("relay.py")
_NETWORK = "10.79.0"


@dataclass(frozen=True)
class FarHost:
    """A network namespace, and the address at which the others reach it."""

    name: str
    address: str


@functools.cache
def missing() -> str | None:
    """Why there can be no such hosts here, None where there can."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"no TUN devices can be made here: {error}"
    return no_namespaces()


@contextmanager
def far_hosts(names: Sequence[str], seconds: float) -> Iterator[list[FarHost]]:
    """Hosts between which each packet takes so long; all of it is gone when the context ends.

    Errors: ``OSError`` where there is no right to make them, see :func:`missing`.
    """
    with ExitStack() as stack:
        prefix = f"kwaai{os.getpid()}"
        hosts = [
            FarHost(f"{prefix}{name}", f"{_NETWORK}.{number + 1}")
            for number, name in enumerate(names)
        ]
        between = f"{prefix}between"
        for inside in (between, *(host.name for host in hosts)):
            ip("netns", "add", inside)
            stack.callback(ip, "netns", "del", inside)
            ip("-n", inside, "link", "set", "lo", "up")
        stack.enter_context(_relayed(between, hosts, seconds))
        for number, host in enumerate(hosts):
            device = f"far{number}"
            ip("-n", between, "link", "set", device, "netns", host.name)
            ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", device)
            ip("-n", host.name, "link", "set", device, "up")
        yield hosts


@contextmanager
def _relayed(between: str, hosts: Sequence[FarHost], seconds: float) -> Iterator[None]:
    addresses = [host.address for host in hosts]
    relay = subprocess.Popen(
        ["ip", "netns", "exec", between, sys.executable, _RELAY, str(seconds), *addresses],
        stdout=subprocess.PIPE,
    )
    try:
        if relay.stdout is None or relay.stdout.readline() != b"ready\n":
            raise OSError("the relay did not start")
        yield
    finally:
        relay.kill()
        relay.communicate()
