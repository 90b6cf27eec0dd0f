"""lm-eval with tasks of our own: the log-likelihoods of one node, and those of a model over three.

Nothing is downloaded: the tasks and their data are in ``tasks``, and the tokens are the node's.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from kwaai_core import KwaaiError
from kwaai_lobe_router.demo.nodes import Node, node
from tests.clients.conftest import SMOLLM2

LM_EVAL = Path(sys.executable).with_name("lm_eval")
TASKS = Path(__file__).parent / "tasks"
FOUND_S = 120.0
BLOCKS = ("0-9", "10-19", "20-29")
EXACT = {"exact": True}
REMOTE = {"tokenizer_backend": "remote", "tokenized_requests": True}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node that has the whole model."""
    folder = tmp_path_factory.mktemp("one")
    with node("one", folder / "node", {"llama": EXACT}, folder / "none") as made:
        made.wait_for("it was ready", lambda: answers(made, "/ready"))
        yield made


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The first of three nodes, none of which has more than ten blocks."""
    folder = tmp_path_factory.mktemp("three")
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(node(f"node {i}", folder / str(i), spans(blocks), folder / "none"))
            for i, blocks in enumerate(BLOCKS)
        ]
        for other in nodes[1:]:
            line = nodes[0].post("/peers/invite", {"group": "clients", "seconds": 600})["line"]
            other.post("/peers/join", {"line": line})
        nodes[0].wait_for("it knew the others", lambda: len(holders(nodes[0])) == len(nodes))
        yield nodes[0]


def spans(blocks: str) -> Mapping[str, Mapping[str, object]]:
    return {
        "libp2p": {"listen": ["/ip4/127.0.0.1/tcp/0"]},
        "llama": EXACT | {"load": "none", "context": 1024, "streams": 4},
        "spans": EXACT | {"models": [SMOLLM2], "blocks": blocks, "unit": 30, "whole": False},
    }


def answers(made: Node, path: str) -> bool:
    return httpx.get(made.url + path).is_success


def holders(made: Node) -> set[str]:
    try:
        status = made.get(f"/lobes/router/status?model={SMOLLM2}")
    except KwaaiError:
        return set()
    return {peer["peer"] for peer in status.get("peers", [])}


def evaluate(
    made: Node, model: str, path: str, task: str, folder: Path, *words: str, **more: object
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The results of a task, and its samples in their order."""
    given = {"model": SMOLLM2, "base_url": made.url + path, "max_length": 1024} | more
    environment = os.environ | {
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }
    command = [
        str(LM_EVAL), "run", "--model", model, "--tasks", task, "--include_path", str(TASKS),
        "--model_args", ",".join(f"{key}={value}" for key, value in given.items()),
        "--output_path", str(folder / "out"), "--log_samples", *words,
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=TASKS, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (results,) = folder.glob("out/**/results_*.json")
    (samples,) = folder.glob("out/**/samples_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    found: dict[str, Any] = json.loads(results.read_text())["results"][task]
    return found, sorted(lines, key=lambda line: int(line["doc_id"]))


def likelihoods(
    made: Node, folder: Path, *words: str, **more: object
) -> tuple[dict[str, Any], list[list[tuple[float, bool]]]]:
    """The scores, and the log-likelihood of each choice of each question."""
    results, samples = evaluate(
        made, "local-completions", "/v1/completions", "kwaai_facts", folder, *words, **more
    )
    scores = {key: value for key, value in results.items() if key.startswith("acc")}
    return scores, [[tuple(choice) for choice in sample["filtered_resps"]] for sample in samples]


def generations(made: Node, folder: Path) -> tuple[float, list[str]]:
    """The share of right answers, and all of them."""
    results, samples = evaluate(
        made,
        "local-chat-completions",
        "/v1/chat/completions",
        "kwaai_capitals",
        folder,
        "--apply_chat_template",
    )
    return results["exact_match,city"], [sample["resps"][0][0] for sample in samples]


def route(made: Node) -> list[str]:
    """Who computes an answer of this node."""
    body = {"model": SMOLLM2, "prompt": "1, 2,", "max_tokens": 1}
    answer = httpx.post(f"{made.url}/v1/completions", json=body, timeout=120).json()
    return [hop["peer"] for hop in answer["kwaai"]["route"]]


def test_multiple_choice_is_the_same_on_one_node_and_on_three(
    one: Node, three: Node, tmp_path: Path
) -> None:
    assert (len(route(one)), len(set(route(three)))) == (1, 3)
    alone = likelihoods(one, tmp_path / "one", **REMOTE)
    together = likelihoods(three, tmp_path / "three", **REMOTE)
    assert together == alone  # to the bit: JSON has enough digits of each number
    scores, choices = alone
    assert scores["acc,none"] >= 0.75
    assert len(choices) == 12
    assert len({float(value) for each in choices for value, _ in each}) > 40
    assert likelihoods(three, tmp_path / "together", **REMOTE, num_concurrent=4) == alone


def test_batches_and_texts_make_no_difference(one: Node, tmp_path: Path) -> None:
    alone = likelihoods(one, tmp_path / "alone", **REMOTE)
    assert likelihoods(one, tmp_path / "batches", "--batch_size", "8", **REMOTE) == alone
    texts = REMOTE | {"tokenized_requests": False}
    assert likelihoods(one, tmp_path / "texts", **texts) == alone


def test_chats_are_the_same_on_one_node_and_on_three(
    one: Node, three: Node, tmp_path: Path
) -> None:
    alone = generations(one, tmp_path / "one")
    assert generations(three, tmp_path / "three") == alone
    score, texts = alone
    assert score >= 0.4
    assert len(set(texts)) == 5
