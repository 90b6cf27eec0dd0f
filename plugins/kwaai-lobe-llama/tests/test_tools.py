"""Calls of tools of real workers: forced, left to the model, and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kwaai_core import (
    Delta,
    Message,
    RequestError,
    Sampling,
    Tool,
    ToolCall,
    Tools,
    UnsupportedParameter,
)
from kwaai_core.gguf import read_gguf
from kwaai_core.testing.models import TINY, TINY_QWEN2, write_random_model
from kwaai_core.testing.templates import BARE_TOOLS, STRANGE_TOOLS, TAGGED_TOOLS
from kwaai_lobe_llama.gguf_writer import Source, string, write_gguf
from kwaai_lobe_llama.jobs import Job
from kwaai_lobe_llama.process import Worker

from .conftest import OpenWorker
from .test_worker import plan

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TIME: dict[str, Any] = {
    "type": "object",
    "properties": {"zone": {"enum": ["UTC", "CET"]}},
    "required": ["zone"],
}
SHOWN = (
    Tool("get_weather", "The weather in a city.", json.dumps(WEATHER)),
    Tool("get_time", None, json.dumps(TIME)),
)
SCHEMAS = {"get_weather": WEATHER, "get_time": TIME}
FORCED = Tools(SHOWN, (0, 1), required=True)
AUTO = Tools(SHOWN, (0, 1))
PARIS = (Message("user", "What is the weather in Paris?"),)


def job(tools: Tools, *, seed: int = 0, temperature: float = 1.0, tokens: int = 300) -> Job:
    return Job(PARIS, Sampling(temperature, seed=seed), max_tokens=tokens, tools=tools)


async def ask(worker: Worker, job: Job) -> tuple[str, list[tuple[str, str]], Delta]:
    """What is said, what is called, and the last delta."""
    text, calls, tokens = "", dict[int, tuple[str, str]](), 0
    async with worker.generate(job) as (answer, _):
        async for delta in answer:
            assert not (delta.text and calls), "text after a call"
            text += delta.text
            tokens += delta.tokens
            for piece in delta.calls:
                name, arguments = calls.get(piece.index, (piece.name or "", ""))
                calls[piece.index] = (name, arguments + piece.arguments)
    assert delta.usage is not None
    assert delta.usage.completion_tokens == tokens
    return text, list(calls.values()), delta


def check(calls: list[tuple[str, str]]) -> None:
    for name, arguments in calls:
        jsonschema.validate(json.loads(arguments), SCHEMAS[name])


@pytest.fixture(scope="session")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tagged")
    return write_random_model(folder / "tagged.gguf", TINY_QWEN2, template=TAGGED_TOOLS)


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(
        tmp_path_factory.mktemp("bare") / "bare.gguf", TINY, template=BARE_TOOLS
    )


@pytest.fixture(scope="session")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strange")
    return write_random_model(folder / "strange.gguf", TINY, template=STRANGE_TOOLS)


@pytest.fixture(scope="session")
def smollm2_with_tools(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real model, with a chat template that has tools."""
    path = tmp_path_factory.mktemp("smollm2") / "smollm2-tools.gguf"
    file = read_gguf(smollm2)
    metadata = dict(file.metadata) | {"tokenizer.chat_template": string(TAGGED_TOOLS)}
    sources = [Source(t.name, t.type, t.shape, t.nbytes, t.offset) for t in file.tensors]
    with smollm2.open("rb") as model:
        write_gguf(path, metadata, sources, model)
    return path


@pytest.mark.parametrize(
    "model", ["tagged", "bare", "strange", "smollm2_with_tools"], indirect=True
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_a_forced_call_fits_the_schema_of_its_function(
    model: Path, open_worker: OpenWorker, temperature: float
) -> None:
    async with open_worker(plan(model, context=1024)) as worker:
        for seed in range(3):
            tools = replace(FORCED, parallel=False)
            asked = job(tools, seed=seed, temperature=temperature)
            text, calls, last = await ask(worker, asked)
            assert (text, len(calls), last.finish) == ("", 1, "tool_calls")
            check(calls)


async def test_a_call_that_cannot_go_on_is_a_fault_of_the_tools(
    tagged: Path, tmp_path: Path, open_worker: OpenWorker
) -> None:
    data = tagged.read_bytes()
    brace = data.index(b"\x01\0\0\0\0\0\0\0{")  # the token «{», which now stands for no byte
    path = tmp_path / "without.gguf"
    path.write_bytes(data[: brace + 8] + b"\x01" + data[brace + 9 :])
    async with open_worker(plan(path, context=1024)) as worker:
        with pytest.raises(RequestError, match="no token") as caught:
            await ask(worker, job(FORCED))
        assert caught.value.param == "tools"


async def test_a_named_function_is_the_one_that_is_called(
    tagged: Path, open_worker: OpenWorker
) -> None:
    async with open_worker(plan(tagged, context=1024)) as worker:
        for number, name in enumerate(["get_weather", "get_time"]):
            tools = Tools(SHOWN, (number,), required=True, parallel=False)
            _, calls, _ = await ask(worker, job(tools))
            assert [called for called, _ in calls] == [name]


async def test_several_calls_only_where_they_are_wanted(
    tagged: Path, open_worker: OpenWorker
) -> None:
    """A random model ends after a call by chance alone, so some have more than one."""
    async with open_worker(plan(tagged, context=1024)) as worker:
        most = 0
        for seed in range(4):
            text, calls, last = await ask(worker, job(FORCED, seed=seed, tokens=500))
            assert text == ""
            whole = calls if last.finish == "tool_calls" else calls[:-1]
            check(whole)
            most = max(most, len(calls))
        assert most > 1


async def test_a_call_may_be_cut_by_its_length(tagged: Path, open_worker: OpenWorker) -> None:
    async with open_worker(plan(tagged, context=1024)) as worker:
        _, calls, last = await ask(worker, job(FORCED, tokens=50))
        assert last.finish == "length"
        assert calls[0][0] in SCHEMAS


@pytest.mark.parametrize("model", ["tagged", "bare"], indirect=True)
async def test_an_answer_that_may_call_may_say_something_else(
    model: Path, open_worker: OpenWorker
) -> None:
    async with open_worker(plan(model, context=1024)) as worker:
        text, calls, last = await ask(worker, job(AUTO, temperature=0, tokens=20))
        assert text and not calls
        assert last.finish in ("stop", "length")
        prompt_tokens = last.usage.prompt_tokens if last.usage else 0
        bare = replace(job(AUTO, temperature=0, tokens=20), tools=None)
        _, _, without = await ask(worker, bare)
        assert without.usage is not None and without.usage.prompt_tokens < prompt_tokens


@pytest.mark.parametrize(("marker", "token"), [("ba", 256), ("<|im_start|>", 510)])
async def test_a_call_that_a_model_begins_itself_is_held_to_its_form(
    tmp_path: Path, open_worker: OpenWorker, marker: str, token: int
) -> None:
    """The bias makes the marker's only token likely, which may be one without a text of its own;
    afterwards the grammar alone decides."""
    template = TAGGED_TOOLS.replace("<tool_call>", marker).replace("</tool_call>", "be")
    path = write_random_model(tmp_path / "marked.gguf", TINY_QWEN2, template=template)
    async with open_worker(plan(path, context=1024)) as worker:
        bias = ((token, 12.0),)
        found = 0
        for seed in range(4):
            sampling = Sampling(1.0, seed=seed, logit_bias=bias)
            tools = replace(AUTO, parallel=False)
            text, calls, last = await ask(worker, replace(job(tools), sampling=sampling))
            assert marker not in text
            if last.finish == "tool_calls":
                found += 1
                assert len(calls) == 1
                check(calls)
        assert found > 1


async def test_a_real_model_calls_in_the_middle_of_its_answer(
    smollm2_with_tools: Path, open_worker: OpenWorker
) -> None:
    """It is led to the marker by what it said before."""
    lead = "Let me look.\n"
    call = ToolCall("c1", "get_weather", '{"city": "Rome", "unit": "C"}')
    turns = list[Message]()
    for city in ("Rome", "Oslo", "Kyiv", "Bern", "Lima"):
        arguments = json.dumps({"city": city, "unit": "C"})
        turns += [
            Message("user", f"What is the weather in {city}?"),
            Message("assistant", lead, tool_calls=(replace(call, arguments=arguments),)),
            Message("tool", "7", tool_call_id="c1"),
        ]
    async with open_worker(plan(smollm2_with_tools, context=1024)) as worker:
        asked = replace(job(AUTO, temperature=0), prompt=(*turns, *PARIS))
        text, calls, last = await ask(worker, asked)
        assert text == lead.rstrip()
        assert calls and calls[0][0] == "get_weather"
        assert json.loads(calls[0][1]) == {"city": "Paris", "unit": "C"}
        assert last.finish in ("tool_calls", "length")


async def test_a_schema_for_what_is_said_beside_tools(
    tagged: Path, bare: Path, open_worker: OpenWorker
) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    kinds = set[str]()
    async with open_worker(plan(tagged, context=1024)) as worker:
        for seed in range(8):
            asked = replace(
                job(replace(AUTO, parallel=False), seed=seed), schema=json.dumps(schema)
            )
            text, calls, last = await ask(worker, asked)
            if last.finish != "length":
                kinds.add(last.finish or "")
                check(calls)
            if last.finish == "stop":
                jsonschema.validate(json.loads(text), schema)
        assert kinds
    async with open_worker(plan(bare)) as worker:
        with pytest.raises(UnsupportedParameter) as caught:
            await ask(worker, replace(job(AUTO), schema="{}"))
        assert caught.value.param == "response_format"


async def test_a_model_without_tools_says_so(qwen2: Path, open_worker: OpenWorker) -> None:
    async with open_worker(plan(qwen2)) as worker:
        with pytest.raises(UnsupportedParameter, match="template of this model has no tools") as no:
            await ask(worker, job(AUTO))
        assert no.value.param == "tools"
        turns = (*PARIS, Message("assistant", "", tool_calls=(ToolCall("c", "f", "{}"),)))
        with pytest.raises(UnsupportedParameter, match="no calls of tools") as no:
            await ask(worker, Job(turns, max_tokens=1))
        assert no.value.param == "messages[1].tool_calls"


async def test_a_form_that_is_not_read_is_refused_unless_a_call_is_forced(
    strange: Path, open_worker: OpenWorker
) -> None:
    async with open_worker(plan(strange)) as worker:
        with pytest.raises(UnsupportedParameter, match="required") as caught:
            await ask(worker, job(AUTO))
        assert caught.value.param == "tools"


@pytest.mark.parametrize(
    ("parameters", "at"),
    [
        ({"type": "object", "properties": {"a": {"pattern": "x"}}}, ".properties.a.pattern"),
        ({"type": "string"}, ""),
        ({"$ref": "#"}, ""),
        ({"type": "array", "minItems": 10**10}, ".minItems"),
        ({}, ""),
    ],
)
async def test_the_parameters_of_a_function_are_refused_by_name(
    tagged: Path, open_worker: OpenWorker, parameters: object, at: str
) -> None:
    async with open_worker(plan(tagged)) as worker:
        shown = (SHOWN[0], Tool("odd", None, json.dumps(parameters), strict=True))
        for required in True, False:
            with pytest.raises(RequestError) as caught:
                await ask(worker, job(Tools(shown, (0, 1), required)))
            assert caught.value.param == f"tools[1].function.parameters{at}"
        await ask(worker, job(Tools(shown, (0,)), tokens=2))  # that one is not to be called


STRANGE: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "url": {"type": "string", "format": "uri", "maxLength": 2083},
        "ids": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "maxItems": 2},
        "price": {"type": "number", "exclusiveMinimum": 0.5, "maximum": 9.5},
        "kind": {"oneOf": [{"const": "a"}, {"const": "a"}, {"type": "null"}]},
    },
    "required": ["url", "ids", "price", "kind", "other"],
    "if": {"properties": {"kind": {"const": "a"}}},
    "then": {"required": ["price"]},
    "unevaluatedProperties": False,
}


@pytest.mark.parametrize("parameters", [STRANGE, {}])
async def test_what_cannot_be_held_is_a_hint_where_a_function_is_not_strict(
    tagged: Path, open_worker: OpenWorker, parameters: dict[str, Any]
) -> None:
    odd = Tool("odd", None, json.dumps(parameters))
    async with open_worker(plan(tagged, context=2048)) as worker:
        found = await ask(worker, job(Tools((odd,), (0,), required=True, parallel=False)))
        (name, arguments) = found[1][0]
        assert name == "odd"
        if found[2].finish == "tool_calls":
            given = json.loads(arguments)
            assert given.keys() == {"url", "ids", "price", "kind"} or not parameters
        with pytest.raises(RequestError):
            await ask(worker, job(Tools((replace(odd, strict=True),), (0,), required=True)))
