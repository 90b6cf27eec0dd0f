"""Routes over the blocks of models that peers hold, and what this node holds for theirs."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from kwaai_core import Host, Offer, Router, hookimpl
from kwaai_lobe_router.settings import SpansSettings


@hookimpl
def provide_router() -> Offer[Router]:
    """A router over the whole models of this node and over spans that it and its peers hold."""
    return Offer("spans", _open, SpansSettings)


def _open(host: Host) -> AbstractAsyncContextManager[Router]:
    from kwaai_lobe_router.router import open_router

    return open_router(host)
