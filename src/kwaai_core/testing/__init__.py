"""What authors of lobes test with: fakes, conformance checks, and a pytest plugin.

:mod:`kwaai_core.testing.fakes` and :mod:`kwaai_core.testing.conformance` need no pytest;
:mod:`kwaai_core.testing.models` needs the extra ``kwaai-core[testing]``.
"""

from kwaai_core.testing.conformance import (
    Nonconformance,
    check_catalog,
    check_executor,
    check_router,
)
from kwaai_core.testing.fakes import CARD, FakeCatalog, FakeHost, Played, ScriptedExecutor, Step
from kwaai_core.testing.nodes import load_lobe, open_test_node

__all__ = [
    "CARD", "FakeCatalog", "FakeHost", "Nonconformance", "Played", "ScriptedExecutor", "Step",
    "check_catalog", "check_executor", "check_router", "load_lobe", "open_test_node",
]  # fmt: skip
