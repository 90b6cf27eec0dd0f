"""The door in front of every transport: who passes, who does not, and what the hostile get."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kwaai_core.config import Config, PeersSettings
from kwaai_core.door import (
    JOIN,
    MAX_SHOWN,
    PER_ROUND,
    RENEW_SECONDS,
    ROUND_SECONDS,
    STEP_SECONDS,
    Gate,
)
from kwaai_core.errors import (
    ConfigError,
    DeadlinePassed,
    KwaaiError,
    LobeFailed,
    NoPeerAvailable,
    NotVerified,
    PeerDenied,
    PeerLost,
    ProtocolRefused,
    RequestError,
)
from kwaai_core.lobes import Lobe
from kwaai_core.node import Node, open_node
from kwaai_core.peering import HELLO, Acquaintance, Stream, Transport
from kwaai_core.roles import Host, Offer
from kwaai_core.testing import (
    FakeIdentities,
    FakeIdentity,
    Network,
    befriend,
    fake_owner,
)
from kwaai_core.testing.network import MemoryTransport
from kwaai_core.types import RoleName

from .worlds import ECHO, HOUR, ROUNDS, YEAR, Anybody, One, World, echo, says


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@asynccontextmanager
async def pair(
    world: World, *, connected: bool = True, **settings: Any
) -> AsyncIterator[tuple[One, One]]:
    """Two members of one group, the second of which has dialled the first."""
    owned = world.identity("owned", fake_owner("Ada Lovelace"))
    other = world.identity("other")
    befriend(owned, other)
    async with world.node(owned, "one", **settings) as one, world.node(other, "two") as two:
        if connected:
            await two.role.connect(one.role.addresses)
        yield one, two


async def test_members_deal_with_each_other_and_see_what_each_has_proved(
    world: World, autojump_clock: MockClock
) -> None:
    async with pair(world) as (one, two):
        await says(one.role, two.peer)
        await says(two.role, one.peer)
        seen = await two.sees(one)
        assert seen["did"] == one.identity.did
        assert seen["owner"]["name"] == "Ada Lovelace"
        assert seen["groups"] == [{"founder": one.identity.did, "name": "home"}]
        assert seen["address"] == one.role.addresses[0]
        assert (seen["inbound"], seen["relayed"]) == (False, False)
        assert 0.02 <= seen["rtt"] < 0.05
        assert (seen["admitted"], seen["blocked"]) == (True, False)
        other = await one.sees(two)
        assert (other["inbound"], other["owner"], other["rtt"]) == (True, None, seen["rtt"])


async def test_a_stranger_is_neither_used_nor_let_in(
    world: World, autojump_clock: MockClock
) -> None:
    one, two = world.identity("one"), world.identity("two")
    befriend(one, world.identity("three"))  # being in some group is not being in the same
    async with world.node(one) as here, world.node(two, "two") as there:
        for this, that in ((here, there), (there, here)):
            with pytest.raises(PeerDenied, match="in no group of this node"):
                await this.role.connect(that.role.addresses)
            await trio.sleep(1)
            with pytest.raises(PeerDenied, match="in no group of this node"):
                await says(this.role, that.peer)
            await trio.sleep(1)
        assert not here.linked(there)
        assert not there.linked(here)


async def test_who_keeps_to_no_rules_reaches_two_protocols_and_is_left(
    world: World, autojump_clock: MockClock
) -> None:
    befriend(mine := world.identity("one"), world.identity("two"))
    async with world.node(mine) as one, world.stranger() as stranger:
        await stranger.connect(one.role.addresses)
        for protocol in (ECHO, "/kwaai/kad/1", "/meshsub/1.1.0"):
            assert not one.gate.allows(stranger.peer, protocol)
        with pytest.raises(PeerDenied):
            await says(stranger, one.peer)
        for protocol in (HELLO, JOIN):
            async with stranger.open(one.peer, protocol) as stream:
                await stream.send(stranger.identity.introduce())
                await stream.receive()
        await trio.sleep(ROUNDS)
        assert not one.linked(stranger)


async def test_a_stranger_that_has_dialled_is_not_used(
    world: World, autojump_clock: MockClock
) -> None:
    async with (
        world.node(world.identity("one")) as one,
        world.stranger() as stranger,
        stranger.serve(ECHO, echo),
    ):
        await stranger.connect(one.role.addresses)
        with pytest.raises(PeerDenied, match="have not met: .* does not serve /kwaai/hello/1"):
            await says(one.role, stranger.peer)


async def test_a_member_that_has_dialled_and_not_said_hello_is_asked(
    world: World, autojump_clock: MockClock
) -> None:
    async with pair(world) as (one, two):
        await two.role.disconnect(one.peer)
        one.gate._met.clear()
        two.raw.guard(Anybody())
        await two.role.connect(one.role.addresses)
        assert not one.gate.admits(two.peer)
        two.raw.guard(two.gate)
        await says(one.role, two.peer)


async def test_who_was_a_member_and_does_not_say_hello_any_more_is_none(
    world: World, autojump_clock: MockClock
) -> None:
    one_, other = world.identity("one"), world.identity("other")
    befriend(one_, other)
    async with world.node(one_) as one:
        async with world.node(other, "two") as two:
            await one.role.connect(two.role.addresses)
        assert one.gate.admits(other.peer_id)
        await trio.sleep(1)
        async with world.stranger(identity=other) as silent:
            with pytest.raises(PeerDenied, match="have not met: .* does not serve /kwaai/hello/1"):
                await one.role.connect(silent.addresses)
        assert not one.gate.admits(other.peer_id)


async def test_an_acquaintance_is_renewed_before_it_ends(
    world: World, autojump_clock: MockClock
) -> None:
    async with pair(world) as (one, two), one.role.open(two.peer, ECHO) as stream:
        for _ in range(30):
            await trio.sleep(HOUR / 10)
            assert one.gate.admits(two.peer)
            assert two.gate.admits(one.peer)
        await stream.send(b"still here")
        assert await stream.receive() == b"still here"


async def test_an_acquaintance_that_is_not_renewed_ends(
    world: World, autojump_clock: MockClock
) -> None:
    async with pair(world) as (one, two):
        world.ahead["all"] = HOUR + 1
        assert not one.gate.admits(two.peer)
        with pytest.raises(PeerDenied):
            await says(two.raw, one.peer)
        await trio.sleep(ROUNDS)
        await says(two.role, one.peer)
        await says(one.role, two.peer)


async def test_a_membership_that_has_ended_shuts_its_member_out(
    world: World, autojump_clock: MockClock
) -> None:
    async with pair(world) as (one, two), one.role.open(two.peer, ECHO) as stream:
        world.ahead["all"] = YEAR + 1
        await trio.sleep(ROUNDS)
        assert not one.linked(two)
        with pytest.raises(PeerLost):
            await stream.receive()
        with pytest.raises(PeerDenied):
            await two.role.connect(one.role.addresses)


@pytest.mark.parametrize("silent", [False, True])
async def test_a_revocation_ends_what_is_open_and_spreads(
    world: World, autojump_clock: MockClock, silent: bool
) -> None:
    founder, member, rogue = map(world.identity, ("founder", "member", "rogue"))
    group = befriend(founder, member, rogue)

    async def show(stream: Stream) -> None:
        await stream.receive()
        await stream.send(rogue.introduce())

    async with (
        world.node(founder, "founder") as one,
        world.node(member, "member") as two,
        world.stranger(identity=rogue) as three,  # it learns nothing of its own revocation
        AsyncExitStack() as hello,
    ):
        await hello.enter_async_context(three.serve(HELLO, show))
        await two.role.connect(one.role.addresses)
        for node in (one, two):
            await node.role.connect(three.addresses)
        async with three.open(one.peer, ECHO) as near, three.open(two.peer, ECHO) as far:
            founder.revoke(group, rogue.did)
            if silent:
                await hello.aclose()
            with pytest.raises(PeerLost):
                await near.receive(seconds=1.3 * ROUND_SECONDS)
            with pytest.raises(PeerLost):
                await far.receive(seconds=1.3 * ROUND_SECONDS)
        for node in (one, two):
            assert not node.gate.admits(three.peer)
            assert not node.linked(three)
        assert two.gate.admits(one.peer)
        assert one.gate.admits(two.peer)


async def test_who_comes_back_after_a_revocation_is_not_taken_for_who_it_was(
    world: World, autojump_clock: MockClock
) -> None:
    async with pair(world) as (one, two):
        await two.role.disconnect(one.peer)
        one.identity.revoke(one.identity.groups[0], two.identity.did)
        assert one.gate.admits(two.peer)
        with pytest.raises((PeerDenied, PeerLost)):
            await two.role.connect(one.role.addresses)
            await says(two.role, one.peer)
        assert not one.gate.admits(two.peer)


@dataclass
class Moody:
    """What a member answers to a hello: what it is, or nothing, or garbage, as it is told."""

    shows: bytes
    silent: int = 0
    asked: int = 0

    async def answer(self, stream: Stream) -> None:
        await stream.receive()
        self.asked += 1
        if self.asked > self.silent:
            await stream.send(self.shows)


@asynccontextmanager
async def moody(world: World) -> AsyncIterator[tuple[One, MemoryTransport, Moody]]:
    """A node, and a member of its group that it has met."""
    one_, member = world.identity("one"), world.identity("member")
    befriend(one_, member)
    async with world.node(one_) as one, world.stranger(identity=member) as transport:
        mood = Moody(member.introduce())
        async with transport.serve(HELLO, mood.answer), transport.serve(ECHO, echo):
            await one.role.connect(transport.addresses)
            yield one, transport, mood


async def test_a_member_that_is_not_verified_any_more_is_cut_off_at_once(
    world: World, autojump_clock: MockClock
) -> None:
    async with moody(world) as (one, member, mood), one.role.open(member.peer, ECHO) as stream:
        befriend(one.identity, world.identity("another"), group="club")  # so it is asked anew
        mood.shows = b"garbage"
        with pytest.raises(PeerLost):
            await stream.receive(seconds=1.3 * ROUND_SECONDS)
        assert not one.gate.admits(member.peer)


async def test_a_renewal_that_breaks_off_is_tried_again(
    world: World, autojump_clock: MockClock
) -> None:
    async with moody(world) as (one, member, mood), one.role.open(member.peer, ECHO) as stream:
        befriend(one.identity, world.identity("another"), group="club")
        mood.silent, mood.asked = 2, 0
        await trio.sleep(ROUNDS)
        assert mood.asked == 3
        await stream.send(b"still here")
        assert await stream.receive() == b"still here"


async def test_a_member_that_never_finishes_a_renewal_is_left(
    world: World, autojump_clock: MockClock
) -> None:
    async with moody(world) as (one, member, mood), one.role.open(member.peer, ECHO) as stream:
        mood.silent = 1 << 30
        with pytest.raises(DeadlinePassed):
            await stream.receive(seconds=HOUR - ROUND_SECONDS)
        with pytest.raises(PeerLost):
            await stream.receive(seconds=3 * ROUND_SECONDS)
    async with moody(world) as (one, member, mood), one.role.open(member.peer, ECHO) as stream:
        befriend(one.identity, world.identity("another"), group="club")
        mood.silent = 1 << 30
        with pytest.raises(PeerLost):
            await stream.receive(seconds=1.3 * ROUND_SECONDS + STEP_SECONDS)


@pytest.mark.parametrize("seconds", [0, 2 * STEP_SECONDS])
async def test_a_hello_that_breaks_off_costs_a_member_nothing(
    world: World, autojump_clock: MockClock, seconds: float
) -> None:
    async with pair(world) as (one, two), one.role.open(two.peer, ECHO) as stream:
        async with two.raw.open(one.peer, HELLO):
            await trio.sleep(seconds)
        await trio.sleep(1)
        await stream.send(b"still here")
        assert await stream.receive() == b"still here"


async def test_a_greeting_that_breaks_off_makes_nobody_a_stranger(
    world: World, autojump_clock: MockClock
) -> None:
    async with moody(world) as (one, member, mood), one.role.open(member.peer, ECHO) as stream:
        mood.silent = mood.asked + 1
        with pytest.raises(PeerDenied, match="have not met"):  # and so a new link is not used
            await one.gate.greet(member.peer)
        assert one.gate.admits(member.peer)
        await stream.send(b"still here")
        assert await stream.receive() == b"still here"
        mood.shows = b"garbage"
        with pytest.raises(PeerDenied, match="have not met"):
            await one.gate.greet(member.peer)
        with pytest.raises(PeerLost):
            await stream.receive()


async def test_of_who_is_blocked_nothing_is_found(world: World, autojump_clock: MockClock) -> None:
    async with pair(world) as (one, two):
        await two.role.publish("name", b"body", seconds=HOUR)
        await two.role.provide("key", seconds=HOUR)
        assert await one.role.lookup(two.peer, "name") is not None
        assert await one.role.providers("key") == [two.peer]
        await one.gate.block(two.peer, blocked=True)
        assert await one.role.lookup(two.peer, "name") is None
        assert await one.role.providers("key") == []


async def test_a_block_holds_at_once_and_is_kept(world: World, autojump_clock: MockClock) -> None:
    async with pair(world) as (one, two), one.role.open(two.peer, ECHO) as stream:
        await one.gate.block(two.peer, blocked=True)
        with pytest.raises(PeerLost):
            await stream.receive()
        await trio.sleep(1)
        with pytest.raises(PeerDenied):
            await two.role.connect(one.role.addresses)
        await trio.sleep(1)
        with pytest.raises(PeerDenied, match="is blocked here"):
            await one.role.connect(two.role.addresses)
        (seen,) = await one.gate.peers()
        assert (seen["peer"], seen["blocked"], seen["admitted"]) == (two.peer, True, False)
        assert (seen["address"], seen["did"]) == (None, two.identity.did)
    async with pair(world, connected=False) as (one, two):
        with pytest.raises(PeerDenied):
            await two.role.connect(one.role.addresses)


async def test_a_node_does_not_block_itself(world: World, autojump_clock: MockClock) -> None:
    async with world.node(world.identity("one")) as one:
        with pytest.raises(RequestError, match="is this node itself"):
            await one.gate.block(one.peer, blocked=True)


async def test_a_block_can_be_taken_back(world: World, autojump_clock: MockClock) -> None:
    async with pair(world) as (one, two):
        await one.gate.block(two.peer, blocked=True)
        await one.gate.block(two.peer, blocked=False)
        await two.role.connect(one.role.addresses)
        await says(one.role, two.peer)


async def test_only_a_peer_id_can_be_blocked(world: World, autojump_clock: MockClock) -> None:
    async with world.node(world.identity("one")) as one:
        for nonsense in ("", "12D3KooW", one.identity.did, "12D3KooW" + "0" * 44):
            with pytest.raises(RequestError, match="is no peer id"):
                await one.gate.block(nonsense, blocked=True)


async def test_a_denied_member_stays_out(world: World, autojump_clock: MockClock) -> None:
    denied = world.identity("other").peer_id
    settings = {"deny": (denied,), "open_to": "anyone", "allow": (denied,)}
    async with pair(world, connected=False, **settings) as (one, two):
        with pytest.raises(PeerDenied):
            await two.role.connect(one.role.addresses)


class Rotated(FakeIdentity):
    """Knows of everybody which key it had before."""

    def __init__(self, *arguments: Any, formerly: str, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._formerly = formerly

    def meet(self, peer: str, introduction: bytes) -> Acquaintance:
        return replace(super().meet(peer, introduction), formerly=(self._formerly,))


async def test_a_block_follows_a_peer_to_its_next_key(
    world: World, autojump_clock: MockClock
) -> None:
    before, after = world.identity("before"), world.identity("after")
    knowing = Rotated("one", formerly=before.did, now=world.clock("one"))
    befriend(knowing, after)
    async with world.node(knowing) as one, world.node(after, "two") as two:
        await two.role.connect(one.role.addresses)
        await says(two.role, one.peer)
        await one.gate.block(before.peer_id, blocked=True)
        with pytest.raises(PeerDenied):
            await says(two.raw, one.peer)


async def send_garbage(stream: Stream) -> None:
    await stream.send(b"\xff garbage")


async def send_too_much(stream: Stream) -> None:
    await stream.send(bytes(MAX_SHOWN + 1))


async def send_nothing(stream: Stream) -> None:
    await trio.lowlevel.checkpoint()


async def send_the_end(stream: Stream) -> None:
    await stream.end()


@pytest.mark.parametrize("misbehave", [send_garbage, send_too_much, send_nothing, send_the_end])
@pytest.mark.parametrize("protocol", [HELLO, JOIN])
async def test_who_misbehaves_is_dropped_and_nobody_else_notices(
    world: World, autojump_clock: MockClock, misbehave: Callable[[Stream], Any], protocol: str
) -> None:
    async with pair(world) as (one, two), world.stranger() as stranger:
        await stranger.connect(one.role.addresses)
        opening = stranger.open(one.peer, protocol, max_frame=2 * MAX_SHOWN)
        async with one.role.open(two.peer, ECHO) as honest, opening as stream:
            await misbehave(stream)
            if (protocol, misbehave) == (JOIN, send_garbage):
                assert await stream.receive() == b""
            else:
                with pytest.raises(PeerLost):
                    await stream.receive(seconds=2 * STEP_SECONDS)
                assert not one.linked(stranger)
            await honest.send(b"as ever")
            assert await honest.receive() == b"as ever"


async def test_who_is_dialled_and_answers_with_garbage_is_left(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.node(world.identity("one")) as one, world.stranger() as stranger:
        async with stranger.serve(HELLO, send_garbage):
            with pytest.raises(PeerDenied, match="have not met"):
                await one.role.connect(stranger.addresses)
        async with stranger.serve(HELLO, partial(trio.sleep, 10 * HOUR)):
            with trio.fail_after(2 * STEP_SECONDS), pytest.raises(PeerDenied, match="have not met"):
                await one.role.connect(stranger.addresses)
        assert not one.linked(stranger)


async def test_garbage_from_a_member_ends_its_being_one(
    world: World, autojump_clock: MockClock
) -> None:
    async with pair(world) as (one, two):
        async with two.raw.open(one.peer, HELLO) as stream:
            await send_garbage(stream)
            with pytest.raises(PeerLost):
                await stream.receive()
        assert not one.gate.admits(two.peer)
        await two.role.connect(one.role.addresses)
        await says(one.role, two.peer)


@pytest.mark.parametrize("protocol", [HELLO, JOIN])
async def test_a_flood_is_dropped_and_costs_little(
    world: World, autojump_clock: MockClock, protocol: str
) -> None:
    verified = list[bytes]()

    class Counting(FakeIdentity):
        def meet(self, peer: str, introduction: bytes) -> Acquaintance:
            verified.append(introduction)
            return super().meet(peer, introduction)

        async def admit(self, peer: str, answer: bytes) -> bytes:
            verified.append(answer)
            return await super().admit(peer, answer)

    shown = world.identity("stranger").introduce()
    async with (
        world.node(Counting("one", now=world.network.now)) as one,
        world.stranger() as stranger,
    ):
        for _ in range(3 * PER_ROUND):
            with pytest.raises(PeerLost):
                for _ in range(2 * PER_ROUND):
                    async with stranger.open(one.peer, protocol) as stream:
                        await stream.send(shown)
                        await stream.receive()
        assert len(verified) == PER_ROUND
        await trio.sleep(ROUNDS)
        async with stranger.open(one.peer, protocol) as stream:
            await stream.send(shown)
            await stream.receive()


async def test_a_crowd_that_says_nothing_is_dropped_at_once(
    world: World, autojump_clock: MockClock
) -> None:
    async with (
        world.node(world.identity("one")) as one,
        world.stranger() as stranger,
        AsyncExitStack() as streams,
    ):
        for _ in range(PER_ROUND):
            await streams.enter_async_context(stranger.open(one.peer, HELLO))
        assert one.linked(stranger)
        before = trio.current_time()
        with pytest.raises(PeerLost):
            async with stranger.open(one.peer, JOIN) as stream:
                await stream.receive()
        assert trio.current_time() - before < STEP_SECONDS / 2
        assert not one.linked(stranger)


async def test_strangers_that_have_gone_are_forgotten(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.node(world.identity("one"), open_to="anyone") as one:
        for number in range(30):
            async with world.node(world.identity(str(number)), open_to="anyone") as stranger:
                await stranger.role.connect(one.role.addresses)
        assert len(await one.gate.peers()) == 30
        await trio.sleep(ROUNDS)
        assert await one.gate.peers() == []


async def test_a_member_may_come_and_go(world: World, autojump_clock: MockClock) -> None:
    async with pair(world) as (one, two):
        for _ in range(10 * PER_ROUND):
            await two.role.disconnect(one.peer)
            await two.role.connect(one.role.addresses)
        await says(one.role, two.peer)


async def test_an_invitation_makes_members_of_both_sides(
    world: World, autojump_clock: MockClock
) -> None:
    async with (
        world.node(world.identity("one", fake_owner("Ada"))) as one,
        world.node(world.identity("two"), "two") as two,
    ):
        made = await one.identity.invite("club", one.role.addresses, seconds=60)
        group = await two.gate.join(f" {made.line}\n")
        assert (group.founder, group.name) == (one.identity.did, "club")
        for this, that in ((one, two), (two, one)):
            seen = await this.sees(that)
            assert seen["groups"] == [{"founder": group.founder, "name": "club"}]
            assert seen["admitted"]
            await says(this.role, that.peer)


async def test_an_invitation_is_good_once(world: World, autojump_clock: MockClock) -> None:
    async with (
        world.node(world.identity("one")) as one,
        world.node(world.identity("two"), "two") as two,
        world.node(world.identity("three"), "three") as three,
    ):
        made = await one.identity.invite("home", one.role.addresses, seconds=60)
        await two.gate.join(made.line)
        with pytest.raises(RequestError, match="was used before, or has expired"):
            await three.gate.join(made.line)
        with pytest.raises(PeerDenied):
            await says(three.role, one.peer)
        assert not one.gate.admits(three.peer)
        assert three.identity.groups == []


@pytest.mark.parametrize("behind", [False, True])
async def test_an_invitation_ends(world: World, autojump_clock: MockClock, behind: bool) -> None:
    async with (
        world.node(world.identity("one")) as one,
        world.node(world.identity("two"), "two") as two,
    ):
        made = await one.identity.invite("home", one.role.addresses, seconds=60)
        await trio.sleep(61)
        world.ahead["two"] = -100.0 if behind else 0.0  # a clock that is behind is no way around
        with pytest.raises(RequestError, match="expired"):
            await two.gate.join(made.line)
        assert two.identity.groups == []


async def test_what_is_no_invitation_is_refused(world: World, autojump_clock: MockClock) -> None:
    async with world.node(world.identity("one")) as one:
        with pytest.raises(RequestError, match="no invitation"):
            await one.gate.join("please")
        made = await one.identity.invite("home", one.role.addresses, seconds=60)
        with pytest.raises(RequestError, match="this node's own"):
            await one.gate.join(made.line)


async def test_an_inviter_that_is_away_or_lies_is_an_error(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.node(world.identity("one")) as one, world.stranger() as liar:
        away = await FakeIdentity("away").invite("home", ["/ip4/10.9.9.9/tcp/1"], seconds=HOUR)
        with pytest.raises(KwaaiError):
            await one.gate.join(away.line)
        made = await world.identity("stranger").invite("home", liar.addresses, seconds=60)

        async def lie(stream: Stream) -> None:
            await stream.receive()
            await stream.send(b"welcome")

        async def show(stream: Stream) -> None:
            await stream.receive()
            await stream.send(liar.identity.introduce())

        async with liar.serve(HELLO, show), liar.serve(JOIN, lie), liar.serve(ECHO, echo):
            with pytest.raises(NotVerified):
                await one.gate.join(made.line)
            with pytest.raises(PeerDenied):
                await says(one.role, liar.peer)
        await trio.sleep(ROUNDS)
        assert not one.linked(liar)


async def test_a_blocked_inviter_is_said(world: World, autojump_clock: MockClock) -> None:
    async with (
        world.node(world.identity("one")) as one,
        world.node(world.identity("two"), "two") as two,
    ):
        made = await one.identity.invite("home", one.role.addresses, seconds=60)
        await two.gate.block(one.peer, blocked=True)
        with pytest.raises(PeerDenied, match="is blocked here"):
            await two.gate.join(made.line)


async def test_a_door_open_to_anyone_lets_strangers_be_used_and_use(
    world: World, autojump_clock: MockClock
) -> None:
    async with (
        world.node(world.identity("one"), open_to="anyone") as one,
        world.stranger() as stranger,
        stranger.serve(ECHO, echo),
    ):
        await says(one.role, stranger.peer)
        await says(stranger, one.peer)
        await trio.sleep(ROUNDS)
        assert one.linked(stranger)


async def test_a_peer_that_is_allowed_needs_no_group(
    world: World, autojump_clock: MockClock
) -> None:
    friend = world.identity("stranger").peer_id
    async with (
        world.node(world.identity("one"), allow=(friend,)) as one,
        world.stranger() as stranger,
        stranger.serve(ECHO, echo),
        world.stranger("another") as another,
    ):
        await says(one.role, stranger.peer)
        await says(stranger, one.peer)
        with pytest.raises(PeerDenied):
            await one.role.connect(another.addresses)
        await trio.sleep(1)
        with pytest.raises(PeerDenied):
            await says(another, one.peer)


async def test_the_role_is_the_transport_s_otherwise(
    world: World, autojump_clock: MockClock
) -> None:
    async with pair(world) as (one, two):
        assert one.role.addresses == one.raw.addresses
        assert one.role.links() == one.raw.links()
        await one.role.publish("name", b"body", seconds=60)
        record = await two.role.lookup(one.peer, "name")
        assert record is not None
        assert record.body == b"body"
        with pytest.raises(ProtocolRefused):
            await says(one.role, two.peer, "/kwaai/unknown/1")


def test_the_page_of_protocols_has_the_numbers() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/peers.md").read_text()
    for protocol in (HELLO, JOIN):
        assert re.search(rf"^\| `{protocol}` \|.*\| {MAX_SHOWN:,} bytes \|$", page, re.MULTILINE)
    for limit in (
        f"| {STEP_SECONDS:g} seconds |",
        f"| {PER_ROUND} in about {ROUND_SECONDS:g} seconds |",
        f"in the last {RENEW_SECONDS / 60:g} minutes |",
        f"| closed within about {2 * 1.25 * ROUND_SECONDS:g} seconds |",
    ):
        assert limit in page


def test_settings_take_peer_ids_only(tmp_path: Path) -> None:
    for key in ("allow", "deny"):
        config = Config(tmp_path / "kwaai.toml", tmp_path, {"peers": {key: ["did:key:z6Mk"]}})
        with pytest.raises(ConfigError, match=r"\[peers\] 'did:key:z6Mk' is no peer id"):
            config.table("peers", PeersSettings)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"blocked": 7}', "\x00"])
async def test_a_damaged_list_of_the_blocked_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / "peers.json").write_text(content)
    with pytest.raises(ConfigError, match=r"peers\.json must say which peers are blocked"):
        Gate(PeersSettings(), tmp_path / "peers.json")


class Crashing:
    """Opens transports of a network, and lets them crash."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.opened = 0
        self.crash = trio.Event()

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Transport]:
        self.opened += 1
        self.crash = trio.Event()
        async with self.network.open(host) as transport, trio.open_nursery() as nursery:
            nursery.start_soon(self._crash)
            yield transport
            nursery.cancel_scope.cancel()

    async def _crash(self) -> None:
        await self.crash.wait()
        raise OSError("struck by lightning")


def lobe(role: RoleName, open_: Any) -> Lobe:
    return Lobe(role.value, "1", object(), {role: Offer(role.value, open_)})


@asynccontextmanager
async def whole(folder: Path, *lobes: Lobe, **peers: Any) -> AsyncIterator[Node]:
    config = Config(folder / "kwaai.toml", folder / "state", {"peers": peers})
    async with open_node(config, lobes) as node:
        yield node


async def test_the_door_is_there_again_after_a_crash(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    network, identities = Network(), FakeIdentities()
    crashing = Crashing(network)
    identity, transport = RoleName.IDENTITY, RoleName.TRANSPORT
    async with (
        whole(tmp_path / "a", lobe(identity, identities.open), lobe(transport, crashing.open)) as a,
        whole(tmp_path / "b", lobe(identity, identities.open), lobe(transport, network.open)) as b,
        network.node(FakeIdentity("stranger")) as stranger,
    ):
        stranger.guard(Anybody())
        assert a.transport is not None
        assert a.identity is not None
        assert b.transport is not None
        assert b.identity is not None
        assert (a.identity.owner, list(a.identity.groups)) == (None, [])
        peer = a.identity.peer_id
        made = await a.identity.invite("home", a.transport.addresses, seconds=HOUR)
        await b.gate.join(made.line)
        kept = a.transport
        for opened in (1, 2):
            assert crashing.opened == opened
            assert kept.addresses[0].endswith(peer)
            with pytest.raises(LobeFailed, match="it crashed"):
                async with kept.serve(ECHO, echo):
                    await says(b.transport, peer)
                    with pytest.raises(PeerDenied):
                        await says(stranger, peer)
                    crashing.crash.set()
                    await trio.sleep_forever()
            with pytest.raises(LobeFailed, match="“transport” failed"):
                _ = kept.addresses
            with pytest.raises((NoPeerAvailable, PeerLost)):
                await says(b.transport, peer)
            await trio.sleep(5)
        await a.gate.block(b.identity.peer_id, blocked=True)
        with pytest.raises(PeerDenied):
            await b.transport.connect(kept.addresses)


async def test_without_an_identity_nobody_is_let_in_and_that_is_said(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    network = Network()
    async with whole(tmp_path, lobe(RoleName.TRANSPORT, network.open)) as node:
        (status,) = [one for one in node.statuses() if one.role == "transport"]
        assert status.state == "failed"
        assert "nobody is let in: install kwaai-lobe-identity" in status.cause
        with pytest.raises(LobeFailed):
            _ = node.transport


async def test_while_the_identity_fails_the_transport_waits(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    network, failing = Network(), [True]

    @asynccontextmanager
    async def open_(host: Host) -> AsyncIterator[FakeIdentity]:
        if failing:
            raise OSError("no disk")
        yield FakeIdentity("one")

    lobes = lobe(RoleName.IDENTITY, open_), lobe(RoleName.TRANSPORT, network.open)
    async with whole(tmp_path, *lobes) as node:

        def state() -> tuple[str, str]:
            (status,) = [one for one in node.statuses() if one.role == "transport"]
            return status.state, status.cause

        assert state() == ("waiting", "identity failed: OSError: no disk")
        failing.clear()
        await trio.sleep(2)
        assert state() == ("ready", "")
