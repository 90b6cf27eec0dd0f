"""Carry IP packets between hosts, each after a delay: what netem does, where the kernel has none.

``python relay.py SECONDS ADDRESS...`` makes a TUN device for each host, ``far0``, ``far1``, …,
in the network namespace in which it runs; whoever started it moves each device to its host. It says
"ready" once they are there. A packet to one of the addresses leaves through the device of that
host, so many seconds after it came; any other is dropped, as a router does with what it has no
route for, and so is what comes while too much is on its way. It needs nothing but Linux.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_PACKET = 1 << 16
_ON_THE_WAY = 1 << 15
"""Packets: at 1,500 bytes each, what a line of 10 Gbit/s holds for 40 ms."""


def _tun(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


def _destination(packet: bytes) -> bytes:
    """Nothing where it is not IPv4."""
    return packet[16:20] if packet and packet[0] >> 4 == 4 else b""


def relay(seconds: float, addresses: Sequence[str]) -> None:
    """Until it is killed."""
    devices = {
        ipaddress.ip_address(address).packed: _tun(f"far{number}")
        for number, address in enumerate(addresses)
    }
    on_the_way: deque[tuple[float, int, bytes]] = deque()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        now = time.monotonic()
        while on_the_way and on_the_way[0][0] <= now:
            _, device, packet = on_the_way.popleft()
            with suppress(OSError):  # its host is down, or takes no more: the packet is lost
                os.write(device, packet)
        patience = max(0.0, on_the_way[0][0] - now) if on_the_way else None
        ready, _, _ = select.select(devices.values(), [], [], patience)
        for source in ready:
            with suppress(OSError):  # its host is down
                packet = os.read(source, _PACKET)
                target = devices.get(_destination(packet))
                if target is not None and len(on_the_way) < _ON_THE_WAY:
                    on_the_way.append((time.monotonic() + seconds, target, packet))


if __name__ == "__main__":
    relay(float(sys.argv[1]), sys.argv[2:])
