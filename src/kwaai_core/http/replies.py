"""Whole answers in JSON, those of errors among them."""

import json
import logging
from math import ceil
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kwaai_core import openai
from kwaai_core.errors import KwaaiError, RequestError
from kwaai_core.machine import refusal

log = logging.getLogger("kwaai.http")

FAILED = "kwaai.failed"
"""The key of the scope under which the code of an error stands, or its status, once it is told."""

USED = "kwaai.used"
"""The key under which an endpoint leaves which model it used, and its :class:`Usage` up to now."""

PATHS = (
    "/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings",
    "/tokenize", "/health", "/ready", "/metrics", "/openapi.json",
)  # fmt: skip
"""What a newcomer wants to know of."""

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Json(Response):
    """A JSON document; what cannot be UTF-8 in its strings becomes a question mark."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return _encode(content).encode("utf-8", "replace")


class Failure(Json):
    """The document of an error, which leaves its ``code`` in the scope."""

    code = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[FAILED] = self.code
        await super().__call__(scope, receive, send)


def error_reply(error: KwaaiError, status: int | None = None) -> Failure:
    """The answer to a call that failed before the first byte."""
    status = status or error.status
    headers = {"www-authenticate": 'Bearer realm="kwaai"'} if status == 401 else {}
    if error.retry_after is not None or status in (429, 503):
        headers["retry-after"] = str(max(1, ceil(error.retry_after or 1)))
    reply = Failure(openai.failure(error, status), status, headers)
    reply.code = error.code or str(status)
    return reply


def routing_reply(method: str, path: str, error: HTTPException) -> Failure:
    """The answer where the router found no such path (404) or method (405)."""
    allowed = (error.headers or {}).get("Allow", "")
    methods = ", ".join(sorted(allowed.replace(",", " ").split()))
    message = {
        404: f"there is nothing at {path}; see {', '.join(PATHS)}",
        405: f"{path} does not take {method}: use {methods}",
    }.get(error.status_code, error.detail)
    reply = error_reply(RequestError(message), error.status_code)
    if methods:
        reply.headers["allow"] = methods
    return reply


def public(error: BaseException, request_id: str) -> KwaaiError:
    """What a client may know of an error: ours as it is; others are logged, and named by id."""
    cause = error
    while isinstance(cause, BaseExceptionGroup) and len(cause.exceptions) == 1:
        cause = cause.exceptions[0]
    if isinstance(cause, KwaaiError):
        return cause
    if said := refusal(cause):
        log.error("request %s: %s", request_id, said)
        return KwaaiError(f"this node's machine fails it: its log has more under {request_id}")
    log.error("request %s met a bug", request_id, exc_info=error)
    return KwaaiError(f"this node has a bug: its log has more under {request_id}")
