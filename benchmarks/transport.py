"""``python -m benchmarks.transport``: the transport between two processes on loopback.

Echoes on an open stream, bulk in both directions, connections one after the other and at once,
streams opened and closed, and what that leaves behind; echoes on a data channel.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE

import trio

from benchmarks import data_channel
from kwaai_core import Stream, StreamEnded, Transport
from kwaai_core.testing import FakeIdentity
from kwaai_core.testing.fakes import FakeHost
from kwaai_lobe_libp2p import provide_transport
from kwaai_lobe_libp2p.settings import Libp2pSettings

ECHO, SINK, LOAD = "/kwaai/echo/1", "/kwaai/sink/1", "/kwaai/load/1"
BULK, FRAME = 512 << 20, 1 << 20


class OpenDoor:
    """Lets everybody in."""

    def allows(self, peer: str, protocol: str) -> bool:
        return True

    async def greet(self, peer: str) -> None:
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def opened(folder: Path, name: str) -> AsyncIterator[Transport]:
    """A node on loopback that lets everybody in."""
    settings = Libp2pSettings(listen=("/ip4/127.0.0.1/tcp/0",), max_connections=4096)
    identity = FakeIdentity(f"benchmark {name}")
    host = FakeHost(folder / name, {Libp2pSettings: settings}, identity)
    async with provide_transport().open(host) as transport:
        transport.guard(OpenDoor())
        yield transport


async def echo(stream: Stream) -> None:
    try:
        while True:
            await stream.send(await stream.receive())
    except StreamEnded:
        await stream.end()


async def sink(stream: Stream) -> None:
    """Read to the end, then say so; first, send as much where that is asked for."""
    for _ in range(int.from_bytes(await stream.receive(), "big")):
        await stream.send(bytes(FRAME))
    try:
        while True:
            await stream.receive()
    except StreamEnded:
        await stream.send(b"all")


def held() -> str:
    """Resident memory in MB and open files of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files = len(list(Path("/proc/self/fd").iterdir()))
    return f"{pages * 4096 / 1e6:.0f} MB, {files} files"


async def load(stream: Stream) -> None:
    await stream.receive()
    await stream.send(held().encode())


async def serve(folder: Path) -> None:
    async with (
        opened(folder, "server") as transport,
        transport.serve(ECHO, echo),
        transport.serve(SINK, sink),
        transport.serve(LOAD, load),
    ):
        print(transport.addresses[0], flush=True)
        await trio.sleep_forever()


async def echoes(one: Transport, peer: str, size: int, count: int) -> list[float]:
    """The times of echoes in milliseconds, sorted."""
    times = []
    async with one.open(peer, ECHO) as stream:
        frame = bytes(size)
        for turn in range(count + count // 10):
            began = time.perf_counter()
            await stream.send(frame)
            await stream.receive()
            if turn >= count // 10:
                times.append((time.perf_counter() - began) * 1000)
    return sorted(times)


async def bulk(one: Transport, peer: str, *, up: bool) -> float:
    """MB a second in one direction."""
    count = BULK // FRAME
    async with one.open(peer, SINK) as stream:
        began = time.perf_counter()
        await stream.send((0 if up else count).to_bytes(4, "big"))
        frame = bytes(FRAME)
        for _ in range(count):
            if up:
                await stream.send(frame)
            else:
                await stream.receive()
        await stream.end()
        await stream.receive()
        return BULK / 1e6 / (time.perf_counter() - began)


async def there(one: Transport, peer: str) -> str:
    async with one.open(peer, LOAD) as stream:
        await stream.send(b"?")
        return (await stream.receive()).decode()


async def measure(one: Transport, address: str, folder: Path, quick: int) -> None:
    peer = await one.connect([address])
    for size in (64, 4096, 65536):
        times = await echoes(one, peer, size, 5000 // quick)
        p99 = times[len(times) * 99 // 100]
        say(f"echo of {size} bytes", f"median {statistics.median(times):.2f} ms, p99 {p99:.2f} ms")
    for up in (True, False):
        rate = await bulk(one, peer, up=up)
        say("bulk " + ("up" if up else "down"), f"{rate:.0f} MB/s")
    say("held there before", await there(one, peer))
    began = time.perf_counter()
    for _ in range(1000 // quick):
        async with one.open(peer, ECHO) as stream:
            await stream.send(b"x")
            await stream.receive()
    took = (time.perf_counter() - began) / (1000 // quick) * 1000
    say(f"{1000 // quick} streams, one after the other", f"{took:.2f} ms each")
    say("held there after", await there(one, peer))
    began = time.perf_counter()
    for _ in range(2000 // quick):
        await one.disconnect(peer)
        await one.connect([address])
    took = (time.perf_counter() - began) / (2000 // quick) * 1000
    say(f"{2000 // quick} connections, one after the other", f"{took:.2f} ms each")
    say("held there after", await there(one, peer))
    await at_once(address, folder)
    say("held there after", await there(one, peer))


async def at_once(address: str, folder: Path) -> None:
    """100 nodes, all in this process, connect to the other one at once."""
    async with AsyncExitStack() as stack:
        many = [await stack.enter_async_context(opened(folder, f"n{n}")) for n in range(100)]
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for node in many:
                nursery.start_soon(node.connect, [address])
        took = time.perf_counter() - began
        say("100 connections at once", f"{took:.2f} s until the last is up")


def say(what: str, figure: str) -> None:
    print(f"{what:40} {figure}", flush=True)


async def main(quick: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with trio.open_nursery() as nursery:
            command = [sys.executable, "-m", "benchmarks.transport", "--serve", folder]
            start = partial(trio.run_process, command, stdout=PIPE, check=False)
            process: trio.Process = await nursery.start(start)
            if process.stdout is None:
                raise RuntimeError("the peer process has no standard output")
            line = b""
            while not line.endswith(b"\n"):
                line += await process.stdout.receive_some()
            async with opened(Path(folder), "client") as one:
                await measure(one, line.decode().strip(), Path(folder), quick)
            process.kill()
    channel = await data_channel.measure(5000 // quick)
    times = f"median {channel.median:.3f} ms, p99 {channel.p99:.3f} ms"
    say(f"echo of {data_channel.SIZE} bytes, data channel", times)
    say("a data channel opened", f"median {channel.opening:.1f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        trio.run(serve, options.serve)
    else:
        trio.run(main, 10 if options.quick else 1)
