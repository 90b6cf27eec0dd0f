"""Calls of tools: how a template's form is found, and how text is taken apart by it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwaai_core import CallPiece, Message, Tool, ToolCall
from kwaai_core.testing.models import CHAT_TEMPLATE
from kwaai_core.testing.templates import BARE_TOOLS, STRANGE_TOOLS, TAGGED_TOOLS
from kwaai_lobe_llama.worker.calling import TAGGED, CallForm, CallReader, Trigger, manners
from kwaai_lobe_llama.worker.template import ChatTemplate

BARE = CallForm('{"name": "', "", '", "parameters": ', "}", None, bare=True)


def test_white_space_after_a_call_is_between_two_of_them() -> None:
    source = TAGGED_TOOLS.replace("</tool_call>", "</tool_call>\n")
    assert manners(ChatTemplate(source)).form == replace(TAGGED, again="\n\n")


@pytest.mark.parametrize(
    ("source", "tools", "calls", "form"),
    [
        (TAGGED_TOOLS, True, True, TAGGED),
        (BARE_TOOLS, True, True, BARE),
        (STRANGE_TOOLS, True, True, None),
        (CHAT_TEMPLATE, False, False, None),
        ("{% for m in messages %}{{ raise_exception('no') }}{% endfor %}", False, False, None),
        (CHAT_TEMPLATE + "{{ tools }}", True, False, None),
    ],
    ids=["tagged", "bare", "strange", "none", "refuses", "tools alone"],
)
def test_the_manners_of_a_template_are_found(
    source: str, tools: bool, calls: bool, form: CallForm | None
) -> None:
    found = manners(ChatTemplate(source))
    assert (found.tools, found.calls, found.form) == (tools, calls, form)


def test_tools_calls_and_results_are_laid_out() -> None:
    call = ToolCall("c1", "add", '{"a": 1, "b": "ü"}')
    turns = (
        Message("user", "hi"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "42", tool_call_id="c1"),
    )
    tool = Tool("add", "It adds.", '{"type": "object", "title": "ä"}')
    text = ChatTemplate(TAGGED_TOOLS).render(turns, [tool])
    assert (
        '{"type": "function", "function": {"name": "add", "description": "It adds.", '
        '"parameters": {"type": "object", "title": "ä"}}}\n'
    ) in text
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "ü"}}\n</tool_call>' in text
    assert "(c1) 42" in text


def written(form: CallForm, calls: list[tuple[str, str]]) -> str:
    texts = [
        form.marker + form.frame + name + form.between + arguments + form.close
        for name, arguments in calls
    ]
    return (form.again or "").join(texts)


def read(reader: CallReader, text: str, sizes: list[int]) -> tuple[str, list[tuple[str, str]]]:
    """What a reader makes of a text that comes in pieces of these sizes, over and over."""
    said, pieces, at, turn = "", list[CallPiece](), 0, 0
    while at < len(text):
        size = sizes[turn % len(sizes)]
        more, found = reader.push(text[at : at + size])
        at, turn, said = at + size, turn + 1, said + more
        pieces += found
    more, found = reader.push("", last=True)
    calls: dict[int, tuple[str, str]] = {}
    for piece in [*pieces, *found]:
        assert (piece.name is not None) == (piece.index not in calls)
        name, arguments = calls.get(piece.index, (piece.name or "", ""))
        calls[piece.index] = (name, arguments + piece.arguments)
    assert list(calls) == list(range(len(calls)))
    return said + more, list(calls.values())


names = st.text(alphabet="abc_-0", min_size=1, max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='{}[]"\\ aü<', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
arguments = st.dictionaries(st.text(max_size=4), values, max_size=3).map(json.dumps)
cuts = st.lists(st.integers(1, 9), min_size=1, max_size=5)
texts = st.text(alphabet="<tool_cal> \n{x", max_size=30)


@given(st.lists(st.tuples(names, arguments), min_size=1, max_size=3), texts, cuts)
def test_calls_in_tags_are_read_however_they_are_cut(
    calls: list[tuple[str, str]], before: str, sizes: list[int]
) -> None:
    reader = CallReader(TAGGED)
    said, found = read(reader, before + written(TAGGED, calls), sizes)
    assert (said, found) == (before.rstrip(), calls)
    assert reader.called


@given(names, arguments, st.sampled_from(["", "\n", "  "]), cuts)
def test_a_bare_call_is_read_however_it_is_cut(
    name: str, value: str, before: str, sizes: list[int]
) -> None:
    reader = CallReader(BARE)
    assert read(reader, before + written(BARE, [(name, value)]), sizes) == ("", [(name, value)])
    assert reader.called


@given(st.sampled_from([TAGGED, BARE]), texts | st.text(), cuts)
def test_text_without_a_call_is_the_text(form: CallForm, text: str, sizes: list[int]) -> None:
    reader = CallReader(form)
    if form.marker not in text:
        assert read(reader, text, sizes) == (text, [])
        assert not reader.called


@pytest.mark.parametrize(
    "text", ["<tool_call>", "<tool_call>\n", '<tool_call>{"x": 1}', "<tool_call>\n[]", "a <tool"]
)
def test_what_only_looks_like_a_call_is_text(text: str) -> None:
    assert read(CallReader(TAGGED), text, [1]) == (text, [])


def test_a_bare_call_after_text_is_text() -> None:
    text = 'Well: {"name": "f", "parameters": {}}'
    assert read(CallReader(BARE), text, [3]) == (text, [])


def test_text_is_not_held_back_without_reason() -> None:
    reader = CallReader(TAGGED)
    said = [reader.push(piece)[0] for piece in ["a", " b ", "<", "c", "\n", "<tool_", "x"]]
    assert said == ["a", " b", "", " <c", "", "", "\n<tool_x"]


def test_an_answer_that_is_cut_in_a_call_has_begun_and_not_completed_it() -> None:
    for text in ['<tool_call>\n{"name": "fu', '<tool_call>\n{"name": "f", "arguments": {"a": "}']:
        reader = CallReader(TAGGED)
        read(reader, text, [2])
        assert reader.begun and not reader.called


@given(texts, cuts, names)
def test_a_trigger_sees_what_the_reader_takes_for_a_call(
    before: str, sizes: list[int], name: str
) -> None:
    trigger = Trigger(TAGGED, [name])
    text = (before + TAGGED.marker).encode()
    at, turn, fired = 0, 0, False
    while at < len(text):
        size = sizes[turn % len(sizes)]
        fired = trigger.push(text[at : at + size])
        at, turn = at + size, turn + 1
        assert fired == (at >= len(text))
    assert trigger.begun == (TAGGED.frame, "")
    assert not trigger.push(text)


@pytest.mark.parametrize(
    ("form", "pieces", "begun"),
    [
        (TAGGED, ["<tool_call>\n"], ('{"name": "', "")),
        (TAGGED, ["<tool_call>{"], ('"name": "', "")),
        (TAGGED, ['x<tool_', 'call>\n{"name": "ge'], ("", "ge")),
        (TAGGED, ['<tool_call>\n{"name": "other'], None),
        (TAGGED, ["<tool_call>no", "<tool_call>"], ('\n{"name": "', "")),
        (BARE, ['\n {"', "name", '": "'], ("", "")),
        (BARE, ['{"', "name", '": "get"'], ("", 'get"')),
        (BARE, ['{"', "name", '": "other'], None),
        (BARE, ['a{"name": "'], None),
        (BARE, ["a", '{"name": "'], None),
    ],
)  # fmt: skip
def test_a_call_begins_within_a_token(form: CallForm, pieces: list[str], begun: Any) -> None:
    trigger = Trigger(form, ["get", "set"])
    fired = [trigger.push(piece.encode()) for piece in pieces]
    assert any(fired) == (begun is not None)
    assert trigger.begun == begun
