"""``python -m benchmarks.framing``: what frames add to an echo of 4 KB on the transport in memory.

An echo over framed streams and one over the bare bytes below them are measured in turn, in one
process, on the real clock, without any simulated delay. The difference is all that a stream adds:
frames, limits, the check for one sender and one receiver.
"""

import platform
import statistics
import time
from collections.abc import Awaitable, Callable

import trio

from kwaai_core import Stream
from kwaai_core.testing import FakeIdentity, Network
from kwaai_core.testing.network import MemoryStream

SIZE = 4096
ECHOES = 2000
ROUNDS = 9
LIMIT_US = 50.0

Exchange = Callable[[MemoryStream, bytes], Awaitable[bytes]]


class OpenDoor:
    """Lets everybody in."""

    def allows(self, peer: str, protocol: str) -> bool:
        return True

    async def greet(self, peer: str) -> None:
        return


async def serve_frames(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive())


async def serve_bytes(stream: Stream) -> None:
    if isinstance(stream, MemoryStream):
        while True:
            await stream.wire.write(await stream.wire.read())


async def by_frames(stream: MemoryStream, data: bytes) -> bytes:
    await stream.send(data)
    return await stream.receive()


async def by_bytes(stream: MemoryStream, data: bytes) -> bytes:
    await stream.wire.write(data)
    return await stream.wire.read()


async def echo_us(stream: MemoryStream, exchange: Exchange, echoes: int) -> float:
    """The median echo in microseconds."""
    data, times = bytes(SIZE), []
    for _ in range(echoes):
        start = time.perf_counter()
        came = await exchange(stream, data)
        times.append(time.perf_counter() - start)
        if came != data:
            raise SystemExit("an echo gave other bytes")
    return statistics.median(times) * 1e6


async def measure(rounds: int = ROUNDS, echoes: int = ECHOES) -> tuple[list[float], list[float]]:
    """Median echoes in microseconds, round by round: over bytes, and over frames."""
    network = Network()
    async with (
        network.node(FakeIdentity(1)) as one,
        network.node(FakeIdentity(2)) as two,
        two.serve("/frames", serve_frames),
        two.serve("/bytes", serve_bytes),
    ):
        two.guard(OpenDoor())
        await one.connect(two.addresses)
        async with (
            one.open(two.peer, "/frames") as framed,
            one.open(two.peer, "/bytes") as bare,
        ):
            below, above = [], []
            for _ in range(rounds + 1):
                below.append(await echo_us(bare, by_bytes, echoes))
                above.append(await echo_us(framed, by_frames, echoes))
            return below[1:], above[1:]  # the first round warms the interpreter up


def main() -> None:
    below, above = trio.run(measure)
    added = statistics.median(high - low for low, high in zip(below, above, strict=True))
    print(f"Python {platform.python_version()}, {platform.platform()}\n")
    print(f"| echo of {SIZE} bytes in memory | median of {ROUNDS} rounds |\n|---|---|")
    print(f"| over bytes | {statistics.median(below):.1f} µs |")
    print(f"| over frames | {statistics.median(above):.1f} µs |")
    print(f"| frames add (limit: {LIMIT_US:g} µs) | {added:.1f} µs |")
    if added > LIMIT_US:
        raise SystemExit(f"frames add {added:.1f} µs, which is over {LIMIT_US:g} µs")


if __name__ == "__main__":
    main()
