"""``/lobes/router/status`` and ``/lobes/router/plan``: what `kwaai swarm` shows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse
from starlette.routing import Route

from kwaai_core import Host, RequestError
from kwaai_lobe_router.settings import MOST_PROMPT, PROMPT

if TYPE_CHECKING:
    from starlette.requests import Request


def routes(host: Host) -> list[Route]:
    """Both, for the router that is open when they are called."""
    return [
        Route("/status", partial(_answer, host, planned=False)),
        Route("/plan", partial(_answer, host, planned=True)),
    ]


async def _answer(host: Host, request: Request, *, planned: bool) -> JSONResponse:
    router: Any = host.router
    show = getattr(router, "show", None)
    if show is None:
        raise RequestError("the router of this node is another: see [roles] router in kwaai.toml")
    model = request.query_params.get("model", "")
    prompt = request.query_params.get("prompt_tokens", str(PROMPT))
    if not prompt.isascii() or not prompt.isdecimal() or not 1 <= int(prompt[:10]) <= MOST_PROMPT:
        raise RequestError(
            f"prompt_tokens must be a whole number from 1 to {MOST_PROMPT}", param="prompt_tokens"
        )
    return JSONResponse(await show(model, planned=planned, prompt=int(prompt)))
