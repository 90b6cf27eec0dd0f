"""Records honest traffic, for the campaign to mutate: ``python -m hostile.record``.

What both sides of every stream wrote while nodes on the stock library did what they are for is kept
in ``traffic.json``, by protocol; what kwaai's own protocols say is made up from their description.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections import defaultdict
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from libp2p import new_host
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol
from libp2p.host.ping import PingService
from libp2p.identity_utils import create_identity_from_seed
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.records.validator import Validator
from libp2p.relay.circuit_v2.config import RelayConfig, RelayRole
from libp2p.relay.circuit_v2.dcutr import DCUtRProtocol
from libp2p.relay.circuit_v2.protocol import PROTOCOL_ID as HOP
from libp2p.relay.circuit_v2.protocol import CircuitV2Protocol
from libp2p.relay.circuit_v2.resources import RelayLimits
from libp2p.relay.circuit_v2.transport import CircuitV2Transport
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from hostile.inputs import TRAFFIC, family
from hostile.reporting import ECHO, TOPIC

if TYPE_CHECKING:
    from libp2p.tools.anyio_service.api import ServiceAPI

_LIMIT, _EACH = 4096, 12
_said: dict[tuple[int, str, str], bytearray] = defaultdict(bytearray)


class Anything(Validator):
    """Takes any value."""

    def validate(self, key: str, value: bytes) -> None:
        pass

    def select(self, key: str, values: list[bytes]) -> int:
        return 0


class Node:
    """A host with everything switched on."""

    def __init__(self, number: int) -> None:
        self.host = new_host(create_identity_from_seed(bytes([number]) * 32))
        self.host.set_stream_handler(TProtocol(ECHO), self._echo)
        self.directory = KadDHT(self.host, DHTMode.SERVER)
        self.directory.register_validator("kwaai", Anything())
        gossip = GossipSub([TProtocol("/meshsub/1.1.0")], 2, 1, 3, heartbeat_interval=1)
        self.pubsub = Pubsub(self.host, gossip, strict_signing=True)
        limits = RelayLimits(duration=60, data=1 << 20, max_circuit_conns=4, max_reservations=4)
        self.circuit = CircuitV2Protocol(self.host, limits, allow_hop=True)
        self.punch = DCUtRProtocol(self.host)
        self.services: list[ServiceAPI] = [
            self.directory,
            self.pubsub,
            gossip,
            self.circuit,
            self.punch,
        ]

    async def _echo(self, stream: INetStream) -> None:
        await stream.write(await stream.read(4096))
        await stream.close()

    async def open(self, stack: AsyncExitStack) -> None:
        await stack.enter_async_context(self.host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]))
        for service in self.services:
            await stack.enter_async_context(background_trio_service(service))
        await self.pubsub.wait_until_ready()
        await self.pubsub.subscribe(TOPIC)

    def info(self) -> PeerInfo:
        return PeerInfo(self.host.get_id(), self.host.get_transport_addrs())


def listen() -> None:
    """Keep a copy of whatever is written to a stream."""
    write = NetStream.write

    async def recording(self: NetStream, data: bytes) -> None:
        side = "asked" if self.muxed_stream.is_initiator else "answered"  # type: ignore[attr-defined]
        if protocol := self.get_protocol():
            _said[id(self), str(protocol), side] += data
        _kept.append(self)
        await write(self, data)

    NetStream.write = recording  # type: ignore[method-assign]


_kept: list[NetStream] = []


async def ask(host: IHost, to: PeerInfo, protocol: str, said: bytes) -> None:
    stream = await host.new_stream(to.peer_id, [TProtocol(protocol)])
    await stream.write(said)
    await stream.read(4096)
    await stream.close()


async def converse(nodes: list[Node]) -> None:
    """What nodes are for, once each."""
    first, second, third = nodes
    for node in (second, third):
        await node.host.connect(first.info())
        await node.directory.add_peer(first.host.get_id())
    await first.directory.add_peer(second.host.get_id())
    await ask(second.host, first.info(), ECHO, (5).to_bytes(4, "big") + b"hello")
    await PingService(second.host).ping(first.host.get_id(), 2)
    await second.directory.put_value("/kwaai/some-key", b"some value")
    await third.directory.get_value("/kwaai/some-key")
    await second.directory.provide("/kwaai/other-key")
    await third.directory.find_providers("/kwaai/other-key")
    await third.directory.find_peer(second.host.get_id())
    for n in range(3):
        await second.pubsub.publish(TOPIC, b"news %d" % n)
    await trio.sleep(2.5)
    await through_relay(first, second, third)


async def through_relay(relay: Node, hidden: Node, caller: Node) -> None:
    config = RelayConfig(roles=RelayRole.HOP | RelayRole.STOP | RelayRole.CLIENT)
    transport = partial(CircuitV2Transport, config=config)
    async with trio.open_nursery() as nursery:
        reserving = await hidden.host.new_stream(relay.host.get_id(), [HOP])
        await transport(hidden.host, hidden.circuit).reserve(
            reserving, relay.host.get_id(), nursery
        )
        address = f"{relay.host.get_addrs()[0]}/p2p-circuit/p2p/{hidden.host.get_id()}"
        await transport(caller.host, caller.circuit).dial(Multiaddr(address))
        await caller.punch.initiate_hole_punch(hidden.host.get_id())
        nursery.cancel_scope.cancel()


def recorded() -> dict[str, dict[str, list[str]]]:
    """What was written, by protocol and side, a stream each; no two of one length."""
    found: dict[str, dict[str, dict[int, str]]] = defaultdict(lambda: defaultdict(dict))
    for (_, protocol, side), said in sorted(_said.items(), key=lambda item: item[0][1:]):
        known = found[family(protocol)][side]
        if len(said) <= _LIMIT and len(known) < _EACH:
            known[len(said)] = b64encode(said).decode()
    return {
        protocol: {side: list(known.values()) for side, known in sides.items()}
        for protocol, sides in sorted(found.items())
    }


async def main() -> None:
    listen()
    async with AsyncExitStack() as stack:
        nodes = [Node(number) for number in range(1, 4)]
        for node in nodes:
            await node.open(stack)
        with trio.move_on_after(60):
            await converse(nodes)
        found: dict[str, Any] = recorded()
    Path(TRAFFIC).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    trio.run(main)
