"""A node behind its API: ``kwaai run`` as a real process, with a state folder of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.contender import Run
from benchmarks.http_stream import Completion, get_json, stream_all

KWAAI = str(Path(sys.executable).with_name("kwaai"))
LOBES = "llama,models,smollm2"
MODEL = "measured"
READY_S = 120.0
FEW = 4  # tokens that two prompts may begin with by chance


class Node:
    """``kwaai run`` with one model file; leaving the context ends it and its workers.

    ``context`` is in tokens of one stream. ``path`` None is the bundled model alone. Everything
    else has its defaults, as a user's would, unless ``threads`` are given.
    """

    def __init__(
        self, path: Path | None, *, context: int, exact: bool = False, threads: int = 0
    ) -> None:
        self._path = path
        self._exact = exact
        self._settings = {
            "KWAAI_LLAMA_CONTEXT": str(context),
            "KWAAI_LLAMA_EXACT": str(exact),
            "KWAAI_LLAMA_THREADS": str(threads),
        }

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kwaai-bench-")))
            (folder / "kwaai.toml").touch()
            self._environment = environment = {
                **{key: value for key, value in os.environ.items() if key[:6] != "KWAAI_"},
                "KWAAI_STATE": str(folder / "state"),
                "KWAAI_CONFIG": str(folder / "kwaai.toml"),
                **self._settings,
            }
            if self._path:
                command = [KWAAI, "models", "add", "--id", MODEL, str(self._path)]
                subprocess.run(command, env=environment, check=True, capture_output=True)
            self.address = ("127.0.0.1", free_port())
            started = time.perf_counter()
            self._log = folder / "log"
            log = stack.enter_context(self._log.open("wb"))
            command = [KWAAI, "run", "--lobes", LOBES, "--host", "127.0.0.1"]
            command += ["--port", str(self.address[1])]
            self._process = stack.enter_context(running(command, environment, log.fileno()))
            wait_ready(self.address, self._process, self._log)
            self.ready_s = time.perf_counter() - started
            self.model = self._model_id()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """The node's process first, then its workers."""
        return (self._process.pid, *descendants(self._process.pid))

    def row_limit(self) -> int:
        """The most rows of a call that decodes, as the worker that is loaded says."""
        done = subprocess.run(
            [KWAAI, "lobes", "--json"], env=self._environment, check=True, capture_output=True
        )
        facts = next(lobe["facts"] for lobe in json.loads(done.stdout) if lobe["lobe"] == "llama")
        return min(int(worker["max_rows"]) for worker in facts["workers"])

    def run(self, prompts: Sequence[str], length: int) -> Run:
        """Greedily ``length`` tokens for each prompt, all requests at once."""
        try:
            got = stream_all(self.address, [self._body(prompt, length) for prompt in prompts])
        except OSError as error:
            said = f"exit code {self._process.poll()}:\n{self._log.read_text()}"
            raise SystemExit(f"the node is gone: {error}; {said}") from error
        return run_of(got, length)

    def _body(self, prompt: str, length: int) -> dict[str, object]:
        return body(self.model, prompt, length, {"exact": True} if self._exact else {})

    def _model_id(self) -> str:
        _, body = get_json(self.address, "/v1/models")
        if not isinstance(body, dict):
            raise SystemExit(f"/v1/models answered {body!r}")
        ids = [str(entry["id"]) for entry in body["data"]]
        wanted = MODEL if self._path else "smollm2"
        if found := [name for name in ids if wanted in name.lower()]:
            return found[0]
        raise SystemExit(f"the node has no model like {wanted}, only {', '.join(ids) or 'none'}")


def body(model: str, prompt: str, length: int, kwaai: Mapping[str, object]) -> dict[str, object]:
    """A greedy, streamed completion of ``length`` tokens."""
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": length,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"kwaai": kwaai} if kwaai else {}),
    }


def run_of(got: Sequence[Completion], length: int) -> Run:
    """What answers to requests that were sent at once come to."""
    if any(completion.cached_tokens > FEW for completion in got):
        raise SystemExit("a fresh prompt came from the node's cache: that is no comparison")
    if not all(completion.arrivals for completion in got):
        raise SystemExit("the node answered without a word: this model ends at once")
    return Run(
        texts=tuple(completion.text for completion in got),
        prompt_tokens=tuple(completion.prompt_tokens for completion in got),
        first_s=max(c.arrivals[0] - c.started for c in got),
        rate=_rate(got) if length > 1 else 0.0,
    )


def _rate(got: Sequence[Completion]) -> float:
    """Tokens a second of all streams, over the time in which every one of them was decoding.

    Where they never were at the same time, over all the time, which flatters nobody.
    """
    lo, hi = max(c.arrivals[0] for c in got), min(c.arrivals[-1] for c in got)
    if lo >= hi:
        lo, hi = min(c.arrivals[0] for c in got), max(c.arrivals[-1] for c in got)
    return sum(_tokens_between(completion, lo, hi) for completion in got) / (hi - lo)


def _tokens_between(completion: Completion, lo: float, hi: float) -> float:
    """Tokens in ``(lo, hi]``; a piece of text stands for equally many tokens as any other."""
    pieces = sum(lo < moment <= hi for moment in completion.arrivals)
    return pieces * (completion.completion_tokens - 1) / max(1, len(completion.arrivals) - 1)


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], log: int
) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process of its own, which ends with the context, killed if need be."""
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_ready(
    address: tuple[str, int], process: subprocess.Popen[bytes], log: Path, path: str = "/ready"
) -> None:
    """Return once ``path`` says 200; asked every five milliseconds."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"{address} ended with {process.returncode}:\n{log.read_text()}")
        with contextlib.suppress(OSError):
            if get_json(address, path)[0] == 200:
                return
        time.sleep(0.005)
    raise SystemExit(f"{address} was not ready within {READY_S:.0f} s:\n{log.read_text()}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def descendants(pid: int) -> Iterator[int]:
    """The processes below ``pid``, from /proc."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield int(child)
            yield from descendants(int(child))
