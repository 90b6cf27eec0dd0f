"""OpenAI's own SDK, synchronous and on trio, against a node on loopback."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
import trio
from openai.types.chat import ChatCompletionChunk

from kwaai_core.errors import Busy, WorkerLost
from kwaai_core.types import Delta

from .conftest import CARD, Served

# The SDK leaves its own generators to the garbage collector, which trio remarks upon.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator '(openai|http):ResourceWarning")

MESSAGES: Any = [{"role": "user", "content": "hi"}]


def sdk(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=10)


def async_sdk(served: Served, retries: int = 0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{served.url}/v1", api_key="none", max_retries=retries, timeout=10
    )


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


async def in_thread(call: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(call)


async def test_the_synchronous_client(served: Served) -> None:
    def use() -> None:
        with sdk(served) as client:
            answer = client.chat.completions.create(model=CARD.id, messages=MESSAGES)
            assert answer.choices[0].message.content == "Hello"
            assert answer.choices[0].finish_reason == "stop"
            assert answer.usage is not None
            assert answer.usage.total_tokens == 14
            assert answer._request_id is not None
            assert [model.id for model in client.models.list()] == [CARD.id]
            assert client.models.retrieve(CARD.id).created == 7
            assert client.completions.create(model=CARD.id, prompt="x").choices[0].text == "Hello"

    await in_thread(use)


async def test_the_synchronous_client_streams(served: Served) -> None:
    def use() -> None:
        with (
            sdk(served) as client,
            client.chat.completions.create(
                model=CARD.id,
                messages=MESSAGES,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"top_k": 1, "kwaai": {"exact": True}},
            ) as stream,
        ):
            chunks = list(stream)
        assert chunks[0].choices[0].delta.role == "assistant"
        assert text_of(chunks) == "Hello"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 3
        assert chunks[-2].choices[0].finish_reason == "stop"

    await in_thread(use)
    request = served.executor.plays[0].request
    assert request.sampling.top_k == 1
    assert request.exact is True


async def test_the_asynchronous_client_on_trio(served: Served) -> None:
    async with async_sdk(served) as client:
        answer = await client.chat.completions.create(model=CARD.id, messages=MESSAGES)
        assert answer.choices[0].message.content == "Hello"
        stream = await client.chat.completions.create(model=CARD.id, messages=MESSAGES, stream=True)
        assert text_of([chunk async for chunk in stream]) == "Hello"
        text = await client.completions.create(model=CARD.id, prompt="x", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in text]) == "Hello"


async def test_the_helper_that_gathers_a_stream(served: Served) -> None:
    async with (
        async_sdk(served) as client,
        client.chat.completions.stream(model=CARD.id, messages=MESSAGES) as stream,
    ):
        answer = await stream.get_final_completion()
    assert answer.choices[0].message.content == "Hello"


async def test_errors_arrive_as_the_sdks_own(served: Served) -> None:
    async with async_sdk(served) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="nope", messages=MESSAGES)
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model=CARD.id, messages=MESSAGES, verbosity="low")
        assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "verbosity")
        served.executor.entering = Busy("the queue is full", retry_after=3)
        with pytest.raises(openai.RateLimitError) as busy:
            await client.chat.completions.create(model=CARD.id, messages=MESSAGES)
        assert busy.value.response.headers["retry-after"] == "3"


async def test_a_failure_in_mid_stream_is_not_taken_for_success(served: Served) -> None:
    pause = trio.Event()
    served.executor.script = [Delta("Hel"), pause, WorkerLost("the worker died")]
    async with async_sdk(served) as client:
        stream = await client.chat.completions.create(model=CARD.id, messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="the worker died"):
            async for chunk in stream:
                if chunk.choices[0].delta.content:
                    pause.set()


async def test_closing_a_stream_cancels_the_work(served: Served) -> None:
    served.executor.script = [Delta("Hel"), trio.Event()]
    async with async_sdk(served) as client:
        stream = await client.chat.completions.create(model=CARD.id, messages=MESSAGES, stream=True)
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        assert not served.executor.plays[0].left.is_set()
        await stream.close()
        await served.executor.plays[0].left.wait()
