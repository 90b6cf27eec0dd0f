"""LangChain's package for OpenAI's API: chats and completions."""

from operator import mul
from typing import Any

import anyio
import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

from tests.clients.conftest import SMOLLM2

QUESTION = "Name three rivers in Europe."
CAPITALS = {"France": "Paris", "Italy": "Rome"}


def chat(node: str, **more: Any) -> ChatOpenAI:
    options = {"temperature": 0, "max_tokens": 12, "max_retries": 0} | more
    return ChatOpenAI(base_url=f"{node}/v1", api_key="none", model=SMOLLM2, **options)  # type: ignore[arg-type]


def completion(node: str, **more: Any) -> OpenAI:
    options = {"temperature": 0, "max_tokens": 4, "max_retries": 0} | more
    return OpenAI(base_url=f"{node}/v1", api_key="none", model=SMOLLM2, **options)  # type: ignore[arg-type]


def test_an_answer_and_its_stream(node: str) -> None:
    whole = chat(node).invoke(QUESTION)
    assert whole.content
    # max_tokens goes out as max_completion_tokens
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == 12
    assert whole.response_metadata["finish_reason"] == "length"
    chunks = list(chat(node, stream_usage=True).stream(QUESTION))
    assert len(chunks) > 2
    assert "".join(chunk.text for chunk in chunks) == whole.content
    counted = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert [usage["output_tokens"] for usage in counted] == [12]


def test_the_turns_of_a_conversation(node: str) -> None:
    turns = [
        SystemMessage("You are a helpful assistant."),
        HumanMessage("My name is Gottlieb."),
        AIMessage("Hello Gottlieb!"),
        HumanMessage("What is my name?"),
    ]
    assert "Gottlieb" in chat(node, max_tokens=30).invoke(turns).text


def test_options(node: str) -> None:
    odd = chat(node, temperature=1.5, seed=7, n=2, top_p=0.9, presence_penalty=0.5)
    first, again = (odd.generate([[HumanMessage(QUESTION)]]).generations[0] for _ in range(2))
    assert len({one.text for one in first}) == 2
    assert [one.text for one in first] == [one.text for one in again]
    ours = chat(node, extra_body={"top_k": 1, "kwaai": {"timing": True}})
    assert ours.invoke(QUESTION).content
    stopped = chat(node, max_tokens=100, stop_sequences=["."]).invoke(QUESTION)
    assert stopped.response_metadata["finish_reason"] == "stop"
    assert "." not in stopped.text
    told = chat(node, logprobs=True, top_logprobs=2).invoke(QUESTION)
    assert len(told.response_metadata["logprobs"]["content"]) == 12


def test_several_at_once(node: str) -> None:
    asked = [f"The capital of {country} is" for country in CAPITALS]
    for answer, capital in zip(completion(node).batch(asked), CAPITALS.values(), strict=True):
        assert capital in answer
    answers = chat(node).batch([QUESTION] * 3, config={"max_concurrency": 3})
    assert all(answer.usage_metadata for answer in answers)


def test_asynchronously(node: str) -> None:
    async def use() -> None:
        whole = await chat(node).ainvoke(QUESTION)
        streamed = [chunk.text async for chunk in chat(node).astream(QUESTION)]
        assert "".join(streamed) == whole.text
        texts = await completion(node).abatch(["The capital of France is"])
        assert "Paris" in texts[0]
        parts = [part async for part in completion(node).astream("The capital of France is")]
        assert "".join(parts) == texts[0]

    anyio.run(use)


def test_several_prompts_in_one_request(node: str) -> None:
    asked = [f"The capital of {country} is" for country in CAPITALS]
    result = completion(node).generate(asked)
    for (one, *_), capital in zip(result.generations, CAPITALS.values(), strict=True):
        assert capital in one.text
    assert result.llm_output is not None
    assert result.llm_output["token_usage"]["completion_tokens"] == 8


def test_errors(node: str) -> None:
    with pytest.raises(openai.NotFoundError):
        ChatOpenAI(base_url=f"{node}/v1", api_key="none", model="nothing").invoke("Hello")  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError, match="verbosity"):
        chat(node, verbosity="low").invoke("Hello")


def test_embeddings(node: str) -> None:
    options: Any = {"base_url": f"{node}/v1", "api_key": "none", "model": "all-minilm-l6-v2"}
    embeddings = OpenAIEmbeddings(**options, check_embedding_ctx_length=False)
    vectors = embeddings.embed_documents(["a red house", "seven hungry sharks"])
    asked = embeddings.embed_query("a house that is red")
    near, far = (sum(map(mul, vector, asked)) for vector in vectors)
    assert near > 0.8 > far
