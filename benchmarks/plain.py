"""The process around the plain engine: one JSON request a line in, one JSON answer a line out."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.contender import Run
from benchmarks.engine import Engine, Settings


class Plain:
    """A plain llama.cpp in a process of its own; leaving the context ends it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.plain", _settings_line(self.settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def pids(self) -> tuple[int, ...]:
        return (self._process.pid,)

    def threads(self, count: int) -> None:
        """Compute with ``count`` threads from now on."""
        if count != self.settings.threads:
            self._ask(threads=count)
            self.settings = replace(self.settings, threads=count)

    def prompt(self, seed: int, length: int) -> str:
        """A text of exactly ``length`` tokens for this model."""
        return str(self._ask(seed=seed, length=length))

    def run(self, prompts: Sequence[str], length: int) -> Run:
        """Greedily ``length`` tokens for each prompt, all in one batch."""
        got = self._ask(prompts=list(prompts), length=length)
        return Run(
            texts=tuple(got["texts"]),
            prompt_tokens=tuple(got["prompt_tokens"]),
            first_s=got["first_s"],
            rate=len(prompts) * (length - 1) / got["decode_s"] if length > 1 else 0.0,
            tokens=frozenset(token for row in got["tokens"] for token in row),
        )

    def _ask(self, **request: object) -> Any:
        if self._process.stdin is None:
            raise RuntimeError("the plain process has no standard input")
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        if self._process.stdout is None:
            raise RuntimeError("the plain process has no standard output")
        if not (line := self._process.stdout.readline()):
            raise SystemExit(f"plain llama.cpp ended ({self.settings})")
        return json.loads(line)


def _settings_line(settings: Settings) -> str:
    return json.dumps({**asdict(settings), "path": str(settings.path)})


def main() -> None:
    given = json.loads(sys.argv[1])
    engine = Engine(Settings(**{**given, "path": Path(given["path"])}))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer: object = None
        if "threads" in request:
            engine.threads(request["threads"])
        elif "seed" in request:
            answer = engine.prompt(request["seed"], request["length"])
        else:
            answer = asdict(engine.generate(request["prompts"], request["length"]))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
