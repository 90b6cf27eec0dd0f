"""The executor that runs GGUF models on llama.cpp, in worker processes of its own."""

from __future__ import annotations

from kwaai_core import Executor, Offer, hookimpl
from kwaai_lobe_llama.settings import LlamaSettings


@hookimpl
def provide_executor() -> Offer[Executor]:
    """Models of every catalog, loaded on demand within ``[llama] memory``."""
    return Offer("llama", _open, LlamaSettings)


def _open(host):  # type: ignore[no-untyped-def]  # typed by the offer; imports stay inside
    from kwaai_lobe_llama.executor import open_executor

    return open_executor(host)
