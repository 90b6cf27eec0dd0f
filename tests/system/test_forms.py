"""JSON by a schema and calls of tools, of a real node, as OpenAI's SDK asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field
from real_kwaai import Home

from kwaai_core.testing.models import TINY_QWEN2, write_random_model
from kwaai_core.testing.templates import TAGGED_TOOLS

# The SDK leaves its own generators to the garbage collector, which trio remarks upon.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator '(openai|http):ResourceWarning")

SMOLLM2, TOOLS = "smollm2-135m-instruct", "tools"
ADA: Any = [{"role": "user", "content": "Ada is a painter of 36. Who is Ada? Answer in JSON."}]
PARIS: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


class Tag(BaseModel):
    kind: Literal["tag"]
    word: str = Field(max_length=8)


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)
    job: Literal["painter", "doctor"] | None
    tags: list[Tag] = Field(max_length=2)


class Weather(BaseModel):
    """The weather in a city."""

    city: str = Field(max_length=10)
    unit: Literal["C", "F"]


class Clock(BaseModel):
    zone: Literal["UTC", "CET"]


CALLS = [
    openai.pydantic_function_tool(Weather, name="weather"),
    openai.pydantic_function_tool(Clock, name="clock"),
]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A node with the bundled model, and a random one whose template has tools."""
    home = Home(tmp_path_factory.mktemp("forms"))
    path = write_random_model(home.folder / "tools.gguf", TINY_QWEN2, template=TAGGED_TOOLS)
    done = home.kwaai("models", "add", str(path))
    assert done.returncode == 0, done.stderr
    with home.run() as running:
        yield str(running.url)


def sdk(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def parsed(completion: Any) -> list[BaseModel]:
    (choice,) = completion.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    return [call.function.parsed_arguments for call in choice.message.tool_calls]


@pytest.mark.parametrize("model", [SMOLLM2, TOOLS])
def test_a_model_of_pydantic(both: str, model: str) -> None:
    with sdk(both) as client:
        answer = client.chat.completions.parse(
            model=model, messages=ADA, response_format=Person, temperature=0, max_tokens=200
        )
    assert isinstance(answer.choices[0].message.parsed, Person)


def test_a_model_of_pydantic_streams(both: str) -> None:
    with (
        sdk(both) as client,
        client.chat.completions.stream(
            model=TOOLS, messages=ADA, response_format=Person, max_tokens=200
        ) as stream,
    ):
        answer = stream.get_final_completion()
    assert isinstance(answer.choices[0].message.parsed, Person)


def test_forced_calls(both: str) -> None:
    more: Any = {"model": TOOLS, "messages": PARIS, "tools": CALLS, "parallel_tool_calls": False}
    named: Any = {"type": "function", "function": {"name": "clock"}}
    with sdk(both) as client:
        for seed in range(2):
            answer = client.chat.completions.parse(**more, tool_choice="required", seed=seed)
            (call,) = parsed(answer)
            assert isinstance(call, Weather | Clock)
            with client.chat.completions.stream(
                **more, tool_choice="required", seed=seed
            ) as stream:
                (call,) = parsed(stream.get_final_completion())
            assert isinstance(call, Weather | Clock)
        answer = client.chat.completions.parse(**more, tool_choice=named)
        assert [type(call) for call in parsed(answer)] == [Clock]
        answers = client.chat.completions.create(**more, tool_choice="required", n=3)
        calls = [choice.message.tool_calls for choice in answers.choices]
        assert len({call.id for some in calls for call in some or ()}) == 3


async def test_forced_calls_on_trio(both: str) -> None:
    more: Any = {"model": TOOLS, "messages": PARIS, "tools": CALLS, "parallel_tool_calls": False}
    async with openai.AsyncOpenAI(base_url=f"{both}/v1", api_key="none") as client:
        answer = await client.chat.completions.parse(**more, tool_choice="required", seed=1)
        assert len(parsed(answer)) == 1
        async with client.chat.completions.stream(**more, tool_choice="required", seed=1) as stream:
            assert len(parsed(await stream.get_final_completion())) == 1


def test_a_conversation_with_calls_goes_on(both: str) -> None:
    with sdk(both) as client:
        first = client.chat.completions.create(
            model=TOOLS, messages=PARIS, tools=CALLS, tool_choice="required",
            parallel_tool_calls=False,
        )  # fmt: skip
        message = first.choices[0].message
        assert message.tool_calls
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "7 degrees"}
        turns: Any = [*PARIS, message, result]
        second = client.chat.completions.create(
            model=TOOLS, messages=turns, tools=CALLS, tool_choice="none", max_tokens=4
        )
        assert second.usage is not None and first.usage is not None
        assert second.choices[0].message.tool_calls is None


def test_what_a_node_does_not_do_is_refused_by_name(both: str) -> None:
    pattern: Any = {"type": "object", "properties": {"a": {"type": "string", "pattern": "a+"}}}
    form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": pattern}}
    tool: Any = {
        "type": "function",
        "function": {"name": "a", "parameters": pattern, "strict": True},
    }
    with sdk(both) as client:
        for more, param in [
            ({"model": SMOLLM2, "tools": CALLS}, "tools"),
            ({"model": TOOLS, "response_format": form},
             "response_format.json_schema.schema.properties.a.pattern"),
            ({"model": TOOLS, "tools": [*CALLS, tool]},
             "tools[2].function.parameters.properties.a.pattern"),
        ]:  # fmt: skip
            with pytest.raises(openai.BadRequestError) as refused:
                client.chat.completions.create(messages=PARIS, **more)
            assert (refused.value.param, refused.value.code) == (param, "unsupported_parameter")
