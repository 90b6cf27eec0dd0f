"""From a request to an answer: core's own router, and what it makes of executors that fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kwaai_core import (
    ChatRequest,
    Hop,
    Intent,
    KwaaiError,
    LobeFailed,
    ModelCard,
    ModelNotFound,
    NoPeerAvailable,
    RequestError,
    Sampling,
    Span,
    UnsupportedParameter,
)
from kwaai_core.chat import chat
from kwaai_core.defaults import LocalRouter
from kwaai_core.testing import FakeHost, ScriptedExecutor

A = ModelCard("a", digest="aa" * 32, blocks=3)
B = ModelCard("b", blocks=5)


def executor(*cards: ModelCard, error: Exception | None = None) -> ScriptedExecutor:
    scripted = ScriptedExecutor(cards=cards)
    scripted.models_error = error
    return scripted


def host(folder: Path, executors: Sequence[ScriptedExecutor]) -> FakeHost:
    built = FakeHost(folder, executors=executors)
    built.router = LocalRouter(built)
    return built


async def test_a_route_is_wholly_local(tmp_path: Path) -> None:
    one, two = executor(A), executor(B)
    route = await LocalRouter(host(tmp_path, [one, two])).route(Intent("b"))
    assert (route.executor, route.model) == (two, B)
    assert route.hops == (Hop("local", Span(0, 5)),)


async def test_the_first_executor_that_has_the_model_is_taken(tmp_path: Path) -> None:
    one, two = executor(A), executor(A)
    route = await LocalRouter(host(tmp_path, [one, two])).route(Intent(A.digest))
    assert route.executor is one


async def test_a_model_without_a_digest_is_not_found_by_none(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound) as caught:
        await LocalRouter(host(tmp_path, [executor(B), executor(A)])).route(Intent(""))
    assert caught.value.available == ("a", "b")


async def test_a_failed_executor_does_not_hide_the_others(tmp_path: Path) -> None:
    failed, fine = executor(A, error=LobeFailed("llama", "no memory")), executor(B)
    router = LocalRouter(host(tmp_path, [failed, fine]))
    assert (await router.route(Intent("b"))).executor is fine
    with pytest.raises(LobeFailed, match="no memory"):
        await router.route(Intent("a"))


async def test_other_errors_are_not_hidden(tmp_path: Path) -> None:
    router = LocalRouter(host(tmp_path, [executor(A, error=KwaaiError("a bug"))]))
    with pytest.raises(KwaaiError, match="a bug"):
        await router.route(Intent("a"))


async def test_nothing_has_a_price_yet(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="max_price") as caught:
        await LocalRouter(host(tmp_path, [executor(A)])).route(Intent("a", max_price=5))
    assert caught.value.param == "kwaai.max_price"


async def test_an_executor_is_given_all_of_the_request(tmp_path: Path) -> None:
    one = executor(A)
    sampling = Sampling(temperature=0, seed=4)
    asked = ChatRequest(Intent("a", exact=True), "hello", sampling, ("x",), 2)
    async with chat(host(tmp_path, [one]), asked) as answer:
        assert answer.route.model == A
        deltas = [delta async for delta in answer.deltas]
    assert deltas[-1].finish == "length"
    (given,) = [play.request for play in one.plays]
    assert (given.model, given.prompt, given.sampling) == (A, "hello", sampling)
    assert (given.stop, given.max_tokens, given.exact) == (("x",), 2, True)


async def test_leaving_an_answer_ends_the_work(tmp_path: Path) -> None:
    one = executor(A)
    async with chat(host(tmp_path, [one]), ChatRequest(Intent("a"), "hello")) as answer:
        await answer.deltas.receive()
        assert not one.plays[0].ended.is_set()
    assert one.plays[0].ended.is_set()


async def test_without_a_router_nothing_is_answered(tmp_path: Path) -> None:
    with pytest.raises(NoPeerAvailable, match="no lobe fills the role router"):
        async with chat(FakeHost(tmp_path), ChatRequest(Intent("a"), "hello")):
            pass


@pytest.mark.parametrize("limit", ["max_latency_ms", "max_first_token_ms"])
async def test_a_limit_that_nobody_measures_is_refused_by_name(tmp_path: Path, limit: str) -> None:
    intent = replace(Intent("a"), **{limit: 5.0})  # type: ignore[arg-type]
    with pytest.raises(UnsupportedParameter, match=limit) as caught:
        await LocalRouter(host(tmp_path, [executor(A)])).route(intent)
    assert caught.value.param == f"kwaai.{limit}"
