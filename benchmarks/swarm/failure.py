"""For how long an answer stands still when a host dies or freezes, beyond the replay itself."""

import contextlib
import http.client
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.api import MODEL, body
from benchmarks.measure import CONTEXT, PROMPT
from benchmarks.plain import Plain
from benchmarks.report import Cell
from benchmarks.swarm.chain import Arrangement, Chain, processes
from benchmarks.swarm.speed import plain_settings
from kwaai_core import Span
from kwaai_core.gguf import GgufFile
from kwaai_lobe_llama.plan import Plan
from kwaai_lobe_llama.planning import default_threads, row_limits
from kwaai_lobe_llama.slicing import slice_span
from kwaai_lobe_llama.worker.span_engine import SpanEngine

STRUCK_AFTER = 24  # pieces of text
KILLED_S, FROZEN_S = 0.3, 1.5


@dataclass(slots=True)
class Struck:
    """A streamed answer in whose midst a host was struck. ``replayed`` rows were computed again."""

    text: str = ""
    arrivals: list[float] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """The longest time between two pieces, in seconds."""
        return max(b - a for a, b in pairwise(self.arrivals))

    @property
    def replayed(self) -> int:
        return max(int(hop["replayed"]) for hop in self.report["timing"])


def failure_cells(name: str, file: GgufFile, tokens: int, rounds: int) -> Iterator[Cell]:
    """Three nodes, of which the last two hold the same blocks; the one on the route is struck."""
    first, rest = Span(0, file.blocks // 3), Span(file.blocks // 3, file.blocks)
    for words, number, most in (
        ("killed (SIGKILL)", signal.SIGKILL, KILLED_S),
        ("frozen (SIGSTOP)", signal.SIGSTOP, FROZEN_S),
    ):
        gaps, replays, same, distinct = [], [], 0, 0
        for i in range(rounds):
            with Plain(plain_settings(file, exact=True)) as plain:
                prompt = plain.prompt(7000 + i, PROMPT)
                undisturbed = plain.run([prompt], tokens)
            with Chain(file.path, Arrangement((first, rest, rest), exact=True)) as chain:
                chain.run([prompt], 8)  # links, and the pace of both hosts, are known
                struck = _struck(chain, prompt, tokens, number)
            same += struck.text == undisturbed.texts[0]
            distinct = max(distinct, len(undisturbed.tokens))
            gaps.append(struck.gap)
            replays.append(_replay_seconds(file, rest, struck.replayed))
        more = statistics.median(gap - replay for gap, replay in zip(gaps, replays, strict=True))
        yield Cell(
            name,
            "exact",
            f"longest gap when a host is {words} (ms, against the replay alone)",
            "replay",
            statistics.median(replays) * 1e3,
            statistics.median(gaps) * 1e3,
            more * 1e3,
            f"≤ +{most * 1e3:.0f}",
            more <= most,
            rounds,
            f"same text {same}/{rounds}",
            same == rounds,
        )


def _struck(chain: Chain, prompt: str, tokens: int, number: int) -> Struck:
    answer, struck = Struck(), tuple[int, ...]()
    connection = http.client.HTTPConnection(*chain.address, timeout=120)
    asked = body(MODEL, prompt, tokens, {"exact": True, "timing": True})
    connection.request("POST", "/v1/completions", json.dumps(asked))
    with connection.getresponse() as response:
        if response.status != 200:
            raise SystemExit(f"the node refused: {response.read().decode()}")
        route = response.headers["x-kwaai-route"]
        for line in response:
            _take(line, answer)
            if len(answer.arrivals) >= STRUCK_AFTER and not struck:
                struck = _on_route(chain, route)
                for pid in struck:
                    os.kill(pid, number)
    for pid in struck:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # one that is frozen would not end by itself
    connection.close()
    return answer


def _take(line: bytes, answer: Struck) -> None:
    if not line.startswith(b"data: {"):
        return
    document = json.loads(line[6:])
    if "error" in document:
        raise SystemExit(f"the answer broke off: {document['error']['message']}")
    answer.report = document.get("kwaai") or answer.report
    piece = "".join(choice["text"] or "" for choice in document["choices"])
    if piece:
        answer.text += piece
        answer.arrivals.append(time.perf_counter())


def _on_route(chain: Chain, route: str) -> tuple[int, ...]:
    """The processes of the node, beside the one asked, that is on a route."""
    for node in chain.nodes[1:]:
        if f"{node.peer}:" in route:
            return processes(node)
    raise SystemExit(f"no other node is on the route {route}")


def _replay_seconds(file: GgufFile, span: Span, rows: int) -> float:
    """How long the calls of a replay take by themselves: the prompt in one, then as many lone rows
    together as bits allow."""
    types = [tensor.type for tensor in file.tensors if len(tensor.shape) > 1]
    limits = row_limits(types)
    with tempfile.TemporaryDirectory() as folder:
        path = slice_span(file, "replayed", span, Path(folder))
        threads = default_threads()
        engine = SpanEngine(Plan(str(path), "", CONTEXT, 1, threads).as_exact(**limits))
    state = memoryview(bytes(4 * engine.width))
    took = []
    for _ in range(3):
        engine.forget()
        began, at = time.perf_counter(), 0
        while at < rows:
            count = min(limits["max_rows"] if at else PROMPT, rows - at)
            engine.run([state] * count, [(at + row, 0) for row in range(count)])
            at += count
        took.append(time.perf_counter() - began)
    engine.close()
    return min(took)
