"""``python -m benchmarks.door``: what an honest client notices while others misbehave.

A real node with the lobe that echoes, so that no model is in the way, and a key. Under each attack
in turn, an honest client asks for a short chat 20 times a second, each time on a new connection, in
a process of its own. Printed are its median and worst time, whether all of its answers were right,
what the attackers were told, and by how much the node's memory had grown at its worst.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from benchmarks.api import KWAAI, free_port, wait_ready

CHAT = "/v1/chat/completions"
PER_SECOND = 20
DRIP_SECONDS = 0.2
BIG = 80_000_000
DEEP = b'{"model": ' + b"[" * 1_000_000
SETTLE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Target:
    """A node: where it listens, a key of it, and a model that it has."""

    port: int
    key: str
    model: str

    def head(self, length: int, *, key: str = "") -> bytes:
        """Of a chat whose body has so many bytes."""
        return (
            f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            f"authorization: Bearer {key or self.key}\r\ncontent-length: {length}\r\n\r\n"
        ).encode()

    def chat(self, messages: int = 1, *, key: str = "") -> bytes:
        """A whole request, whose answer begins with “well”."""
        said = [{"role": "user", "content": "well, that is what I say"}] * messages
        body = json.dumps({"model": self.model, "messages": said}).encode()
        return self.head(len(body), key=key) + body


Attack = Callable[[Target], Awaitable[str]]


async def ask(target: Target, *parts: bytes) -> tuple[str, bytes]:
    """Status and body of the answer to a request; “closed” where there is none."""
    answer = bytearray()
    try:
        async with await trio.open_tcp_stream("127.0.0.1", target.port) as stream:
            try:
                for part in parts:
                    await stream.send_all(part)
            except trio.BrokenResourceError:
                pass  # what it has said before may still be read
            while part := await stream.receive_some(65536):
                answer += part
    except (OSError, trio.BrokenResourceError):
        pass
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    return (head.split()[1].decode() if head else "closed"), body


async def drip(target: Target, start: bytes) -> str:
    """Begin a request, and then send a byte now and then, as long as the node takes it."""
    try:
        async with await trio.open_tcp_stream("127.0.0.1", target.port) as stream:
            await stream.send_all(start)
            while True:
                with trio.move_on_after(DRIP_SECONDS):
                    return "answered" if await stream.receive_some(100) else "closed"
                await stream.send_all(b"x")
    except (OSError, trio.BrokenResourceError):
        return "closed"


async def slow_heads(target: Target) -> str:
    return await drip(target, b"POST / HTTP/1.1\r\nhost: localhost\r\nx-slow: ")


async def slow_bodies(target: Target) -> str:
    return await drip(target, target.head(1_000_000))


async def big_bodies(target: Target) -> str:
    status, _ = await ask(target, target.head(BIG), *[b"x" * 1_000_000] * (BIG // 1_000_000))
    return status


async def big_bodies_without_a_key(target: Target) -> str:
    parts = [b"x" * 1_000_000] * (BIG // 1_000_000)
    status, _ = await ask(target, target.head(BIG, key="none"), *parts)
    return status


async def deep_json(target: Target) -> str:
    status, _ = await ask(target, target.head(len(DEEP)), DEEP)
    return status


async def many_messages(target: Target) -> str:
    status, _ = await ask(target, target.chat(10_000))
    return status


async def wrong_keys(target: Target) -> str:
    wrong = target.key[:-8] + "00000000"
    status, _ = await ask(target, target.chat(key=wrong))
    return status


async def idle_connections(target: Target) -> str:
    return await drip(target, b"")


async def many_clients(target: Target) -> str:
    status, _ = await ask(target, target.chat())
    return status


ATTACKS: dict[Attack, tuple[int, frozenset[str]]] = {
    idle_connections: (300, frozenset({"closed"})),
    slow_heads: (200, frozenset({"closed"})),
    slow_bodies: (200, frozenset({"closed", "answered"})),
    big_bodies: (8, frozenset({"413", "closed"})),
    big_bodies_without_a_key: (8, frozenset({"401", "closed"})),
    deep_json: (8, frozenset({"400"})),
    many_messages: (8, frozenset({"413"})),
    wrong_keys: (32, frozenset({"401"})),
    many_clients: (200, frozenset({"200"})),
}
"""How many do it at once, and what they may be told."""


async def attacked(target: Target, attack: Attack, told: Counter[str]) -> None:
    """Do it again and again; ``told`` counts what comes of it."""
    while True:
        told[await attack(target)] += 1


async def honest(target: Target, seconds: float) -> tuple[list[float], int]:
    """The times of an honest client's requests, and how many were not answered as they should."""
    times, wrong, end = list[float](), 0, trio.current_time() + seconds
    while (start := trio.current_time()) < end:
        began = time.perf_counter()
        status, body = await ask(target, target.chat())
        times.append(time.perf_counter() - began)
        wrong += status != "200" or b"well, that is what I say" not in body
        await trio.sleep_until(start + 1 / PER_SECOND)
    return times, wrong


@contextmanager
def running() -> Iterator[tuple[Target, int]]:
    """A node that echoes and has a key, and its process."""
    with tempfile.TemporaryDirectory(prefix="kwaai-bench-") as folder:
        (Path(folder) / "kwaai.toml").touch()
        environment = {
            **{key: value for key, value in os.environ.items() if key[:6] != "KWAAI_"},
            "KWAAI_STATE": f"{folder}/state",
            "KWAAI_CONFIG": f"{folder}/kwaai.toml",
            "KWAAI_LOBES": "echo",
        }
        port, log = free_port(), Path(folder, "log")
        with log.open("wb") as opened:
            run = [KWAAI, "run", "--port", str(port)]
            process = subprocess.Popen(run, env=environment, stdout=opened, stderr=opened)
            try:
                wait_ready(("127.0.0.1", port), process, log)  # which needs no key yet
                make = [KWAAI, "keys", "create", "bench"]
                key = subprocess.run(
                    make, env=environment, check=True, stdout=subprocess.PIPE, text=True
                )
                yield Target(port, key.stdout.strip(), "echo"), process.pid
            finally:
                process.terminate()
                process.wait(30)


def memory(pid: int) -> float:
    """What a process holds in memory now, in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def watched(pid: int, most: list[float]) -> None:
    while True:
        most[0] = max(most[0], memory(pid))
        await trio.sleep(0.02)


async def measure(
    target: Target, pid: int, attack: Attack | None, seconds: float
) -> tuple[str, bool]:
    """A line of the report, and whether everybody was told what they should be."""
    told, before, most = Counter[str](), memory(pid), [0.0]
    count, may = ATTACKS[attack] if attack else (0, frozenset[str]())
    command = [sys.executable, "-m", "benchmarks.door", "--honest", str(seconds)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched, pid, most)
        for _ in range(count):
            if attack:
                nursery.start_soon(attacked, target, attack, told)
        asked = json.dumps([target.port, target.key, target.model]).encode()
        done = await trio.run_process(command, stdin=asked, capture_stdout=True)
        nursery.cancel_scope.cancel()
    times, wrong = json.loads(done.stdout)
    name = (attack.__name__ if attack else "nobody").replace("_", " ")
    line = (
        f"{name:<26} {count:>4} {statistics.median(times) * 1e3:>8.1f} {max(times) * 1e3:>8.1f} "
        f"{len(times):>5} {wrong:>5} {most[0] - before:>7.1f}  "
        + ", ".join(f"{number} × {what}" for what, number in told.most_common())
    )
    return line, wrong == 0 and told.keys() <= may


async def report(seconds: float) -> bool:
    fine = True
    with running() as (target, pid):
        print("attack                  at once  median    worst asked wrong  MB more  told")
        for attack in (None, *ATTACKS):
            line, good = await measure(target, pid, attack, seconds)
            fine &= good
            print(line, flush=True)
            await trio.sleep(SETTLE_SECONDS)
    return fine


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.door", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each attack")
    parser.add_argument("--honest", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.honest:
        target = Target(*json.load(sys.stdin))
        print(json.dumps(trio.run(honest, target, options.honest)))
    elif not trio.run(report, options.seconds):
        raise SystemExit("somebody was told what they should not be")


if __name__ == "__main__":
    main()
