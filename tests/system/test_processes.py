"""Processes that die, clash or are told to stop."""

import json
import os
import signal

import httpx
import pytest
from real_kwaai import Home

SMOLLM2 = "smollm2-135m-instruct"


def question(max_tokens: int, **more: object) -> dict[str, object]:
    return {"model": SMOLLM2, "prompt": "Once upon a time", "max_tokens": max_tokens, **more}


def test_a_killed_worker_is_an_error_event_and_the_next_request_works(home: Home) -> None:
    with home.run() as running:
        url = f"{running.url}/v1/completions"
        events: list[str] = []
        with httpx.stream("POST", url, json=question(1500, stream=True), timeout=60) as response:
            for line in response.iter_lines():
                if not events and line.startswith("data: "):
                    for worker in running.workers():
                        os.kill(worker, signal.SIGKILL)
                events.extend([line] if line.startswith("data: ") else [])
        error = json.loads(events[-1].removeprefix("data: "))["error"]
        assert error["code"] == "lobe_failed"
        assert "data: [DONE]" not in events
        running.wait_for(running.is_ready)
        again = httpx.post(url, json=question(4), timeout=60)
        assert again.is_success, again.text


def test_a_taken_port_is_named(home: Home, tmp_path_factory: pytest.TempPathFactory) -> None:
    with home.run("--lobes", "echo") as running:
        port = str(running.url).rpartition(":")[2]
        second = Home(tmp_path_factory.mktemp("second")).kwaai(
            "run", "--lobes", "echo", "--port", port
        )
    assert second.returncode != 0
    assert port in second.stderr
    assert "Traceback" not in second.stderr


def test_one_node_a_state_folder(home: Home) -> None:
    with home.run("--lobes", "echo"):
        second = home.kwaai("run", "--lobes", "echo", "--port", "0")
    assert second.returncode != 0
    assert "Traceback" not in second.stderr


def test_the_executor_is_swapped_by_name(home: Home) -> None:
    with home.run("--lobes", "echo") as running:
        models = httpx.get(f"{running.url}/v1/models").json()["data"]
        body = {"model": models[0]["id"], "messages": [{"role": "user", "content": "ping pong"}]}
        answer = httpx.post(f"{running.url}/v1/chat/completions", json=body).json()
        assert "ping pong" in answer["choices"][0]["message"]["content"]
        assert running.workers() == []
