"""``python -m benchmarks.data_channel``: echoes of 4 KB over a data channel of two processes.

Two nodes with the lobe libp2p on loopback agree on the channel over a stream; then TLS runs over
blocking sockets, without an event loop, as a worker process does it.
"""

from __future__ import annotations

import json
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from kwaai_core import DataChannel, Stream
from kwaai_core.span.secure import secure
from kwaai_core.testing import FakeIdentity
from kwaai_core.testing.fakes import FakeHost
from kwaai_lobe_libp2p import provide_transport
from kwaai_lobe_libp2p.settings import Libp2pSettings

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from kwaai_core import Transport

PROTOCOL = "/kwaai/data-channel-benchmark/1"
SIZE = 4096
WARM_UP, ECHOES = 500, 5000
OPENED = 30
LIMIT_MS = 0.3
LIMIT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Measured:
    """Times in milliseconds: an echo, and how long it takes until there is a channel."""

    median: float
    p99: float
    echoes: int
    opening: float
    openings: int


class OpenDoor:
    """Lets everybody in."""

    def allows(self, peer: str, protocol: str) -> bool:
        return True

    async def greet(self, peer: str) -> None:
        return


def node(folder: Path, name: str) -> AbstractAsyncContextManager[Transport]:
    tables = {Libp2pSettings: Libp2pSettings(listen=("/ip4/127.0.0.1/tcp/0",))}
    return provide_transport().open(FakeHost(folder / name, tables, FakeIdentity(name)))


@contextmanager
def secured(channel: DataChannel) -> Iterator[socket.socket]:
    """TLS over a channel, as a worker has it."""
    with secure(channel, seconds=LIMIT_SECONDS) as ours:
        ours.settimeout(None)  # a limit costs a call of the system for each read
        yield ours


def exactly(ours: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n:
        more = ours.recv(n - len(data))
        if not more:
            return b""
        data += more
    return data


def echo(channel: DataChannel) -> None:
    with secured(channel) as ours:
        while data := exactly(ours, SIZE):
            ours.sendall(data)


def echoes(channel: DataChannel, n: int) -> list[float]:
    """The seconds that each echo took, after a warm-up."""
    times, data = [], bytes(SIZE)
    with secured(channel) as ours:
        for _ in range(WARM_UP + n):
            began = time.perf_counter()
            ours.sendall(data)
            if exactly(ours, SIZE) != data:
                raise RuntimeError("the echo is not what was sent")
            times.append(time.perf_counter() - began)
    return times[WARM_UP:]


async def serve(folder: Path) -> None:
    """The other process: prints its addresses, and echoes until it is killed."""

    async def handle(stream: Stream) -> None:
        while (channel := await transport.data_channel(stream)) is not None:
            await trio.to_thread.run_sync(echo, channel)

    async with node(folder, "server") as transport, transport.serve(PROTOCOL, handle):
        transport.guard(OpenDoor())
        print(json.dumps(list(transport.addresses)), flush=True)
        await trio.sleep_forever()


async def measure(n: int = ECHOES) -> Measured:
    """Run the other process, and measure."""
    with tempfile.TemporaryDirectory() as folder, other_process(folder) as addresses:
        async with node(Path(folder), "client") as transport:
            transport.guard(OpenDoor())
            peer = await transport.connect(addresses)
            times: list[float] = []
            opened: list[float] = []
            async with transport.open(peer, PROTOCOL) as stream:
                for number in range(OPENED):
                    began = time.perf_counter()
                    channel = await transport.data_channel(stream)
                    opened.append(time.perf_counter() - began)
                    if channel is None:
                        raise RuntimeError("there is no direct way on loopback")
                    count = n if number == OPENED - 1 else 0
                    times += await trio.to_thread.run_sync(echoes, channel, count)
    times.sort()
    return Measured(
        1000 * statistics.median(times),
        1000 * times[int(0.99 * len(times))],
        len(times),
        1000 * statistics.median(opened),
        len(opened),
    )


@contextmanager
def other_process(folder: str) -> Iterator[list[str]]:
    command = [sys.executable, "-m", "benchmarks.data_channel", "serve", folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or not (line := process.stdout.readline()):
                raise RuntimeError(f"the other process ended with {process.wait()}")
            yield json.loads(line)
        finally:
            process.kill()


def main() -> int:
    """Measure, and tell whether it is within the limit."""
    if sys.argv[1:2] == ["serve"]:
        trio.run(serve, Path(sys.argv[2]))
    found = trio.run(measure)
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    print(
        f"data channel, echo of {SIZE} bytes: median {found.median:.3f} ms, "
        f"p99 {found.p99:.3f} ms (n={found.echoes}; the limit is {LIMIT_MS} ms); "
        f"opening one: median {found.opening:.1f} ms (n={found.openings})"
    )
    return 0 if found.median <= LIMIT_MS else 1


if __name__ == "__main__":
    sys.exit(main())
