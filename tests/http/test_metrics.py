"""What `/metrics` tells, and that nothing a client sends becomes a label."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, Router

from kwaai_core.errors import UpstreamLost
from kwaai_core.http.metrics import MAX_MODELS, Metrics
from kwaai_core.http.replies import USED
from kwaai_core.types import Delta, LobeStatus, Usage

from .conftest import LAST, FakeNode, Served, chat_body, post, read_until, serving

CHAT = "/v1/chat/completions"

Sample = tuple[str, frozenset[tuple[str, str]]]


def samples(page: str) -> dict[Sample, float]:
    """Every number of a page, by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


class Numbers:
    """The numbers of a server at one time."""

    def __init__(self, page: str) -> None:
        self._all = samples(page)

    def of(self, name: str, **labels: str) -> float:
        return self._all.get((name, frozenset(labels.items())), 0)

    def labels(self, name: str) -> list[Mapping[str, str]]:
        return [dict(labels) for found, labels in self._all if found == name]

    def __len__(self) -> int:
        return len(self._all)


async def numbers(served: Served) -> Numbers:
    async with served.client() as client:
        response = await client.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return Numbers(response.text)


async def test_requests_are_counted_by_route_method_and_kind_of_status(served: Served) -> None:
    async with served.client() as client:
        for _ in range(2):
            await client.get("/v1/models/tiny/model")
        await client.get("/v1/models/other")
        await client.get("/health")
        await client.head("/health")
        await client.put("/health")
        await client.get("/nope")
    now = await numbers(served)
    name = "kwaai_http_requests_total"
    assert now.of(name, route="/v1/models/{id}", method="GET", status="2xx") == 2
    assert now.of(name, route="/v1/models/{id}", method="GET", status="4xx") == 1
    assert now.of(name, route="/health", method="GET", status="2xx") == 1
    assert now.of(name, route="/health", method="HEAD", status="2xx") == 1
    assert now.of(name, route="/health", method="PUT", status="4xx") == 1
    assert now.of(name, route="none", method="GET", status="4xx") == 1
    assert now.of("kwaai_http_request_seconds_count", route="/v1/models/{id}") == 3
    assert 0 < now.of("kwaai_http_request_seconds_sum", route="/v1/models/{id}") < 10
    codes = {label["code"]: None for label in now.labels("kwaai_http_errors_total")}
    assert set(codes) == {"model_not_found", "404", "405"}


async def test_tokens_are_counted_by_model_streamed_or_not(served: Served) -> None:
    async with served.client() as client:
        for stream in (True, False):
            await client.post(CHAT, json=chat_body(stream=stream))
        await client.post("/v1/completions", json={"model": "tiny/model", "prompt": "x", "n": 2})
    now = await numbers(served)
    usage = LAST.usage
    assert usage is not None
    assert now.of("kwaai_tokens_total", model="tiny/model", direction="in") == (
        3 * usage.prompt_tokens
    )
    assert now.of("kwaai_tokens_total", model="tiny/model", direction="out") == (
        4 * usage.completion_tokens
    )


async def test_errors_are_counted_by_code_in_a_stream_too(served: Served) -> None:
    served.executor.script = (Delta("a", 1), said := trio.Event(), UpstreamLost("gone"))
    async with served.client() as client, await served.connect() as stream:
        await stream.send_all(post(CHAT, chat_body(stream=True)))
        assert (await read_until(stream, b'"a"')).startswith(b"HTTP/1.1 200")
        said.set()
        await read_until(stream, b"upstream_lost")
        assert (await client.post(CHAT, json=chat_body())).status_code == 502
        assert (await client.post(CHAT, json={})).status_code == 400
        assert (await client.post(CHAT, content=b"x" * 70_000)).status_code == 413
        refused = await client.get("/", headers={"host": "evil.example"})
        assert refused.status_code == 403
    now = await numbers(served)
    assert {label["code"]: now.of("kwaai_http_errors_total", **label)
            for label in now.labels("kwaai_http_errors_total")} == {
        "upstream_lost": 2, "400": 1, "request_too_large": 1, "host_not_allowed": 1,
    }  # fmt: skip


async def test_calls_and_lobes_are_those_of_now(served: Served) -> None:
    served.node.lobes = [LobeStatus("llama", "1", "executor", "llama", "ready")]
    served.executor.entering = trio.Event()
    async with await served.connect() as client:
        await client.send_all(post(CHAT, chat_body(stream=True)))
        await served.executor.play()
        during = await numbers(served)
        served.executor.entering.set()
        await read_until(client, b"[DONE]")
    await trio.testing.wait_all_tasks_blocked()
    served.node.lobes = [LobeStatus("llama", "1", "executor", "llama", "failed", "secret cause")]
    after = await numbers(served)
    assert (during.of("kwaai_calls"), after.of("kwaai_calls")) == (1, 0)
    assert during.labels("kwaai_lobe") == [{"lobe": "llama", "role": "executor", "state": "ready"}]
    assert after.labels("kwaai_lobe") == [{"lobe": "llama", "role": "executor", "state": "failed"}]
    two = [LobeStatus("llama", "1", "executor", offer, "ready") for offer in ("one", "two")]
    page = Metrics(lambda: two, lambda: 0).page()
    assert page.count(b"\nkwaai_lobe{") == 1  # Prometheus refuses a page that has one twice
    assert after.of("process_resident_memory_bytes") > 10**6


async def test_a_client_that_leaves_is_counted(served: Served) -> None:
    served.executor.entering = trio.Event()
    async with await served.connect() as client:
        await client.send_all(post(CHAT, chat_body()))
        play = await served.executor.play()
    await play.left.wait()
    await trio.testing.wait_all_tasks_blocked()
    now = await numbers(served)
    assert now.of("kwaai_http_requests_total", route=CHAT, method="POST", status="none") == 1


async def test_the_port_and_the_unix_socket_are_counted_together(served: Served) -> None:
    async with served.local_client() as local:
        await local.get("/lobes")
        assert 'route="/lobes"' in (await local.get("/metrics")).text
    assert 'route="/lobes"' in (await served.talk(
        b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    )).decode()  # fmt: skip


async def test_nothing_that_a_client_sends_becomes_a_label(tmp_path: Path) -> None:
    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    node = FakeNode()
    deep = Mount("/{user}", Router([Route("/{n}", hello)]))
    node.routes = [("own", [Route("/files/{id}", hello), deep])]
    draw = random.Random(7)

    async with serving(node, tmp_path) as served, served.client() as client:

        async def flood(count: int) -> None:
            for _ in range(count):
                word = f"marker{draw.getrandbits(64):x}"
                for path in (
                    f"/{word}", f"/v1/models/{word}", f"/lobes/own/files/{word}",
                    f"/lobes/own/{word}/{word}", f"/lobes/{word}", f"/v1/models?x={word}",
                ):  # fmt: skip
                    await client.get(path, headers={"x-marker": word, "user-agent": word})
                await client.request(word.upper(), f"/{word}")
                await client.get("/", headers={"host": f"{word}.example"})
                await client.post(CHAT, json=chat_body(model=word))
                await client.post(CHAT, json=chat_body(**{word: 1}))

        await flood(1)
        before = len(await numbers(served))  # itself counted from here on
        await flood(1)
        before = len(await numbers(served))
        await flood(10)
        assert len(await numbers(served)) == before
        assert "marker" not in (await client.get("/metrics")).text.lower()
        routes = {label["route"] for label in (await numbers(served)).labels(
            "kwaai_http_requests_total")}  # fmt: skip
    assert routes == {"none", "/metrics", "/v1/models", "/v1/models/{id}", "/lobes/own", CHAT}


def test_models_beyond_a_number_share_one_label() -> None:
    metrics = Metrics(list, lambda: 0)
    for n in range(MAX_MODELS + 50):
        metrics.count({"method": "POST", USED: (f"model-{n}", Usage(2, 1))}, 200, 0.1)
    metrics.count({"method": "POST", USED: ("model-0", Usage(2, 1))}, 200, 0.1)
    page = Numbers(bytes(metrics.page()).decode())
    labels = page.labels("kwaai_tokens_total")
    assert len(labels) == 2 * (MAX_MODELS + 1)
    assert page.of("kwaai_tokens_total", model="other", direction="in") == 100
    assert page.of("kwaai_tokens_total", model="model-0", direction="out") == 2


def test_two_nodes_in_one_process_count_apart() -> None:
    one, other = (Metrics(list, lambda: 0) for _ in range(2))
    one.count({"method": "GET"}, 200, 0.1)
    assert b"kwaai_http_requests_total{" in one.page()
    assert b"kwaai_http_requests_total{" not in other.page()
