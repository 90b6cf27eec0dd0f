"""``python unused_cases.py CASE``: what the parts of the library do that the lobe leaves unused.

Ends with 0 where the stock library behaves as the lobe does; then that part might be used.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p import new_host
from libp2p.abc import IHost
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.ping import PingService
from libp2p.network.config import ConnectionConfig
from libp2p.peer.peerinfo import PeerInfo, info_from_p2p_addr
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from multiaddr import Multiaddr

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


@asynccontextmanager
async def host(number: int, listen: str = LOOPBACK, **how: Any) -> AsyncIterator[IHost]:
    made = new_host(key_pair=create_new_key_pair(bytes([number]) * 32), **how)
    async with made.run([Multiaddr(listen)]):
        yield made


def info(of: IHost) -> PeerInfo:
    return info_from_p2p_addr(of.get_addrs()[0])


async def an_error_in_a_handler_ends_its_own_stream() -> None:
    async def fail(stream: object) -> None:
        raise ValueError("on purpose")

    async with host(1) as one, host(2) as two:
        two.set_stream_handler(TProtocol("/fail/1"), fail)
        await one.connect(info(two))
        await one.new_stream(two.get_id(), [TProtocol("/fail/1")])
        await trio.sleep(0.5)
        await PingService(one).ping(two.get_id(), 1)


async def connections_do_not_use_up_a_node() -> None:
    few = ConnectionConfig(
        max_connections=10, high_watermark=10, low_watermark=0, min_connections=0
    )
    async with host(1, connection_config=few) as one:
        for number in range(2, 16):
            async with host(number) as other:
                with trio.fail_after(5):
                    await other.connect(info(one))
                    await PingService(other).ping(one.get_id(), 1)


async def plaintext_is_refused() -> None:
    keys = create_new_key_pair(bytes([2]) * 32)
    plain = {PLAINTEXT_PROTOCOL_ID: InsecureTransport(keys)}
    async with host(1) as one, host(2, sec_opt=plain) as two:
        with trio.move_on_after(5):
            try:
                await two.connect(info(one))
                await PingService(two).ping(one.get_id(), 1)
            except Exception:  # noqa: BLE001 - however it is refused
                return
            raise AssertionError("a plaintext connection was taken")


async def every_address_is_tried() -> None:
    async with host(1) as one, host(2) as two:
        there = info(two)
        stale = Multiaddr("/ip4/127.0.0.1/tcp/9")
        with trio.fail_after(10):
            await one.connect(PeerInfo(there.peer_id, [stale, *there.addrs]))


async def a_port_that_is_taken_is_an_error() -> None:
    async with host(1) as one:
        taken = str(one.get_transport_addrs()[0])
        try:
            async with host(2, taken):
                pass
        except Exception:  # noqa: BLE001 - however it is said
            return
        raise AssertionError("two hosts listen on one port")


async def an_address_of_another_machine_is_an_error() -> None:
    try:
        async with host(1, "/ip4/192.0.2.1/tcp/0"):
            pass
    except Exception:  # noqa: BLE001 - however it is said
        return
    raise AssertionError("nothing says that nobody listens")


CASES: Sequence[Callable[[], Awaitable[None]]] = (
    a_port_that_is_taken_is_an_error,
    an_address_of_another_machine_is_an_error,
    an_error_in_a_handler_ends_its_own_stream,
    connections_do_not_use_up_a_node,
    every_address_is_tried,
    plaintext_is_refused,
)

if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    trio.run({case.__name__: case for case in CASES}[sys.argv[1]])
