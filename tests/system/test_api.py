"""The HTTP API of a real node, asked by the clients that people use."""

import json
import re
import shutil
import subprocess

import httpx
import pytest
from openai import APIStatusError, AsyncOpenAI, NotFoundError, OpenAI

# The SDK leaves its own generators to the garbage collector, which trio remarks upon.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator '(openai|http):ResourceWarning")

SMOLLM2 = "smollm2-135m-instruct"
HELLO = [{"role": "user", "content": "Say hello."}]


def sdk(node: str) -> OpenAI:
    return OpenAI(base_url=f"{node}/v1", api_key="none", max_retries=0)


def test_the_bundled_model_is_listed(node: str) -> None:
    with sdk(node) as client:
        assert SMOLLM2 in [model.id for model in client.models.list()]
        assert client.models.retrieve(SMOLLM2).id == SMOLLM2


def test_streamed_and_whole_answers_are_the_same_greedy_text(node: str) -> None:
    with sdk(node) as client:
        whole = client.chat.completions.create(
            model=SMOLLM2, messages=HELLO, max_tokens=24, temperature=0
        )
        stream = client.chat.completions.create(
            model=SMOLLM2,
            messages=HELLO,
            max_tokens=24,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens > 0


async def test_the_async_client_on_trio(node: str) -> None:
    async with AsyncOpenAI(base_url=f"{node}/v1", api_key="none", max_retries=0) as client:
        done = await client.completions.create(
            model=SMOLLM2, prompt="The capital of France is", max_tokens=8, temperature=0
        )
        stream = await client.completions.create(
            model=SMOLLM2,
            prompt="The capital of France is",
            max_tokens=8,
            temperature=0,
            stream=True,
        )
        text = "".join([chunk.choices[0].text async for chunk in stream])
    assert "Paris" in done.choices[0].text
    assert text == done.choices[0].text


def test_texts_are_as_likely_as_the_model_finds_them(node: str) -> None:
    """As lm-eval asks: tokens first, then echoes of them with probabilities."""

    def tokens(text: str) -> list[int]:
        asked = {"model": SMOLLM2, "prompt": text, "add_special_tokens": False}
        found = httpx.post(f"{node}/tokenize", json=asked, timeout=60).json()["tokens"]
        back = httpx.post(
            f"{node}/detokenize", json={"model": SMOLLM2, "tokens": found}, timeout=60
        )
        assert back.json() == {"prompt": text}
        return list(found)

    begin = "The capital of France is"
    ends = [" Paris", " banana"]
    with sdk(node) as client:
        answer = client.completions.create(
            model=SMOLLM2,
            prompt=[tokens(begin + end) for end in ends],
            echo=True,
            logprobs=1,
            max_tokens=1,
            temperature=0,
        )
    likely = []
    for choice, end in zip(answer.choices, ends, strict=True):
        told = choice.logprobs
        assert told is not None and told.token_logprobs is not None and told.tokens is not None
        assert choice.text.startswith(begin + end)
        assert "".join(told.tokens) == choice.text
        assert len(told.tokens) == len(tokens(begin + end)) + 1
        likely.append(sum(told.token_logprobs[len(tokens(begin)) : -1]))
    assert likely[0] > likely[1] + 5
    info = httpx.get(f"{node}/tokenizer_info", params={"model": SMOLLM2}, timeout=60).json()
    assert tokens(info["eos_token"]) != [] and "chat_template" in info


def test_a_response_is_what_a_chat_says(node: str) -> None:
    with sdk(node) as client:
        chat = client.chat.completions.create(
            model=SMOLLM2, messages=HELLO, max_tokens=24, temperature=0
        )
        response = client.responses.create(
            model=SMOLLM2, input="Say hello.", max_output_tokens=24, temperature=0
        )
        with client.responses.stream(
            model=SMOLLM2, input=HELLO, max_output_tokens=24, temperature=0
        ) as stream:
            deltas = [e.delta for e in stream if e.type == "response.output_text.delta"]
    assert response.output_text == "".join(deltas) == chat.choices[0].message.content
    assert response.usage is not None and chat.usage is not None
    assert response.usage.input_tokens == chat.usage.prompt_tokens


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl(node: str) -> None:
    url = f"{node}/v1/chat/completions"
    body = {"model": SMOLLM2, "messages": HELLO, "max_tokens": 8, "stream": True}
    done = subprocess.run(
        ["curl", "-sSN", "-H", "Content-Type: application/json", "-d", "@-", url],
        input=json.dumps(body),
        capture_output=True,
        text=True,
        check=True,
    )
    events = done.stdout.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert json.loads(events[0].removeprefix("data: "))["choices"][0]["delta"]["role"]


def test_errors_are_the_sdk_s_own_kinds(node: str) -> None:
    with sdk(node) as client:
        with pytest.raises(NotFoundError) as unknown:
            client.chat.completions.create(model="nothing", messages=HELLO)
        assert unknown.value.code == "model_not_found"
        assert SMOLLM2 in unknown.value.message
        with pytest.raises(APIStatusError) as unsupported:
            client.completions.create(model=SMOLLM2, prompt="Hello", suffix="!")
        assert (unsupported.value.status_code, unsupported.value.param) == (400, "suffix")


def test_a_prompt_beyond_the_context_gets_both_numbers(node: str) -> None:
    with sdk(node) as client, pytest.raises(APIStatusError) as error:
        client.completions.create(model=SMOLLM2, prompt="word " * 20_000)
    assert error.value.code == "context_length_exceeded"
    # counted in pieces, each of which may split a token
    assert re.search(
        r"has 2000\d tokens, and the context of this model holds 8192", str(error.value)
    )


def test_other_hosts_are_refused(node: str) -> None:
    refused = httpx.get(f"{node}/v1/models", headers={"Host": "evil.example"})
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "host_not_allowed"
