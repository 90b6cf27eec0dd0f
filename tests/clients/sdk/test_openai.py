"""The openai SDK for Python: blocking, and asynchronous on asyncio and on trio."""

import math
from collections.abc import Callable
from operator import mul
from typing import Any, Literal

import anyio
import httpx
import openai
import pytest
from openai import AsyncOpenAI, LengthFinishReasonError, OpenAI
from pydantic import BaseModel

from tests.clients.conftest import SMOLLM2

# The SDK leaves its own generators to the garbage collector, which trio remarks upon.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator '(openai|http):ResourceWarning")

AtWork = Callable[[bool], None]

SAY: Any = [{"role": "user", "content": "Name three rivers in Europe."}]
GREEDY: Any = {"model": SMOLLM2, "messages": SAY, "max_tokens": 16, "temperature": 0}
ENDING: Any = GREEDY | {"max_tokens": 200, "stop": ["."]}
"""The SDK's helpers take an answer that was cut off at its length for an error."""
ENDLESS: Any = {
    "model": SMOLLM2,
    "prompt": "1, 2, 3,",
    "max_tokens": 4000,
    "logit_bias": {"2": -100},  # the token that would end it
}
CAPITALS = {"France": "Paris", "Italy": "Rome", "Germany": "Berlin", "Japan": "Tokyo"}
each_backend = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@pytest.fixture
def client(node: str) -> Any:
    with OpenAI(base_url=f"{node}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def on(backend: str, node: str, use: Callable[[AsyncOpenAI], Any]) -> Any:
    """What a coroutine makes of the asynchronous client."""

    async def main() -> Any:
        options: Any = {"api_key": "none", "max_retries": 0, "timeout": 60}
        async with AsyncOpenAI(base_url=f"{node}/v1", **options) as client:
            return await use(client)

    return anyio.run(main, backend=backend)


def test_models(client: OpenAI) -> None:
    listed = [model.id for model in client.models.list()]
    assert SMOLLM2 in listed
    found = client.models.retrieve(SMOLLM2)
    assert (found.id, found.object) == (SMOLLM2, "model")
    assert found.created > 0


def test_a_conversation_and_its_stream_are_the_same_text(client: OpenAI) -> None:
    whole = client.chat.completions.create(**GREEDY)
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 16
    usage: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(**GREEDY, stream=True, stream_options=usage))
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 16
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"


def test_the_helper_of_streams(client: OpenAI) -> None:
    with client.chat.completions.stream(**ENDING) as stream:
        kinds = {event.type for event in stream}
        answer = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    expected = client.chat.completions.create(**ENDING).choices[0].message.content
    assert answer.choices[0].message.content == expected
    with client.chat.completions.stream(**GREEDY) as stream, pytest.raises(LengthFinishReasonError):
        stream.get_final_completion()


def test_several_choices_differ_and_come_again_with_their_seed(client: OpenAI) -> None:
    asked = GREEDY | {"temperature": 1.5, "n": 3, "seed": 7}
    first, again = (client.chat.completions.create(**asked) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in again.choices]


def test_probabilities_of_a_conversation(client: OpenAI) -> None:
    answer = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 16
    assert "".join(one.token for one in logprobs.content) == answer.choices[0].message.content
    for one in logprobs.content:
        assert one.logprob == max(other.logprob for other in one.top_logprobs)  # as it is greedy
        assert len(one.top_logprobs) == 3
        assert math.fsum(math.exp(other.logprob) for other in one.top_logprobs) <= 1.0001


def test_texts_and_tokens_to_go_on_from(client: OpenAI) -> None:
    asked: Any = {"model": SMOLLM2, "max_tokens": 4, "temperature": 0}
    done = client.completions.create(
        prompt=["The capital of France is", "The capital of Italy is"], logprobs=1, **asked
    )
    assert [choice.index for choice in done.choices] == [0, 1]
    assert "Paris" in done.choices[0].text
    assert "Rome" in done.choices[1].text
    for choice in done.choices:
        assert choice.logprobs is not None
        assert "".join(choice.logprobs.tokens or ()) == choice.text
        assert choice.logprobs.text_offset is not None
    stream = client.completions.create(prompt="The capital of France is", stream=True, **asked)
    assert "".join(chunk.choices[0].text for chunk in stream) == done.choices[0].text


def test_what_is_ours_goes_through_extra_body(client: OpenAI) -> None:
    extra = {"min_p": 0.1, "top_k": 5, "kwaai": {"min_tier": "unknown", "timing": True}}
    answer = client.chat.completions.create(**GREEDY, extra_body=extra)
    route: Any = answer.model_extra
    assert route["kwaai"]["route"][0]["lo"] == 0
    raw = client.chat.completions.with_raw_response.create(**GREEDY)
    assert raw.headers["x-request-id"]
    assert raw.headers["x-kwaai-route"].startswith("local:0-")


def test_stop_ends_an_answer(client: OpenAI) -> None:
    counted = client.completions.create(
        model=SMOLLM2, prompt="1, 2, 3, 4,", max_tokens=40, temperature=0, stop=["7", "never"]
    )
    assert counted.choices[0].finish_reason == "stop"
    assert counted.choices[0].text.strip() == "5, 6,"


@each_backend
def test_several_at_once(backend: str, node: str) -> None:
    async def use(client: AsyncOpenAI) -> None:
        async with anyio.create_task_group() as tasks:
            for country, capital in CAPITALS.items():
                tasks.start_soon(check, client, country, capital)

    async def check(client: AsyncOpenAI, country: str, capital: str) -> None:
        prompt = f"The capital of {country} is"
        asked: Any = {"model": SMOLLM2, "prompt": prompt, "max_tokens": 4, "temperature": 0}
        stream = await client.completions.create(**asked, stream=True)
        assert capital in "".join([chunk.choices[0].text async for chunk in stream])

    on(backend, node, use)


@each_backend
def test_the_asynchronous_helper_and_models(backend: str, node: str) -> None:
    async def use(client: AsyncOpenAI) -> str:
        assert SMOLLM2 in [model.id async for model in client.models.list()]
        async with client.chat.completions.stream(**ENDING) as stream:
            answer = await stream.get_final_completion()
        whole = await client.chat.completions.create(**ENDING)
        assert answer.choices[0].message.content == whole.choices[0].message.content
        return whole.choices[0].message.content or ""

    assert on(backend, node, use)


@each_backend
def test_a_call_that_is_cancelled_ends_the_work(backend: str, node: str, at_work: AtWork) -> None:
    async def use(client: AsyncOpenAI) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: client.completions.create(**ENDLESS))
            await anyio.to_thread.run_sync(at_work, True)
            tasks.cancel_scope.cancel()

    on(backend, node, use)
    at_work(False)


@each_backend
def test_a_stream_that_is_left_ends_the_work(backend: str, node: str, at_work: AtWork) -> None:
    async def use(client: AsyncOpenAI) -> None:
        async with await client.completions.create(**ENDLESS, stream=True) as stream:
            async for _ in stream:
                break
            await anyio.to_thread.run_sync(at_work, True)

    on(backend, node, use)
    at_work(False)


def test_a_call_that_takes_too_long_ends_the_work(client: OpenAI, at_work: AtWork) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.completions.create(**ENDLESS, timeout=httpx.Timeout(60, read=1))
    at_work(False)


def test_errors_are_the_sdks_own(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nothing", messages=SAY)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**GREEDY, extra_body={"beams": 4})
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "beams")
    with pytest.raises(openai.BadRequestError) as high:
        client.chat.completions.create(**(GREEDY | {"temperature": 3}))
    assert (high.value.code, high.value.param) == (None, "temperature")
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=SMOLLM2, prompt="word " * 20_000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="a river")
    with pytest.raises(openai.APIStatusError) as large:
        client.completions.create(model=SMOLLM2, prompt="word " * 300_000)
    assert (large.value.status_code, large.value.code) == (413, "request_too_large")


def test_an_error_of_a_stream_comes_before_it(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nothing", messages=SAY, stream=True)


def test_who_is_not_there_is_a_connection_error() -> None:
    with (
        OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.APIConnectionError),
    ):
        client.models.list()


class Sea(BaseModel):
    """What an answer is made to say something of."""

    name: Literal["North Sea", "Baltic Sea"]
    salty: bool


def test_an_answer_is_parsed_into_a_model(client: OpenAI) -> None:
    asked: Any = GREEDY | {"max_tokens": 60}
    answer = client.chat.completions.parse(**asked, response_format=Sea)
    assert isinstance(answer.choices[0].message.parsed, Sea)
    response = client.responses.parse(
        model=SMOLLM2, input="Name a sea.", temperature=0, text_format=Sea, max_output_tokens=60
    )
    assert isinstance(response.output_parsed, Sea)


def test_an_echo_has_the_probabilities_of_the_prompt(client: OpenAI) -> None:
    done = client.completions.create(
        model=SMOLLM2, prompt="The capital of France is", echo=True, max_tokens=0, logprobs=1
    )
    choice = done.choices[0]
    assert choice.text == "The capital of France is"
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs is not None
    first, *others = choice.logprobs.token_logprobs
    assert first is None
    assert len(others) >= 4
    assert all(logprob < 0 for logprob in others)


def test_vectors_in_both_forms(client: OpenAI) -> None:
    texts = ["a red house", "a house that is red", "seven hungry sharks"]
    asked: Any = {"model": "all-minilm-l6-v2", "input": texts}
    binary = [entry.embedding for entry in client.embeddings.create(**asked).data]
    plain = client.embeddings.create(**asked, encoding_format="float").data
    for one, other in zip(binary, plain, strict=True):
        assert one == pytest.approx(other.embedding, rel=1e-6)
    near, far = (sum(map(mul, binary[0], other)) for other in binary[1:])
    assert near > 0.8 > far


def test_responses_whole_and_streamed(client: OpenAI) -> None:
    asked: Any = {
        "model": SMOLLM2,
        "instructions": "You are a helpful assistant.",
        "input": "Name three rivers in Europe.",
        "max_output_tokens": 12,
        "temperature": 0,
    }
    whole = client.responses.create(**asked)
    assert whole.output_text
    assert whole.usage is not None
    assert whole.usage.output_tokens == 12
    events = list(client.responses.create(**asked, stream=True))
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == whole.output_text
    assert [event.sequence_number for event in events] == [*range(len(events))]
    # the helper takes a response that was cut off at its length for no response at all
    ending = asked | {"max_output_tokens": 200, "extra_body": {"stop": ["."]}}
    with client.responses.stream(**ending) as stream:
        helped = stream.get_final_response()
    assert helped.status == "completed"
    assert helped.output_text == client.responses.create(**ending).output_text
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(whole.id)
