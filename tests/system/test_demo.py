"""What a newcomer sees first: a model over several nodes, of which one is killed."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from pathlib import Path

from real_kwaai import KWAAI, Home

from kwaai_core.testing.models import TINY_QWEN2, write_random_model


def test_a_killed_node_changes_no_byte_of_the_answer(tmp_path: Path) -> None:
    ended = Home(tmp_path).kwaai("demo", "--json", seconds=300)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["same_text"] is True
    assert told["text"] == told["baseline_text"]
    assert told["killed"] in {hop["peer"] for hop in told["route_before"]}
    assert told["killed"] not in {hop["peer"] for hop in told["route_after"]}
    for route in (told["route_before"], told["route_after"]):
        assert [hop["lo"] for hop in route[1:]] == [hop["hi"] for hop in route[:-1]]
        assert (route[0]["lo"], route[-1]["hi"]) == (0, 30)
    assert told["tokens_before_kill"] >= 8
    assert told["tokens_after_kill"] >= 8
    assert told["replayed_tokens"] > 0


def test_a_model_without_a_chat_template_is_refused_before_it_is_shared_out(tmp_path: Path) -> None:
    home = Home(tmp_path)
    path = write_random_model(home.folder / "plain.gguf", TINY_QWEN2, template="")
    assert home.kwaai("models", "add", str(path), "--id", "plain").returncode == 0
    ended = home.kwaai("demo", "--model", "plain", "--nodes", "2", "--no-kill", seconds=120)
    assert ended.returncode != 0
    assert "plain has no chat template" in ended.stderr
    assert "Starting node" not in ended.stderr


def test_it_leaves_nothing_behind_when_it_is_stopped(tmp_path: Path) -> None:
    home = Home(tmp_path)
    environment = home.environment | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [KWAAI, "demo"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as demo:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("kwaai-demo-*/whole/run.log")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        demo.terminate()
        assert demo.wait(60) != 0
    assert not list(tmp_path.glob("kwaai-demo-*"))
    assert not _runs_below(tmp_path)


def _runs_below(folder: Path) -> list[str]:
    """Processes whose environment names something in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"KWAAI_STATE={folder}".encode() in (process / "environ").read_bytes():
                found.append(process.name)
    return found
