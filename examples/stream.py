"""Start a node on a free port, ask its bundled model over HTTP, show the answer as it comes.

    python examples/stream.py ["your question"]

The node has a state folder of its own, and ends with this program.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

QUESTION = "Explain in three short sentences why the sky is blue."
LOBES = "llama,smollm2"
KWAAI = Path(sys.executable).with_name("kwaai")
START_S, ANSWER_S = 120.0, 120.0


class Failed(Exception):
    """The example cannot go on; the message is for whoever ran it."""


@contextlib.contextmanager
def node() -> Iterator[str]:
    """The base URL of a ``kwaai run`` that is ready, and ends when the context is left."""
    with tempfile.TemporaryDirectory(prefix="kwaai-") as folder, socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
        chosen.close()
        log, config = Path(folder, "log"), Path(folder, "kwaai.toml")
        config.touch()
        with log.open("wb") as out:
            process = subprocess.Popen(
                [KWAAI, "run", "--lobes", LOBES, "--host", "127.0.0.1", "--port", str(port)],
                env={**os.environ, "KWAAI_STATE": folder, "KWAAI_CONFIG": str(config)},
                stdout=out,
                stderr=out,
            )
        try:
            wait_until_ready(process, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            end(process)


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Failed(f"kwaai run ended with {process.returncode}:\n{log.read_text()}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/ready").status_code == httpx.codes.OK:
                return
        time.sleep(0.05)
    raise Failed(f"kwaai run was not ready within {START_S:.0f} s:\n{log.read_text()}")


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def answer(url: str, question: str) -> Iterator[str]:
    """The pieces of the model's answer, as they come."""
    model = httpx.get(f"{url}/v1/models").raise_for_status().json()["data"][0]["id"]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 120,
        "temperature": 0,
        "stream": True,
    }
    with httpx.stream(
        "POST", f"{url}/v1/chat/completions", json=body, timeout=ANSWER_S
    ) as response:
        if response.is_error:
            raise Failed(f"the node answered {response.status_code}: {response.read().decode()}")
        for line in response.iter_lines():
            if line == "data: [DONE]":
                return
            if line.startswith("data: "):
                yield piece(json.loads(line.removeprefix("data: ")))
    raise Failed("the stream ended before its end")


def piece(chunk: dict[str, object]) -> str:
    match chunk:
        case {"error": {"message": message}}:
            raise Failed(f"the stream failed: {message}")
        case {"choices": [{"delta": {"content": str(text)}}]}:
            return text
    return ""


def main() -> None:
    question = " ".join(sys.argv[1:]) or QUESTION
    print("    starting: kwaai run --lobes", LOBES, flush=True)
    with node() as url:
        print(f"    ready:    POST {url}/v1/chat/completions\n\n> {question}\n", flush=True)
        for text in answer(url, question):
            print(text, end="", flush=True)
        print()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped")
    except (Failed, httpx.HTTPError) as error:
        sys.exit(f"\nexamples/stream.py: {error}")
