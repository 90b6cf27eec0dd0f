"""What authors of lobes test with: fakes, conformance checks, and a pytest plugin.

:mod:`kwaai_core.testing.fakes` and :mod:`kwaai_core.testing.conformance` need no pytest;
:mod:`kwaai_core.testing.models` needs the extra ``kwaai-core[testing]``.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kwaai_core.testing.conformance import (
        Nonconformance,
        check_catalog,
        check_embedder,
        check_executor,
        check_identity,
        check_router,
        check_spans,
        check_transport,
    )
    from kwaai_core.testing.embedding import EMBEDDER, EmbedCall, FakeEmbedder
    from kwaai_core.testing.fakes import CARD, FakeCatalog, FakeHost, Played, ScriptedExecutor, Step
    from kwaai_core.testing.identities import (
        FakeIdentities,
        FakeIdentity,
        befriend,
        fake_owner,
    )
    from kwaai_core.testing.network import Line, Network
    from kwaai_core.testing.nodes import load_lobe, open_test_node
    from kwaai_core.testing.spans import TOY, FakeSpanExecutor

__all__ = [
    "CARD",
    "EMBEDDER",
    "TOY",
    "EmbedCall",
    "FakeCatalog",
    "FakeEmbedder",
    "FakeHost",
    "FakeIdentities",
    "FakeIdentity",
    "FakeSpanExecutor",
    "Line",
    "Network",
    "Nonconformance",
    "Played",
    "ScriptedExecutor",
    "Step",
    "befriend",
    "check_catalog",
    "check_embedder",
    "check_executor",
    "check_identity",
    "check_router",
    "check_spans",
    "check_transport",
    "fake_owner",
    "load_lobe",
    "open_test_node",
]  # fmt: skip


_MODULES = ("fakes", "embedding", "identities", "network", "conformance", "nodes", "spans")


def __getattr__(name: str) -> Any:
    """Imported when asked for: every run of pytest loads the plugin in here, and trio is slow."""
    if name in __all__:
        for module in _MODULES:
            found = importlib.import_module(f"{__name__}.{module}")
            if hasattr(found, name):
                return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
