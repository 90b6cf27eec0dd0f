"""A node on the stock library, with what it offers by default: what the campaign has to kill."""

import contextlib
import secrets
from functools import partial

import trio
from libp2p import new_host
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol
from libp2p.identity_utils import create_identity_from_seed
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from hostile.reporting import ECHO, TOPIC, reporting


async def echo(stream: INetStream) -> None:
    with contextlib.suppress(StreamError):  # what the library does by itself is under test
        while data := await stream.read(65536):
            await stream.write(data)
    with contextlib.suppress(StreamError):
        await stream.close()


async def dial(host: IHost, address: str) -> None:
    # its caller has to expect anything; what is under test is what it does beside that
    with contextlib.suppress(Exception):
        await host.connect(info_from_p2p_addr(Multiaddr(address)))


async def main() -> None:
    host = new_host(create_identity_from_seed(secrets.token_bytes(32)))
    host.set_stream_handler(TProtocol(ECHO), echo)
    directory = KadDHT(host, DHTMode.SERVER)
    gossip = GossipSub([TProtocol("/meshsub/1.1.0")], 6, 4, 12, heartbeat_interval=1)
    pubsub = Pubsub(host, gossip, strict_signing=True)
    async with (
        host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]),
        background_trio_service(directory),
        background_trio_service(pubsub),
        background_trio_service(gossip),
    ):
        await pubsub.wait_until_ready()
        await pubsub.subscribe(TOPIC)
        await reporting([str(address) for address in host.get_addrs()], partial(dial, host))


if __name__ == "__main__":
    trio.run(main)
