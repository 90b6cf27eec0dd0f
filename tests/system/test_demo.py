"""What a newcomer sees first: a model over several nodes, of which one is killed."""

from __future__ import annotations

import json
from pathlib import Path

from real_kwaai import Home


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
