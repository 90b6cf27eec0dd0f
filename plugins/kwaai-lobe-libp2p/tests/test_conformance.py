"""The lobe is a transport as core's conformance checks have it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from kwaai_core import Host, Transport
from kwaai_core.testing.conformance.rules import hold
from kwaai_core.testing.conformance.swarm import Swarm
from kwaai_core.testing.conformance.transport import TRANSPORT_RULES
from kwaai_lobe_libp2p.settings import Libp2pSettings
from kwaai_lobe_libp2p.transport import open_transport

Rule = Callable[[Swarm], Awaitable[None]]


def on_loopback(host: Host) -> AbstractAsyncContextManager[Transport]:
    """The lobe's own ``open``, but for what it listens on."""
    settings = replace(host.settings(Libp2pSettings), listen=("/ip4/127.0.0.1/tcp/0",))
    host.tables[Libp2pSettings] = settings  # type: ignore[attr-defined]
    return open_transport(host)


@pytest.mark.parametrize("rule", TRANSPORT_RULES, ids=lambda rule: rule.__name__)
async def test_a_rule_of_the_transport_holds(rule: Rule, tmp_path: Path) -> None:
    swarm = Swarm(on_loopback, tmp_path, time.time, 0.2, 5.0, 2.0, None)
    await hold(lambda: rule(swarm), rule.__name__, 60)
