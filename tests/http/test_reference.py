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
from kwaai_core.openai.bodies import REQUESTS
from kwaai_core.openai.describe import OPERATIONS
from kwaai_core.openai.described import IGNORED, NEUTRAL
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


def rows() -> dict[str, tuple[str, str]]:
    """The range and the default of each honoured parameter, as the page has them."""
    text = section("### Honoured", "### Accepted and")
    found = re.findall(r"^\| (`.*?) \| (.*?) \| (.*?) \|$", text, re.MULTILINE)
    return {
        name: (extent, default)
        for names, extent, default in found
        for name in re.findall(r"`(\w+)`", names)
    }


def honoured(request: str) -> dict[str, Any]:
    """The schemas of the parameters that do something."""
    schemas: Any = REQUESTS[request](ServerSettings().max_messages)["properties"]
    return {
        name: schema
        for name, schema in schemas.items()
        if schema.get("description") not in (IGNORED, NEUTRAL)
    }


def shown(number: float) -> str:
    """A number as the page writes it."""
    return "2³¹−1" if number == 2**31 - 1 else f"{number:g}".replace("-", "−")


def test_the_honoured_parameters_are_honoured() -> None:
    for name in rows():
        parse = parse_completion if name in COMPLETIONS else parse_chat
        body = {"model": "m", "prompt": "x"} if name in COMPLETIONS else chat_body()
        with pytest.raises(errors.RequestError) as refused:
            parse(json.dumps(body | {name: {"odd": {}}}).encode())
        assert not (isinstance(refused.value, UnsupportedParameter) and refused.value.param == name)
    assert isinstance(parse_chat(json.dumps(chat_body()).encode()), Call)


def test_the_honoured_parameters_are_these() -> None:
    chat, text = honoured("ChatRequest"), honoured("CompletionRequest")
    assert rows().keys() == chat.keys() | text.keys()
    for name, (extent, _) in rows().items():
        assert ("chat only" in extent) == (name not in text), name
        assert ("completions only" in extent) == (name not in chat), name


@pytest.mark.parametrize("request_", ["ChatRequest", "CompletionRequest"])
def test_the_ranges_and_defaults_are_these(request_: str) -> None:
    for name, schema in honoured(request_).items():
        extent, default = rows()[name]
        said = "a signed 64-bit integer" in extent or "1, or `n`" in extent
        if "maximum" in schema and not said:
            low, high = shown(schema["minimum"]), shown(schema["maximum"])
            assert (
                f"{low} to {high}" in extent or f" to {high}; in completions also {low}" in extent
            )
        if isinstance(given := schema.get("default"), int | float) and name != "logprobs":
            assert default == (json.dumps(given) if isinstance(given, bool) else shown(given)), name
    kwaai = honoured(request_)["kwaai"]["properties"]
    named = re.findall(r"`(\w+)`", rows()["kwaai"][0])
    assert {name for name in kwaai if name != "knowledge"} <= set(named)


def test_the_parameters_of_embeddings_are_these() -> None:
    table = section("| parameter | what it may be |", "Every other name is")
    properties: Any = REQUESTS["EmbeddingsRequest"](0)["properties"]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == properties.keys()


@pytest.mark.parametrize(
    ("request_", "start", "end"),
    [
        ("ResponseRequest", "## Responses", "## Texts and tokens"),
        ("TokenizeText", "## Texts and tokens", "## Streams"),
        ("TokenizeMessages", "## Texts and tokens", "## Streams"),
        ("DetokenizeRequest", "## Texts and tokens", "## Streams"),
    ],
)
def test_other_parameters_are_named(request_: str, start: str, end: str) -> None:
    known = rows().keys() if request_ == "ResponseRequest" else set()
    named = set(re.findall(r"`(\w+)`", section(start, end)))
    assert honoured(request_).keys() - known <= named


def test_the_paths_are_these() -> None:
    table = section("| path | method |", "Every GET answers")
    found = re.findall(r"^\| (.*?) \| (\w.*?) \| (.*?) \|$", table, re.MULTILINE)
    paths = {
        (method, prefix + path.replace("<", "{").replace(">", "}"))
        for names, methods, says in found
        for path in re.findall(r"`(.*?)`", names)
        for method in methods.split(", ")
        for prefix in (["", "/v1"] if "under `/v1` too" in says else [""])
    }
    assert paths == OPERATIONS.keys()


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
