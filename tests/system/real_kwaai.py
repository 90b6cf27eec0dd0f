"""Real processes: ``kwaai`` as a user starts it, each with a state folder of its own."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

KWAAI = Path(sys.executable).with_name("kwaai")
ROOT = Path(__file__).parents[2]
START_S = 60.0


@dataclass(frozen=True, slots=True)
class Home:
    """Where one test's ``kwaai`` keeps its things."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        clean = {key: value for key, value in os.environ.items() if key[:6] != "KWAAI_"}
        state, config = self.folder / "state", self.folder / "kwaai.toml"
        config.touch()
        return {**clean, "KWAAI_STATE": str(state), "KWAAI_CONFIG": str(config), "NO_COLOR": "1"}

    def kwaai(
        self, *words: str, stdin: str = "", seconds: float = START_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of ``kwaai`` to its end."""
        return subprocess.run(
            [KWAAI, *words],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    @contextlib.contextmanager
    def run(self, *words: str, ready: bool = True) -> Iterator["Running"]:
        """``kwaai run`` on a free port; ends with the context, and must then exit with 0."""
        log = self.folder / "run.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [KWAAI, "run", "--port", "0", *words], env=self.environment, stdout=out, stderr=out
            )
        running = Running(process, log)
        try:
            running.wait_for(lambda: running.url is not None)
            if ready:
                running.wait_for(running.is_ready)
            yield running
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()
        assert process.returncode == 0, log.read_text()
        assert "Traceback" not in log.read_text()


@dataclass(frozen=True, slots=True)
class Running:
    """A ``kwaai run``, and what it has said."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str | None:
        """The base URL, once it has been printed."""
        found = re.search(r"http://127\.0\.0\.1:\d+", self.log.read_text())
        return found[0] if found else None

    def is_ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/ready").is_success
        return False

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until the condition holds; fails when the process ends or takes too long."""
        deadline = time.monotonic() + START_S
        while not condition():
            assert time.monotonic() < deadline, f"took too long:\n{self.log.read_text()}"
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)
                raise AssertionError(f"kwaai run ended:\n{self.log.read_text()}")

    def workers(self) -> list[int]:
        """The processes that compute for this node."""
        task = Path(f"/proc/{self.process.pid}/task")
        return [int(c) for t in task.iterdir() for c in (t / "children").read_text().split()]
