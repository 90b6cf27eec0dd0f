"""litellm, which speaks to a node as to any server with OpenAI's API."""

import asyncio
import os
from typing import Any

import pytest

# or it asks a server for the prices of models as soon as it is imported
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

from tests.clients.conftest import SMOLLM2

# its logging leaves a coroutine behind now and then
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")

SAY = [{"role": "user", "content": "Name three rivers in Europe."}]


def asked(node: str, **more: Any) -> dict[str, Any]:
    options = {"max_tokens": 12, "temperature": 0, "num_retries": 0, "messages": SAY}
    place = {"model": f"openai/{SMOLLM2}", "api_base": f"{node}/v1", "api_key": "none"}
    return options | place | more


def text(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_an_answer_and_its_stream(node: str) -> None:
    whole = litellm.completion(**asked(node))
    assert whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 12
    chunks = list(litellm.completion(**asked(node, stream=True)))
    assert text(chunks) == whole.choices[0].message.content


def test_asynchronously(node: str) -> None:
    async def use() -> None:
        whole = await litellm.acompletion(**asked(node))
        stream = await litellm.acompletion(**asked(node, stream=True))
        assert text([chunk async for chunk in stream]) == whole.choices[0].message.content
        several = [litellm.acompletion(**asked(node, seed=n, temperature=1)) for n in range(3)]
        answers = await asyncio.gather(*several)
        assert len({answer.choices[0].message.content for answer in answers}) == 3

    asyncio.run(use())


def test_texts_go_on(node: str) -> None:
    more = asked(node, prompt="The capital of France is", max_tokens=4)
    more |= {"model": f"text-completion-openai/{SMOLLM2}"}
    del more["messages"]
    assert "Paris" in litellm.text_completion(**more).choices[0].text


def test_errors_are_its_own(node: str) -> None:
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**asked(node, model="openai/nothing"))
    with pytest.raises(litellm.BadRequestError, match="beams"):
        litellm.completion(**asked(node, extra_body={"beams": 4}))
    with pytest.raises(litellm.BadRequestError):
        long = [{"role": "user", "content": "word " * 20_000}]
        litellm.completion(**asked(node, messages=long))


def test_embedding(node: str) -> None:
    vectors = litellm.embedding(
        model="openai/all-minilm-l6-v2",
        input=["a red house", "a house that is red", "seven hungry sharks"],
        api_base=f"{node}/v1",
        api_key="none",
        encoding_format="float",
    )
    first, second, third = (entry["embedding"] for entry in vectors.data)
    assert len(first) == 384
    assert dot(first, second) > 0.8 > dot(first, third)


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))
