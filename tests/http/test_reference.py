"""The reference page says what the code does."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kwaai_core import errors
from kwaai_core.config import ServerSettings
from kwaai_core.errors import ConfigError, KwaaiError, NodeRunning, NoNode, UnsupportedParameter
from kwaai_core.openai import Call, parse_chat, parse_completion, parse_response, responses
from kwaai_core.openai import requests as parser
from kwaai_core.openai.prompts import MAX_CHOICES
from kwaai_core.openai.sampling import MAX_BIASES, MAX_STOPS
from kwaai_core.openai.strict import MAX_DEPTH

from .conftest import chat_body

PAGE = (Path(__file__).parents[2] / "docs/reference/http-api.md").read_text()
NEVER_ANSWERED = (ConfigError, NodeRunning, NoNode)
COMPLETIONS = ("prompt", "echo", "best_of")


def section(start: str, end: str) -> str:
    return PAGE[PAGE.index(start) : PAGE.index(end, PAGE.index(start))]


def accepted(text: str) -> dict[str, tuple[Any, ...]]:
    """The table of values that change nothing, as the page has it."""
    table = {}
    for names, values in re.findall(r"^\| (`.*?) \| (.*?) \|$", text, re.MULTILINE):
        parsed = [json.loads(value.strip("`")) for value in re.split(r", (?![^{]*})", values)]
        for name in re.findall(r"`(\w+)`", names):
            table[name] = tuple(value for value in parsed if value is not None)
    return table


def test_the_values_that_change_nothing_are_these() -> None:
    chat = accepted(section("### Accepted where", "In completions"))
    text = accepted(section("In completions:", "Any other value"))
    assert chat == parser._NEUTRAL_CHAT
    assert text == parser._NEUTRAL_COMPLETION


def test_the_ignored_parameters_are_these() -> None:
    names = re.findall(r"`(\w+)`", section("They do not change", "### Accepted where"))
    assert sorted(names) == sorted(parser._IGNORED)


def test_the_honoured_parameters_are_these() -> None:
    names = re.findall(r"^\| `(\w+)` \|", section("### Honoured", "### Accepted and"), re.MULTILINE)
    for name in names:
        parse = parse_completion if name in COMPLETIONS else parse_chat
        body = {"model": "m", "prompt": "x"} if name in COMPLETIONS else chat_body()
        with pytest.raises(errors.RequestError) as refused:
            parse(json.dumps(body | {name: {"odd": {}}}).encode())
        assert not (isinstance(refused.value, UnsupportedParameter) and refused.value.param == name)
    assert isinstance(parse_chat(json.dumps(chat_body()).encode()), Call)


def test_the_page_has_every_parameter_of_a_response() -> None:
    page = section("## Responses", "## Texts and tokens")
    ignored = re.findall(r"`(\w+)`", section("Also accepted, and ignored", "The text of an answer"))
    assert sorted(["store", *ignored]) == sorted(responses._IGNORED)
    for name in responses._WHY_NOT:
        assert f"`{name}`" in page
    names = re.findall(r"^\| `(\w+)`", page, re.MULTILINE)
    for name in names:
        with pytest.raises(errors.RequestError) as refused:
            parse_response(json.dumps({"model": "m", "input": "x", name: [{"odd": 1}]}).encode())
        assert str(refused.value.param).startswith(name)
        assert "no parameter" not in refused.value.message or "." in str(refused.value.param)


def test_every_error_that_can_be_answered_is_in_the_table() -> None:
    table = section("| status | code |", "## Who may")
    for error in vars(errors).values():
        if not (isinstance(error, type) and issubclass(error, KwaaiError)):
            continue
        if issubclass(error, NEVER_ANSWERED):
            continue
        code = "null" if error.code is None else f"`{error.code}`"
        assert f"| {error.status} | {code} |" in table, error.__name__


def test_the_limits_are_these() -> None:
    server, page = ServerSettings(), PAGE.replace("\n", " ")
    assert f"1 to {server.max_messages} messages" in page
    assert f"within {server.body_timeout:g} seconds" in page
    assert f"nested at most {MAX_DEPTH} levels" in page
    assert f"up to {MAX_STOPS}, none" in PAGE
    assert f"up to {MAX_BIASES} numbers of tokens" in PAGE
    assert f"1 to {MAX_CHOICES}; with several prompts" in PAGE
    assert f"0 to {parser.MAX_LOGPROBS}" in PAGE
