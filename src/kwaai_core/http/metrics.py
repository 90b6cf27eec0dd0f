"""What a node counts of its API, for Prometheus; nothing a client sends becomes a label."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import trio
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kwaai_core.http.replies import FAILED, USED
from kwaai_core.types import LobeStatus

MAX_MODELS = 100
"""So many models have numbers of their own; what others use is that of the model ``other``."""

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The numbers of one node, in a registry of their own."""

    def __init__(self, statuses: Callable[[], Sequence[LobeStatus]], calls: Callable[[], int]):
        self._registry = own = CollectorRegistry()
        self._requests = Counter(
            "kwaai_http_requests", "Requests answered", ["route", "method", "status"], registry=own
        )
        self._seconds = Histogram(
            "kwaai_http_request_seconds",
            "Whole requests",
            ["route"],
            buckets=_SECONDS,
            registry=own,
        )
        self._errors = Counter(
            "kwaai_http_errors", "Answers that are errors, or end with one", ["code"], registry=own
        )
        self._tokens = Counter("kwaai_tokens", "Tokens", ["model", "direction"], registry=own)
        running = Gauge("kwaai_calls", "Calls that are computed or wait for it", registry=own)
        running.set_function(calls)
        ProcessCollector(registry=own)
        own.register(_Lobes(statuses))
        self._models = set[str]()

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request that is over; ``status`` 0 is one that nothing was answered to."""
        route = _route(scope)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests.labels(route, method, f"{status // 100}xx" if status else "none").inc()
        self._seconds.labels(route).observe(seconds)
        if FAILED in scope:
            self._errors.labels(scope[FAILED]).inc()
        if USED in scope:
            name, usage = scope[USED]
            model = self._model(name)
            self._tokens.labels(model, "in").inc(usage.prompt_tokens)
            self._tokens.labels(model, "out").inc(usage.completion_tokens)

    def _model(self, name: str) -> str:
        if len(self._models) < MAX_MODELS:
            self._models.add(name)
        return name if name in self._models else "other"

    def page(self) -> bytes:
        """All numbers of now, in Prometheus' format for text."""
        return generate_latest(self._registry)

    async def show(self, request: Request) -> Response:
        """The endpoint ``/metrics``."""
        return Response(self.page(), media_type=_TEXT)


def _route(scope: Scope) -> str:
    """The route's template; of a lobe's routes the lobe; none for what came to no route."""
    endpoint = scope.get("endpoint")
    ours = scope["app"].routes if "app" in scope else ()
    for route in ours:
        if endpoint is not None and getattr(route, "endpoint", None) is endpoint:
            return str(route.path_format)
    return "/".join(scope.get("root_path", "").split("/")[:3]) or "none"


class _Lobes(Collector):
    """The states of lobes at the time that is asked."""

    def __init__(self, statuses: Callable[[], Sequence[LobeStatus]]) -> None:
        self._statuses = statuses

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "kwaai_lobe", "1 for the state of each offer", labels=["lobe", "role", "state"]
        )
        found = {(status.lobe, status.role, status.state) for status in self._statuses()}
        for labels in sorted(found):  # each once, though a lobe may have two offers of one role
            family.add_metric(labels, 1)
        yield family


class Measured:
    """ASGI middleware that counts what passes."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status = trio.current_time(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            self._metrics.count(scope, status, trio.current_time() - began)
