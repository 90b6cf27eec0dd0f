"""Real nodes on this machine, joined over libp2p, none of which holds the whole model."""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from benchmarks.api import KWAAI, MODEL, body, descendants, run_of
from benchmarks.contender import Run
from benchmarks.http_stream import Completion, stream_all
from kwaai_core import KwaaiError, Span
from kwaai_lobe_router.demo.nodes import Node, node

FOUND_S = 120.0


@dataclass(frozen=True, slots=True)
class Arrangement:
    """What each node holds, the first one being asked, and, where each node has a core of its own
    with all its processes, which. ``context`` is in tokens of one session."""

    spans: tuple[Span, ...]
    exact: bool
    cores: tuple[int, ...] = ()
    context: int = 1024
    streams: int = 8


class Chain:
    """Nodes as arranged; leaving the context ends them. The first one answers."""

    def __init__(self, path: Path, arrangement: Arrangement) -> None:
        self._path = path
        self.arrangement = arrangement
        self.nodes: list[Node] = []
        self._last: list[Completion] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kwaai-bench-")))
            models = _registered(self._path, folder)
            for number, span in enumerate(self.arrangement.spans):
                with on_core(self.arrangement.cores[number : number + 1]):
                    made = node(
                        f"node {number + 1}", folder / str(number), self._config(span), models
                    )
                    self.nodes.append(stack.enter_context(made))
            for other in self.nodes[1:]:
                invited = self.nodes[0].post("/peers/invite", {"group": "bench", "seconds": 600})
                other.post("/peers/join", {"line": invited["line"]})
            self._await_all()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._stack.close()

    def _config(self, span: Span) -> dict[str, Mapping[str, object]]:
        arranged = self.arrangement
        llama = {"load": "none", "context": arranged.context, "streams": arranged.streams}
        return {
            "libp2p": {"listen": ["/ip4/127.0.0.1/tcp/0"]},
            "llama": llama | {"exact": arranged.exact},
            "spans": {
                "models": [MODEL],
                "blocks": f"{span.lo}-{span.hi - 1}",
                "unit": span.hi,
                "exact": arranged.exact,
                "whole": False,
            },
        }

    def _await_all(self) -> None:
        deadline = time.monotonic() + FOUND_S
        while len(self._holders()) < len(self.nodes):
            if time.monotonic() > deadline:
                raise SystemExit(f"the nodes did not find each other within {FOUND_S:.0f} s")
            time.sleep(0.1)

    def _holders(self) -> set[str]:
        try:
            status: dict[str, Any] = self.nodes[0].get(f"/lobes/router/status?model={MODEL}")
        except KwaaiError:
            return set()
        return {peer["peer"] for peer in status.get("peers", [])}

    @property
    def address(self) -> tuple[str, int]:
        """Where the first node's API is."""
        parts = urlsplit(self.nodes[0].url)
        return str(parts.hostname), int(parts.port or 0)

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes of all nodes."""
        return tuple(pid for made in self.nodes for pid in processes(made))

    def complete(self, prompts: Sequence[str], length: int) -> list[Completion]:
        """Greedily ``length`` tokens for each prompt, all requests at once."""
        asked = {"exact": self.arrangement.exact, "timing": True}
        bodies = [body(MODEL, prompt, length, asked) for prompt in prompts]
        return stream_all(self.address, bodies)

    def run(self, prompts: Sequence[str], length: int) -> Run:
        """As :meth:`complete`, in figures."""
        self._last = self.complete(prompts, length)
        return run_of(self._last, length)

    def hops(self) -> list[float]:
        """Of the last run, what each hop to another node took of a token beside waiting and
        computing there, in milliseconds."""
        return [
            hop["wire_ms"] / completion.completion_tokens
            for completion in self._last
            for hop in completion.report["timing"]
            if hop["peer"] != self.nodes[0].peer
        ]


def processes(made: Node) -> tuple[int, ...]:
    """The node's own process, then its workers'."""
    return (made.process.pid, *descendants(made.process.pid))


@contextmanager
def on_core(cores: Sequence[int]) -> Iterator[None]:
    """What is started meanwhile has these cores, and all there are where none is named."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(cores) or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def shares(blocks: int, nodes: int) -> tuple[Span, ...]:
    """Consecutive spans of about equal size."""
    borders = [blocks * n // nodes for n in range(nodes + 1)]
    return tuple(Span(lo, hi) for lo, hi in pairwise(borders))


def _registered(path: Path, folder: Path) -> Path:
    """The list of models of a user who has added the file."""
    environment = {key: value for key, value in os.environ.items() if key[:6] != "KWAAI_"}
    (folder / "kwaai.toml").touch()
    environment |= {"KWAAI_STATE": str(folder), "KWAAI_CONFIG": str(folder / "kwaai.toml")}
    command = [KWAAI, "models", "add", "--id", MODEL, str(path)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return folder / "lobes" / "models"
