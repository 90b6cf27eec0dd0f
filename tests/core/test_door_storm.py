"""Doors in a storm: whatever breaks and whenever, nobody gets in who is out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from kwaai_core.errors import NoPeerAvailable, UpstreamLost
from kwaai_core.testing import Line, Network, befriend

from .worlds import ROUNDS, One, World, says

STORM = 600.0
"""For how many seconds things go wrong."""


async def reach_out(node: One, others: Sequence[One], chance: random.Random) -> None:
    """Say something to somebody, all the time."""
    while True:
        await trio.sleep(chance.expovariate(1 / 10))
        await reaches(node, chance.choice(others))


async def reaches(node: One, other: One) -> bool:
    """Whether an answer comes; it may only come from who is admitted."""
    try:
        await says(node.role, other.peer)
    except (NoPeerAvailable, UpstreamLost):
        return False
    assert node.gate.admits(other.peer)
    return True


async def rage(network: Network, nodes: Sequence[One], chance: random.Random) -> None:
    """Cut off, freeze and kill nodes, for a while each; at the end all is well with the lines."""
    with trio.move_on_after(STORM):
        while True:
            await trio.sleep(chance.expovariate(1 / 30))
            peer = chance.choice(nodes).peer
            trouble = chance.choice([network.partition, network.freeze, network.kill])
            trouble(peer)
            await trio.sleep(chance.choice([0.1, 3, 20]))
            network.heal()
            network.thaw(peer)
            network.revive(peer)
    network.heal()
    for node in nodes:
        network.thaw(node.peer)
        network.revive(node.peer)


@pytest.mark.parametrize("seed", range(10))
async def test_nobody_gets_in_who_is_out(
    seed: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A member is put out in the middle of it, and somebody from outside tries all the while."""
    world = World(tmp_path)
    world.network = Network(seed, Line(0.02, jitter=0.02, stall=0.05, loss=0.01))
    names = ("founder", "one", "two", "rogue", "outsider")
    identities = [world.identity(name) for name in names]
    founder, one, two, rogue, _ = identities
    group = befriend(founder, one, two, rogue)
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(world.node(identity, name))
            for identity, name in zip(identities, names, strict=True)
        ]
        async with trio.open_nursery() as nursery:
            for node in nodes:
                others = [other for other in nodes if other is not node]
                nursery.start_soon(reach_out, node, others, random.Random(f"{seed} {node.peer}"))
            nursery.start_soon(rage, world.network, nodes, random.Random(seed))
            await trio.sleep(STORM / 2)
            founder.revoke(group, rogue.did)
            await trio.sleep(STORM / 2 + 2 * ROUNDS)
            nursery.cancel_scope.cancel()
        *members, out, outsider = nodes
        for node in members:
            assert not node.gate.admits(out.peer)
            assert not node.gate.admits(outsider.peer)
            assert not await reaches(out, node)
            assert not await reaches(outsider, node)
            for other in members:
                assert other is node or await persists(node, other)
        for node in nodes:
            assert all(admitted for _, admitted in node.heard)
            assert outsider.peer not in dict(node.heard)
        assert out.peer in dict(members[0].heard)  # as long as it was a member


async def persists(node: One, other: One) -> bool:
    """Whether one of some attempts reaches, on lines that break."""
    return any([await reaches(node, other) for _ in range(5)])
