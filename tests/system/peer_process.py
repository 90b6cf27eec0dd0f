"""A node of the transport alone, in a process of its own, that does what it is told.

``python peer_process.py FOLDER``: prints its peer id and its addresses, then answers each line of
JSON, ``[verb, …]``, by one. It has the lobes identity and libp2p, and a door that is open.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import trio

from kwaai_core import KwaaiError, Transport
from kwaai_core.testing.fakes import FakeHost
from kwaai_lobe_identity import provide_identity
from kwaai_lobe_libp2p import provide_transport
from kwaai_lobe_libp2p.settings import Libp2pSettings

SETTINGS = {Libp2pSettings: Libp2pSettings(listen=("/ip4/127.0.0.1/tcp/0",))}


class OpenDoor:
    def allows(self, peer: str, protocol: str) -> bool:
        return True

    async def greet(self, peer: str) -> None:
        await trio.lowlevel.checkpoint()


async def obey(transport: Transport, words: list[Any]) -> Any:
    match words:
        case ["connect", addresses]:
            return await transport.connect(addresses)
        case ["links"]:
            return [link.peer for link in transport.links()]
        case ["publish", name, body]:
            return await transport.publish(name, body.encode(), seconds=600)
        case ["provide", key]:
            return await transport.provide(key, seconds=600)
        case ["lookup", peer, name]:
            found = await transport.lookup(peer, name, seconds=10)
            return None if found is None else [found.body.decode(), found.sequence]
        case ["providers", key]:
            return list(await transport.providers(key, seconds=10))
        case ["nearest", key, k]:
            return list(await transport.nearest(key, k, seconds=10))
    raise ValueError(f"what is {words}?")


async def run(folder: Path) -> None:
    async with (
        provide_identity().open(FakeHost(folder / "identity")) as identity,
        provide_transport().open(FakeHost(folder / "libp2p", SETTINGS, identity)) as transport,
    ):
        transport.guard(OpenDoor())
        say([identity.peer_id, list(transport.addresses)])
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            began = time.perf_counter()
            try:
                answer = await obey(transport, json.loads(line))
            except KwaaiError as error:
                say({"error": f"{type(error).__name__}: {error.message}"})
            else:
                say({"answer": answer, "seconds": time.perf_counter() - began})


def say(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    trio.run(run, Path(sys.argv[1]))
