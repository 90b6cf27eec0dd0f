"""What a span host costs: resident memory, bytes on the wire, and processor time while idle."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator

from benchmarks.measure import CONTEXT, PROMPT, STREAMS
from benchmarks.memory import resident_together
from benchmarks.plain import Plain
from benchmarks.report import MIB, Cell
from benchmarks.swarm.chain import Arrangement, Chain, processes, shares
from benchmarks.swarm.speed import plain_settings
from kwaai_core import Span
from kwaai_core.gguf import GgufFile
from kwaai_lobe_llama.planning import kv_bytes_per_token

IDLE_S = 10.0
IDLE_PERCENT, WIRE_RATIO = 1.0, 1.05
_TICKS = os.sysconf("SC_CLK_TCK")


def cost_cells(name: str, file: GgufFile, tokens: int) -> Iterator[Cell]:
    """Of two nodes that share a model out, exact, after eight answers at once."""
    spans = shares(file.blocks, 2)
    with Plain(plain_settings(file, exact=True)) as plain:
        prompts = [plain.prompt(seed, PROMPT) for seed in range(STREAMS + 1)]
    with Chain(file.path, Arrangement(spans, exact=True)) as chain:
        chain.run(prompts[:STREAMS], 16)
        yield _wire(name, file, chain, prompts[-1], tokens)
        head = sum(t.nbytes for t in file.tensors if not t.name.startswith("blk."))
        gateway, host = (processes(node) for node in chain.nodes)
        yield _memory(name, "the gateway's worker", file, spans[0], gateway, head)
        yield _memory(name, "a span host's worker", file, spans[1], host, 0)
        before = [_processor_seconds(pids) for pids in (gateway, host)]
        time.sleep(IDLE_S)
        for who, pids, spent in zip(
            ("the gateway", "a span host"), (gateway, host), before, strict=True
        ):
            percent = (_processor_seconds(pids) - spent) / IDLE_S * 100
            reach, met = f"≤ {IDLE_PERCENT} %", percent <= IDLE_PERCENT
            row = f"{who}, node and worker, idle (% of a core)"
            yield Cell(name, "exact", row, "", 0.0, percent, percent, reach, met, 1)


def _memory(
    name: str, who: str, file: GgufFile, span: Span, pids: tuple[int, ...], head: int
) -> Cell:
    node, *workers = pids
    blocks = sum(t.nbytes for t in file.tensors if _block(t.name) in range(span.lo, span.hi))
    share = (span.hi - span.lo) / file.blocks
    kv = int(kv_bytes_per_token(file, "f16") * share) * CONTEXT * STREAMS
    limit = (1.1 * blocks + kv + head + 80e6) / MIB
    size = resident_together(workers).rss / MIB
    beside = resident_together([node]).rss / MIB
    row = f"{who}, resident (MiB; its node's process {beside:.0f})"
    return Cell(name, "exact", row, "", 0.0, size, size, f"≤ {limit:.0f}", size <= limit, 1)


def _block(tensor: str) -> int:
    found = re.match(r"blk\.(\d+)\.", tensor)
    return int(found[1]) if found else -1


def _wire(name: str, file: GgufFile, chain: Chain, prompt: str, tokens: int) -> Cell:
    """Bytes over the links of the host's worker, heartbeats included, for each of activations."""
    workers = processes(chain.nodes[1])[1:]
    before = _carried(workers)
    (answer,) = chain.complete([prompt], tokens)
    took = _carried(workers) - before
    rows = answer.prompt_tokens + answer.completion_tokens - 1
    raw = 2 * rows * file.embedding_length * 4
    ratio = took / raw
    row, met = "bytes on the wire / raw float32 activations", ratio <= WIRE_RATIO
    return Cell(name, "exact", row, "", 0.0, ratio, ratio, f"≤ {WIRE_RATIO}", met, 1)


def _carried(pids: tuple[int, ...]) -> int:
    """Bytes that TCP has carried for processes, both ways, without headers, as ``ss`` says."""
    if not shutil.which("ss"):
        raise SystemExit("ss is not there to count bytes on the wire: apt-get install iproute2")
    done = subprocess.run(["ss", "-tinpOH"], check=True, capture_output=True, text=True)
    total = 0
    for line in done.stdout.splitlines():
        if any(f"pid={pid}," in line for pid in pids):
            counted = re.findall(r"bytes_(?:sent|received):(\d+)", line)
            total += sum(map(int, counted))
    return total


def _processor_seconds(pids: tuple[int, ...]) -> float:
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS
