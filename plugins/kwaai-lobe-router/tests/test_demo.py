"""The demonstration: who holds what, and what is told of how it went."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from kwaai_core import Span
from kwaai_lobe_router.demo import story
from kwaai_lobe_router.demo.choice import check_template, chosen
from kwaai_lobe_router.demo.command import _words, demo
from kwaai_lobe_router.demo.nodes import DemoFailed, node
from kwaai_lobe_router.demo.story import Answer, Script, spans_of


@pytest.mark.parametrize("nodes", range(2, 9))
def test_no_node_holds_all_and_any_but_the_first_can_be_replaced(nodes: int) -> None:
    blocks = 30
    spans = spans_of(nodes, blocks)
    assert len(spans) == nodes
    assert all(0 <= span.lo < span.hi <= blocks and span != Span(0, blocks) for span in spans)
    assert {block for span in spans for block in range(span.lo, span.hi)} == set(range(blocks))
    if nodes > 2:
        for gone in spans[1:]:
            rest = [span for span in spans if span is not gone]
            covered = {block for span in rest for block in range(span.lo, span.hi)}
            assert covered == set(range(blocks))


def test_two_nodes_can_replace_nobody_and_it_says_why() -> None:
    result = CliRunner().invoke(demo, ["--nodes", "2"])
    assert result.exit_code == 2
    assert "nobody could replace" in result.output
    assert "--no-kill" in result.output


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_an_empty_prompt_is_refused_before_anything_starts(prompt: str) -> None:
    result = CliRunner().invoke(demo, ["--prompt", prompt])
    assert result.exit_code == 2
    assert "--prompt is empty" in result.output


def card(name: str, blocks: int, dimensions: int = 0) -> dict[str, object]:
    return {"id": name, "kwaai": {"blocks": blocks, "size": 9, "dimensions": dimensions}}


LISTED = [card("zeta", 4), card("echo", 0), card("minilm", 6, 384), card("alpha", 30)]


@pytest.mark.parametrize("wrong", ["nowhere", "echo", "minilm"])
def test_a_model_that_cannot_be_shared_out_says_which_can(wrong: str) -> None:
    with pytest.raises(DemoFailed) as refused:
        chosen(wrong, 3, LISTED)
    assert f"no model “{wrong}” here" in str(refused.value)
    assert "those that can: alpha, zeta; " in str(refused.value)
    assert "kwaai models add FILE" in str(refused.value)
    with pytest.raises(DemoFailed, match="those that can: none"):
        chosen(wrong, 3, LISTED[1:3])


def test_a_model_is_chosen_with_blocks_for_all() -> None:
    assert chosen("zeta", 4, LISTED)["blocks"] == 4
    with pytest.raises(DemoFailed, match="zeta has 4 blocks: too few"):
        chosen("zeta", 5, LISTED)


def test_a_model_without_a_chat_template_is_refused() -> None:
    check_template("m", {"chat_template": "{{ messages }}"})
    with pytest.raises(DemoFailed, match=r"m has no chat template .* choose .* --model"):
        check_template("m", {"chat_template": None})


NAMES = {"local": "node 1", "A": "node 2", "B": "node 3"}


def test_the_report_has_what_scripts_need() -> None:
    timing = [{"peer": "local", "replayed": 0}, {"peer": "B", "replayed": 30}]
    route = [{"peer": "local", "lo": 0, "hi": 2}, {"peer": "B", "lo": 2, "hi": 4}]
    answer = Answer(
        "ab", [0.0, 0.1, 0.6, 0.7], 40, 10, "local:0-2, A:2-4", {"route": route, "timing": timing}
    )
    script = Script("m", "p", 3, True, Path())
    told = story._report(script, Answer("ab", [0.0, 0.1], 40, 10), answer, ["A"], NAMES)
    assert json.loads(json.dumps(told)) == told
    assert told["same_text"] is True
    assert told["route_before"] == [route[0], {"peer": "A", "lo": 2, "hi": 4}]
    assert told["route_after"] == route
    assert (told["killed"], told["replayed_tokens"]) == ("A", 30)
    assert (told["tokens_before_kill"], told["tokens_after_kill"]) == (20, 20)
    assert told["longest_gap_ms"] == pytest.approx(500)
    assert (told["nodes"], told["names"]) == (3, NAMES)


def test_people_are_told_of_nodes_by_the_names_they_saw() -> None:
    route = [{"peer": "local", "lo": 0, "hi": 3}, {"peer": "B", "lo": 3, "hi": 4}]
    answer = Answer("ab", [0.0, 0.1], 40, 10, "local:0-3, A:3-4", {"route": route})
    script = Script("m", "p", 3, True, Path())
    words = _words(story._report(script, answer, answer, ["A"], NAMES))
    assert "route before: node 1 blocks 0–2 → node 2 block 3\n" in words
    assert "killed:       node 2, after" in words
    assert "route after:  node 1 blocks 0–2 → node 3 block 3\n" in words


def test_the_whole_model_has_as_many_threads_as_each_node() -> None:
    script = Script("m", "p", 3, True, Path(), blocks=4, size=4)
    each = {story._config(script, span)["llama"]["threads"] for span in spans_of(3, 4)}
    assert each == {story._whole_config(script)["llama"]["threads"]} == {script.threads}
    answer = Answer("ab", [0.0, 0.1], 40, 10, "local:0-2, A:2-4")
    told = story._report(script, answer, answer, [], NAMES)
    assert told["threads"] == script.threads
    assert "of the whole model in one process with as many threads as each node" in _words(told)


def test_a_node_that_does_not_start_says_its_last_words(tmp_path: Path) -> None:
    wrong = {"server": {"host": "nowhere.invalid"}}
    with (
        pytest.raises(DemoFailed, match=r"node 7 ended before it listened: .*host"),
        node("node 7", tmp_path / "node", wrong, tmp_path / "none"),
    ):
        pass
