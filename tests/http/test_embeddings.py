"""Vectors of texts: what a call may ask for, what comes, and what is refused."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from kwaai_core.errors import (
    Busy,
    ContextLengthExceeded,
    KwaaiError,
    LobeFailed,
    RequestError,
    RequestTooLarge,
    UnsupportedParameter,
)
from kwaai_core.openai import EmbeddingsCall, embeddings, parse_embeddings
from kwaai_core.openai.embeddings import MAX_INPUTS, MAX_TOKENS
from kwaai_core.testing import EMBEDDER, FakeEmbedder
from kwaai_core.types import Embedding, TokenIds

from .conftest import CARD, FakeNode, Served, chat_body, post, serving
from .test_api import error_of

PATH = "/v1/embeddings"
PAGE = (Path(__file__).parents[2] / "docs/reference/http-api.md").read_text()


@pytest.fixture
def embedder(node: FakeNode) -> FakeEmbedder:
    node.embedder = FakeEmbedder()
    return node.embedder


def body(of: Any = "a red house", **more: Any) -> dict[str, Any]:
    return {"model": EMBEDDER.id, "input": of} | more


def parsed(of: Any = "x", **more: Any) -> EmbeddingsCall:
    return parse_embeddings(json.dumps({"model": "m", "input": of} | more).encode())


def refusal(of: Any = "x", **more: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parsed(of, **more)
    return caught.value


# -- parsing


@pytest.mark.parametrize(
    ("given_", "texts"),
    [
        ("one", ("one",)),
        (["one"], ("one",)),
        (["one", "two"], ("one", "two")),
        ([101, 7.0, 102], (TokenIds((101, 7, 102)),)),
        ([[101, 102]], (TokenIds((101, 102)),)),
        ([[101, 102], [7]], (TokenIds((101, 102)), TokenIds((7,)))),
        (["one", [7]], ("one", TokenIds((7,)))),
        (["x"] * MAX_INPUTS, ("x",) * MAX_INPUTS),
    ],
)
def test_every_form_of_input(given_: Any, texts: Any) -> None:
    assert parsed(given_).texts == texts


def test_what_is_honoured_arrives_and_what_changes_nothing_is_ignored() -> None:
    call = parsed(encoding_format="base64", dimensions=384, user={"any": "thing"})
    assert call == EmbeddingsCall("m", ("x",), base64=True, dimensions=384)
    assert parsed(encoding_format=None, dimensions=None) == EmbeddingsCall("m", ("x",))
    assert not parsed(encoding_format="float").base64


@pytest.mark.parametrize(
    ("of", "param"),
    [
        ("", "input"),
        ([], "input"),
        ([""], "input"),
        (["a", ""], "input[1]"),
        ([[]], "input"),
        (["a", []], "input[1]"),
        ([1, "a"], "input[1]"),
        (["a", 1], "input[0]"),
        ([True], "input[0]"),
        ([1.5], "input[0]"),
        ([-1], "input[0]"),
        ([2**31], "input[0]"),
        ([[1, 2], [3, 10**400]], "input[1][1]"),
        ([[1, [2]]], "input[1]"),
        ({}, "input"),
        (7, "input"),
        (None, "input"),
        ("half \ud83d", "input"),
        (["x"] * (MAX_INPUTS + 1), "input"),
    ],
)
def test_input_that_is_none(of: Any, param: str) -> None:
    error = refusal(of)
    assert (error.status, error.param) == (400, param)


@pytest.mark.parametrize("of", [[1] * (MAX_TOKENS + 1), [[1] * 200_000, [2] * 200_000]])
def test_too_many_tokens(of: Any) -> None:
    error = refusal(of)
    assert isinstance(error, RequestTooLarge)
    assert error.param == "input"
    assert str(MAX_TOKENS) in error.message


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("model", "", RequestError),
        ("model", None, RequestError),
        ("encoding_format", "base16", RequestError),
        ("encoding_format", ["float"], RequestError),
        ("dimensions", 0, RequestError),
        ("dimensions", "384", RequestError),
        ("dimensions", True, RequestError),
        ("inputs", "x", UnsupportedParameter),
        ("truncate", True, UnsupportedParameter),
        ("temperature", 1, UnsupportedParameter),
    ],
)
def test_a_parameter_that_is_wrong_is_named(
    name: str, value: Any, kind: type[RequestError]
) -> None:
    error = refusal(**{name: value})
    assert type(error) is kind
    assert error.param == name


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@given(
    st.dictionaries(
        st.sampled_from(["model", "input", "encoding_format", "dimensions", "user"]) | st.text(),
        ANYTHING | st.sampled_from(["m", "float", "base64", ["a", [1]], [1, 2]]),
    )
)
def test_any_body_is_a_call_or_a_refusal(document: dict[str, Any]) -> None:
    try:
        call = parse_embeddings(json.dumps(document, allow_nan=False).encode())
    except ValueError:  # a float that is infinite has no JSON
        return
    except RequestError as error:
        assert error.status in (400, 413)
        return
    assert 1 <= len(call.texts) <= MAX_INPUTS
    assert all(text.ids if isinstance(text, TokenIds) else text for text in call.texts)
    assert set(document) <= {"model", "input", "encoding_format", "dimensions", "user"}


@given(st.binary())
def test_any_bytes_are_a_call_or_a_refusal(data: bytes) -> None:
    with pytest.raises(RequestError):
        parse_embeddings(data)


# -- answers

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(st.lists(FLOAT32, max_size=8), max_size=4))
def test_both_forms_are_the_same_float32(vectors: list[list[float]]) -> None:
    found = [Embedding(vector, 3) for vector in vectors]
    plain, packed = (
        json.loads(b"".join(embeddings(EMBEDDER, found, base64=form))) for form in (False, True)
    )
    assert plain["usage"] == {"prompt_tokens": 3 * len(found), "total_tokens": 3 * len(found)}
    assert {key: plain[key] for key in ("object", "model", "usage")} == {
        key: packed[key] for key in ("object", "model", "usage")
    }
    for i, vector in enumerate(vectors):
        form, numbers = f"<{len(vector)}f", plain["data"][i]["embedding"]
        bits = base64.b64decode(packed["data"][i]["embedding"], validate=True)
        assert bits == struct.pack(form, *vector)
        # by value: JSON has no minus zero that every parser keeps
        assert struct.unpack(form, struct.pack(form, *numbers)) == tuple(vector)
        assert [doc["data"][i]["index"] for doc in (plain, packed)] == [i, i]


@pytest.mark.parametrize("form", [False, True])
def test_what_is_no_number_is_no_answer(form: bool) -> None:
    with pytest.raises(KwaaiError, match="no number"):
        list(embeddings(EMBEDDER, [Embedding([0.0, inf], 1)], base64=form))


async def test_a_call_gets_its_vectors(served: Served, embedder: FakeEmbedder) -> None:
    texts = ["a red house", "stocks", "a red house"]
    async with served.client() as client:
        response = await client.post(PATH, json=body(texts))
        alone = (await client.post(PATH, json=body(texts[0]))).json()
    answer = response.json()
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req_")
    assert set(answer) == {"object", "data", "model", "usage"}
    assert (answer["object"], answer["model"]) == ("list", EMBEDDER.id)
    assert answer["usage"] == {"prompt_tokens": 10, "total_tokens": 10}
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2]
    assert {entry["object"] for entry in answer["data"]} == {"embedding"}
    vectors = [entry["embedding"] for entry in answer["data"]]
    assert vectors[0] == vectors[2] == alone["data"][0]["embedding"] != vectors[1]
    wanted = (await FakeEmbedder().embed(texts[:1]))[0].vector
    assert struct.pack("<32f", *vectors[0]) == struct.pack("<32f", *wanted)
    assert embedder.calls[0].texts == tuple(texts)


async def test_the_model_is_listed_behind_those_that_make_text(
    served: Served, embedder: FakeEmbedder
) -> None:
    async with served.client() as client:
        listed = (await client.get("/v1/models")).json()["data"]
        one = (await client.get(f"/v1/models/{EMBEDDER.id}")).json()
    assert [model["id"] for model in listed] == [CARD.id, EMBEDDER.id]
    assert [model["kwaai"]["dimensions"] for model in listed] == [0, 32]
    assert one == listed[1]
    assert (one["kwaai"]["context_length"], one["kwaai"]["digest"]) == (64, EMBEDDER.digest)


async def test_a_model_that_embeds_does_not_chat(served: Served, embedder: FakeEmbedder) -> None:
    for path, asked in (
        ("/v1/chat/completions", chat_body(model=EMBEDDER.id)),
        ("/v1/completions", {"model": EMBEDDER.digest, "prompt": "x"}),
    ):
        async with served.client() as client:
            error = error_of(await client.post(path, json=asked), 400, None)
        assert error["param"] == "model"
        assert "/v1/embeddings" in error["message"]


async def test_the_tokens_are_counted(served: Served, embedder: FakeEmbedder) -> None:
    async with served.client() as client:
        await client.post(PATH, json=body(["a red house", "stocks"]))
        await client.post(PATH, json=body("word " * 99))
        page = (await client.get("/metrics")).text
    assert f'kwaai_tokens_total{{direction="in",model="{EMBEDDER.id}"}} 6.0' in page


async def test_the_digest_is_a_name_too(served: Served, embedder: FakeEmbedder) -> None:
    async with served.client() as client:
        answer = (await client.post(PATH, json=body(model=EMBEDDER.digest))).json()
    assert answer["model"] == EMBEDDER.id


@pytest.mark.parametrize("model", ["nope", "text-embedding-3-small"])
async def test_an_unknown_model(served: Served, embedder: FakeEmbedder, model: str) -> None:
    async with served.client() as client:
        error = error_of(await client.post(PATH, json=body(model=model)), 404, "model_not_found")
    assert error["param"] == "model"
    assert model in error["message"]
    assert EMBEDDER.id in error["message"]
    assert embedder.calls == []


async def test_a_model_that_writes_text_makes_no_vectors(
    served: Served, embedder: FakeEmbedder
) -> None:
    async with served.client() as client:
        error = error_of(await client.post(PATH, json=body(model=CARD.id)), 400, None)
    assert error["param"] == "model"
    assert "/v1/chat/completions" in error["message"]
    assert embedder.calls == []


async def test_nobody_tells_of_the_tokens_of_a_model_that_makes_vectors(
    served: Served, embedder: FakeEmbedder
) -> None:
    async with served.client() as client:
        for path, more in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
            answer = await client.post(path, json={"model": EMBEDDER.id} | more)
            assert "makes vectors" in error_of(answer, 400, None)["message"]


async def test_only_the_dimensions_that_there_are(served: Served, embedder: FakeEmbedder) -> None:
    async with served.client() as client:
        assert (await client.post(PATH, json=body(dimensions=32))).status_code == 200
        refused = await client.post(PATH, json=body(dimensions=16))
    error = error_of(refused, 400, "unsupported_parameter")
    assert error["param"] == "dimensions"
    assert "32" in error["message"]
    assert len(embedder.calls) == 1


async def test_a_text_that_is_too_long_is_not_cut(served: Served, embedder: FakeEmbedder) -> None:
    async with served.client() as client:
        refused = await client.post(PATH, json=body(["x", "word " * 99]))
    error = error_of(refused, 400, "context_length_exceeded")
    assert error["param"] == "input[1]"
    assert "100" in error["message"]
    assert "64" in error["message"]


async def test_no_embedder_says_what_to_install(served: Served) -> None:
    async with served.client() as client:
        response = await client.post(PATH, json=body())
        chat = await client.post("/v1/chat/completions", json=chat_body(model="nope"))
    error = error_of(response, 503, "no_peer_available")
    assert "pip install kwaai-lobe-minilm" in error["message"]
    assert response.headers["retry-after"]
    error_of(chat, 404, "model_not_found")


class FailedNode(FakeNode):
    """Its embedder's lobe has failed."""

    def __init__(self) -> None:
        self.failed = False
        super().__init__()
        self.failed = True

    @property
    def embedder(self) -> Any:
        if self.failed:
            raise LobeFailed("minilm", "the model file is another", retry_after=7)
        return None

    @embedder.setter
    def embedder(self, embedder: Any) -> None:
        pass


async def test_an_embedder_that_failed_says_why_and_spoils_nothing_else(tmp_path: Path) -> None:
    async with serving(FailedNode(), tmp_path) as served, served.client() as client:
        response = await client.post(PATH, json=body())
        listed = (await client.get("/v1/models")).json()["data"]
        unknown = await client.post("/v1/chat/completions", json=chat_body(model="nope"))
        answered = await client.post("/v1/chat/completions", json=chat_body())
    error = error_of(response, 503, "lobe_failed")
    assert "the model file is another" in error["message"]
    assert response.headers["retry-after"] == "7"
    assert [model["id"] for model in listed] == [CARD.id]
    error_of(unknown, 404, "model_not_found")
    assert answered.status_code == 200


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (Busy("16 calls wait", retry_after=2), 429, "rate_limit_exceeded"),
        (RequestTooLarge("too much", param="input"), 413, "request_too_large"),
        (RequestError("no such token", param="input[0]"), 400, None),
        (LobeFailed("minilm", "gone"), 503, "lobe_failed"),
        (ContextLengthExceeded(9, 8, param="input"), 400, "context_length_exceeded"),
        (ZeroDivisionError("secret"), 500, "internal_error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_errors_of_the_embedder(
    served: Served, embedder: FakeEmbedder, raised: Exception, status: int, code: str | None
) -> None:
    embedder.entering = raised
    async with served.client() as client:
        error = error_of(await client.post(PATH, json=body()), status, code)
    assert "secret" not in error["message"]


async def test_a_client_that_leaves_ends_the_work(served: Served, embedder: FakeEmbedder) -> None:
    embedder.entering = trio.Event()
    async with await served.connect() as stream:
        await stream.send_all(post(PATH, body()))
        while not embedder.calls:
            await trio.lowlevel.checkpoint()
        assert not embedder.calls[0].ended.is_set()
    await embedder.calls[0].ended.wait()


async def test_a_node_that_closes_says_so(served: Served, embedder: FakeEmbedder) -> None:
    embedder.entering = trio.Event()
    answers: list[httpx.Response] = []
    async with served.client() as client, trio.open_nursery() as nursery:

        async def ask() -> None:
            answers.append(await client.post(PATH, json=body()))

        nursery.start_soon(ask)
        while not embedder.calls:
            await trio.lowlevel.checkpoint()
        served.stop.set()
    error_of(answers[0], 503, "no_peer_available")


async def test_a_get_is_told_what_to_do(served: Served) -> None:
    async with served.client() as client:
        response = await client.get(PATH)
    error_of(response, 405, None)
    assert response.headers["allow"] == "POST"


# -- the SDK

pytestmark = pytest.mark.filterwarnings("ignore:Async generator '(openai|http):ResourceWarning")


async def vectors(texts: Sequence[str]) -> list[list[float]]:
    return [list(found.vector) for found in await FakeEmbedder().embed(texts)]


async def test_the_synchronous_sdk(served: Served, embedder: FakeEmbedder) -> None:
    def use() -> None:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="-", max_retries=0) as client:
            packed = client.embeddings.create(model=EMBEDDER.id, input=["a red house", "stocks"])
            plain = client.embeddings.create(
                model=EMBEDDER.id, input="a red house", encoding_format="float", user="me"
            )
            assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-7)
            assert [entry.index for entry in packed.data] == [0, 1]
            assert packed.usage.total_tokens == packed.usage.prompt_tokens == 6
            assert EMBEDDER.id in [model.id for model in client.models.list()]
            with pytest.raises(openai.NotFoundError) as unknown:
                client.embeddings.create(model="text-embedding-3-small", input="x")
            assert unknown.value.code == "model_not_found"

    await trio.to_thread.run_sync(use)


async def test_the_asynchronous_sdk_on_trio(served: Served, embedder: FakeEmbedder) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{served.url}/v1", api_key="-", max_retries=0
    ) as client:
        found = await client.embeddings.create(model=EMBEDDER.id, input=["a red house", "stocks"])
        tokens = await client.embeddings.create(model=EMBEDDER.id, input=[[1, 2], [3]])
        with pytest.raises(openai.BadRequestError) as refused:
            await client.embeddings.create(model=EMBEDDER.id, input="x", dimensions=7)
    assert [entry.embedding for entry in found.data] == await vectors(["a red house", "stocks"])
    assert tokens.usage.prompt_tokens == 3
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "dimensions")


# -- what the reference says of it


def test_the_reference_has_the_parameters_and_the_limits() -> None:
    section = PAGE[PAGE.index("## Embeddings") : PAGE.index("## Streams")].replace("\n", " ")
    for name in ("model", "input", "encoding_format", "dimensions", "user"):
        assert f"`{name}`" in section
    assert f"{MAX_INPUTS} texts" in section
    assert f"{MAX_TOKENS:,} tokens" in section
