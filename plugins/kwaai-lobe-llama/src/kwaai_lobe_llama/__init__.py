"""The executor that runs GGUF models on llama.cpp, in worker processes of its own."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from kwaai_core import Executor, Host, Offer, hookimpl
from kwaai_lobe_llama.settings import LlamaSettings


@hookimpl
def provide_executor() -> Offer[Executor]:
    """Models of every catalog, loaded on demand within ``[llama] memory``."""
    return Offer("llama", _open, LlamaSettings)


def _open(host: Host) -> AbstractAsyncContextManager[Executor]:
    from kwaai_lobe_llama.executor import open_executor

    return open_executor(host)
