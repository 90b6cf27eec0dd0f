"""What every filling of a role must do: plain async functions, one for each rule.

They need no pytest. Each raises :class:`Nonconformance`, which names the rule, what was expected
and what came. ``CATALOG_RULES``, ``EXECUTOR_RULES`` and so on are the rules themselves.
"""

from kwaai_core.testing.conformance.catalog import CATALOG_RULES, check_catalog
from kwaai_core.testing.conformance.embedder import EMBEDDER_RULES, check_embedder
from kwaai_core.testing.conformance.executor import EXECUTOR_RULES, Subject, check_executor
from kwaai_core.testing.conformance.identity import IDENTITY_RULES, check_identity
from kwaai_core.testing.conformance.router import ROUTER_RULES, check_router
from kwaai_core.testing.conformance.rules import Nonconformance
from kwaai_core.testing.conformance.spans import SPAN_RULES, SpanSubject, check_spans
from kwaai_core.testing.conformance.transport import TRANSPORT_RULES, check_transport

__all__ = [
    "CATALOG_RULES", "EMBEDDER_RULES", "EXECUTOR_RULES", "IDENTITY_RULES", "ROUTER_RULES",
    "SPAN_RULES", "TRANSPORT_RULES", "Nonconformance", "SpanSubject", "Subject", "check_catalog",
    "check_embedder", "check_executor", "check_identity", "check_router", "check_spans",
    "check_transport",
]  # fmt: skip
