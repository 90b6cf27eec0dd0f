"""The embedder: all-MiniLM-L6-v2 with int8 weights, on onnxruntime."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from kwaai_core import Embedder, Host, Offer, hookimpl
from kwaai_lobe_minilm.settings import MinilmSettings


@hookimpl
def provide_embedder() -> Offer[Embedder]:
    """The bundled model, checked against its known digest."""
    return Offer("minilm", _open, MinilmSettings)


def _open(host: Host) -> AbstractAsyncContextManager[Embedder]:
    from kwaai_lobe_minilm.embedder import open_embedder

    return open_embedder(host)
