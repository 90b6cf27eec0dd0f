"""What every identity must do."""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from kwaai_core.errors import NotVerified, RequestError
from kwaai_core.peering import Group, Identity, Invitation
from kwaai_core.roles import Host
from kwaai_core.testing.conformance.rules import SECONDS, broken, hold, refused, require
from kwaai_core.testing.ed25519 import did_key, peer_id, public_key
from kwaai_core.testing.fakes import FakeHost

OpenIdentity = Callable[[Host], AbstractAsyncContextManager[Identity]]
ADDRESSES = ("/ip4/127.0.0.1/tcp/4001", "/ip6/::1/tcp/4001")
MINUTE = 60.0
DEEP = b"[" * 100_000
JUNK = (b"", b"\0", b"\xff\xfe", b"[]", b"{}", b"null", b"7", b'"text"', b"[[]]", b'{"a":', DEEP)
NAMES = ("", "z6Mk", "did:key:", "did:key:z", "did:web:a.b", "12D3KooW", "1" * 10_000, "\0", "é")


async def check_identity(open_identity: OpenIdentity, *, seconds: float = SECONDS) -> None:
    """Check every rule of :class:`kwaai_core.Identity`; ``open_identity`` is its offer's ``open``.

    It is opened on hosts with nothing but folders, which are removed at the end. ``seconds`` is
    how long one rule may take. Errors: :class:`Nonconformance`.
    """
    for rule in IDENTITY_RULES:
        await hold(partial(rule, open_identity), rule.__name__, seconds)


class _Town:
    """Identities by name, each in a folder of its own, opened when asked for."""

    def __init__(self, open_identity: OpenIdentity, folder: Path, stack: AsyncExitStack) -> None:
        self._open = open_identity
        self._folder = folder
        self._stack = stack

    async def open(self, name: str) -> Identity:
        """Opened once more beside itself where it is open; the folder decides who it is."""
        return await self._stack.enter_async_context(self._open(FakeHost(self._folder / name)))

    @asynccontextmanager
    async def briefly(self, name: str) -> AsyncIterator[Identity]:
        async with self._open(FakeHost(self._folder / name)) as identity:
            yield identity


@asynccontextmanager
async def _town(open_identity: OpenIdentity) -> AsyncIterator[_Town]:
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            yield _Town(open_identity, Path(folder), stack)


async def _invited(
    inviter: Identity, *, may_invite: bool = False, name: str = "home"
) -> Invitation:
    return await inviter.invite(name, ADDRESSES, seconds=MINUTE, may_invite=may_invite)


async def _let_in(inviter: Identity, joiner: Identity, *, may_invite: bool = False) -> Group:
    """The whole way from an invitation to a membership."""
    invitation = joiner.invitation((await _invited(inviter, may_invite=may_invite)).line)
    membership = await inviter.admit(joiner.peer_id, joiner.answer_to(invitation))
    return await joiner.join(invitation, membership)


def _common(one: Identity, other: Identity) -> tuple[Group, ...]:
    return one.meet(other.peer_id, other.introduce()).groups


async def the_names_are_of_one_key(open_identity: OpenIdentity) -> None:
    """DID and peer id are those of the handshake's key, and lead to one another."""
    async with _town(open_identity) as town:
        one, other = await town.open("one"), await town.open("other")
        public = public_key(one.handshake_key())
        require(one.did == did_key(public), f"the key's DID is {did_key(public)}, not {one.did}")
        require(one.peer_id == peer_id(public), f"{one.peer_id} is not {peer_id(public)}")
        require(other.did != one.did, "two fresh identities have one DID")
        require(one.did_of(other.peer_id) == other.did, "did_of leads to another DID")
        require(one.peer_of(other.did) == other.peer_id, "peer_of leads to another peer")
        document = one.resolve(other.did)
        require(document.get("id") == other.did, f"resolve gives the document {document}")
        for name in NAMES:
            for method in (one.did_of, one.peer_of, one.resolve):
                async with refused(NotVerified, f"{method.__name__}({name[:20]!r})"):
                    method(name)


async def it_is_the_same_when_opened_again(open_identity: OpenIdentity) -> None:
    """Key, derived secrets and memberships outlive the process."""
    async with _town(open_identity) as town:
        async with town.briefly("one") as one, town.briefly("founder") as founder:
            before = one.did, one.derive("label", 32), await _let_in(founder, one)
        async with town.briefly("one") as one:
            after = one.did, one.derive("label", 32), *one.groups
        require(before == after, f"opened again, {before} became {after}")


async def a_signature_is_good_for_one_thing(open_identity: OpenIdentity) -> None:
    """For one purpose, one signer and one type; whatever the payload."""
    async with _town(open_identity) as town:
        one, other = await town.open("one"), await town.open("other")
        for payload in (b"", b"\0\xff", b"{}", b"x" * 10_000):
            jws = one.sign("record", payload)
            require(jws.count(".") == 2 and jws.isascii(), f"no compact JWS: {jws[:80]}")
            came = other.verify("record", one.did, jws)
            require(came == payload, f"signed was {payload[:20]!r}, verified {came[:20]!r}")
        typed = one.sign("record", b"payload", typ="example+jwt")
        require(other.verify("record", one.did, typed, typ="example+jwt") == b"payload", "no typ")
        wrong = {
            "another purpose": ("receipt", one.did, jws, "JOSE"),
            "another signer": ("record", other.did, jws, "JOSE"),
            "another type": ("record", one.did, jws, "vc+jwt"),
            "a type where none is due": ("record", one.did, typed, "JOSE"),
        }
        for what, (purpose, did, statement, typ) in wrong.items():
            async with refused(NotVerified, f"verify with {what}"):
                other.verify(purpose, did, statement, typ=typ)


async def an_altered_signature_is_refused(open_identity: OpenIdentity) -> None:
    """Whichever character is another, missing or added; and what never was a signature."""
    async with _town(open_identity) as town:
        one = await town.open("one")
        jws = one.sign("record", b"payload")
        altered = [jws[:at] + _other(jws[at]) + jws[at + 1 :] for at in range(len(jws))]
        altered += [jws[:-1], jws[1:], " " + jws, jws.rpartition(".")[0] + ".", jws * 2]
        altered += [jws + end for end in ("A", "=", "\n", ".", "." + jws)]
        altered += ["..", "...", "a.b.c", *NAMES, *(junk.decode("latin-1") for junk in JUNK)]
        for statement in altered:
            async with refused(NotVerified, f"verify({statement[:200]!r})"):
                one.verify("record", one.did, statement)


def _other(character: str) -> str:
    return "B" if character == "A" else "A"


async def secrets_are_apart(open_identity: OpenIdentity) -> None:
    """``derive`` differs by label and by node, ``agree`` by label and by pair; both repeat."""
    async with _town(open_identity) as town:
        one, other, third = [await town.open(name) for name in ("one", "other", "third")]
        derived = [one.derive("a", 32), one.derive("b", 32), other.derive("a", 32)]
        require(len(set(derived)) == 3, "derived secrets are equal that must not be")
        require(one.derive("a", 32) == derived[0], "derive gives something else each time")
        require(len(one.derive("a", 100)) == 100, "derive gives another number of bytes")
        require(one.agree(other.did, "a") == other.agree(one.did, "a"), "the two do not agree")
        agreed = [one.agree(other.did, "a"), one.agree(other.did, "b"), one.agree(third.did, "a")]
        require(len(set(agreed)) == 3, "agreed secrets are equal that must not be")
        require({len(secret) for secret in agreed} == {32}, "agreed secrets are not of 32 bytes")
        async with refused(NotVerified, "agree with nobody"):
            one.agree("did:key:z6Mk", "a")


async def an_invitation_makes_a_member(open_identity: OpenIdentity) -> None:
    """Both sides then find the group in the other's introduction, and a stranger none."""
    async with _town(open_identity) as town:
        founder, member, stranger = [await town.open(name) for name in ("one", "two", "three")]
        invitation = await _invited(founder)
        told = member.invitation(invitation.line)
        require(told == invitation, f"invited was {invitation}, and the line says {told}")
        require(told.addresses == ADDRESSES, f"the addresses became {told.addresses}")
        require(told.group == Group(founder.did, "home"), f"the group is {told.group}")
        require("\n" not in told.line and told.line.isprintable(), "it is not one line")
        group = await _let_in(founder, member)
        for identity in (founder, member):
            require(list(identity.groups) == [group], f"its groups are {identity.groups}")
        for one, other in ((founder, member), (member, founder)):
            met = one.meet(other.peer_id, other.introduce())
            require((met.peer, met.did) == (other.peer_id, other.did), f"met was {met}")
            require(met.groups == (group,), f"in common are {met.groups}, not {group}")
            require(met.expires > time.time(), f"it was over at once: {met}")
            require(_common(one, stranger) == (), "a stranger has a group in common")
            require(_common(stranger, one) == (), "a stranger has a group in common")


async def an_invitation_is_good_once(open_identity: OpenIdentity) -> None:
    """Not for the same peer again, not for another, and not after the inviter was restarted."""
    async with _town(open_identity) as town:
        one, two = await town.open("one"), await town.open("two")
        async with town.briefly("founder") as founder:
            invitation = await _invited(founder)
            other = await _invited(founder)
            await founder.admit(one.peer_id, one.answer_to(invitation))
            for peer in (one, two):
                async with refused(NotVerified, "admit of a used invitation"):
                    await founder.admit(peer.peer_id, peer.answer_to(invitation))
        async with town.briefly("founder") as founder:
            async with refused(NotVerified, "admit of a used invitation after a restart"):
                await founder.admit(one.peer_id, one.answer_to(invitation))
            await founder.admit(two.peer_id, two.answer_to(other))


async def an_answer_is_of_who_gave_it(open_identity: OpenIdentity) -> None:
    """Whoever overhears one, or makes one up, gets nothing, and uses nothing up."""
    async with _town(open_identity) as town:
        founder, one, thief = [await town.open(name) for name in ("founder", "one", "thief")]
        invitation = await _invited(founder)
        answer = one.answer_to(invitation)
        secret = invitation.line[-20:].encode()
        require(secret not in answer, "the answer has the end of the line in it")
        for peer, given in (
            (thief.peer_id, answer),
            (one.peer_id, answer[:-1]),
            (one.peer_id, answer[1:]),
            *((one.peer_id, junk) for junk in JUNK),
        ):
            async with refused(NotVerified, f"admit with the answer {given[:20]!r}"):
                await founder.admit(peer, given)
        await one.join(invitation, await founder.admit(one.peer_id, answer))


async def an_expired_invitation_is_refused(open_identity: OpenIdentity) -> None:
    """By both sides."""
    async with _town(open_identity) as town:
        founder, one = await town.open("founder"), await town.open("one")
        late = await founder.invite("home", ADDRESSES, seconds=0.0)
        async with refused(RequestError, "invitation(an expired line)"):
            one.invitation(late.line)
        async with refused(NotVerified, "admit of an expired invitation"):
            await founder.admit(one.peer_id, one.answer_to(late))


async def only_who_may_invites(open_identity: OpenIdentity) -> None:
    """A member does if it was let; then its guests are members to all the others."""
    async with _town(open_identity) as town:
        founder, may, may_not, guest = [await town.open(n) for n in ("one", "two", "three", "four")]
        await _let_in(founder, may, may_invite=True)
        group = await _let_in(founder, may_not)
        async with refused(RequestError, "invite by a member who may not"):
            await _invited(may_not)
        require(await _let_in(may, guest) == group, "the guest is in another group")
        for one in (founder, may, may_not):
            require(_common(one, guest) == (group,), "a member does not know the guest")
            require(_common(guest, one) == (group,), "the guest does not know a member")
        async with refused(RequestError, "invite by a guest of a member"):
            await _invited(guest)


async def a_name_is_not_a_group(open_identity: OpenIdentity) -> None:
    """Two founders' groups of one name are two; a name that nobody could type is refused."""
    async with _town(open_identity) as town:
        one, other, member = [await town.open(name) for name in ("one", "other", "member")]
        await _invited(one)
        await _let_in(other, member)
        require(_common(one, member) == (), "another founder's member is taken for one's own")
        require(_common(one, other) == (), "another founder is taken for a member")
        for name in ("", " ", "a b", "a\nb", "\x1b[2J", "x" * 300):
            async with refused(RequestError, f"invite into {name[:20]!r}"):
                await _invited(one, name=name)


async def what_is_another_s_counts_for_nothing(open_identity: OpenIdentity) -> None:
    """Neither its introduction nor its membership serves anybody else."""
    async with _town(open_identity) as town:
        founder, member, thief = [await town.open(name) for name in ("one", "two", "three")]
        invitation, second = await _invited(founder), await _invited(founder)
        elsewhere = await _invited(founder, name="elsewhere")
        membership = await founder.admit(member.peer_id, member.answer_to(invitation))
        for what, identity, other in (
            ("by another", thief, second),
            ("into another group", member, elsewhere),
        ):
            async with refused(NotVerified, f"join {what}"):
                await identity.join(other, membership)
        await member.join(invitation, membership)
        for introduction in (member.introduce(), founder.introduce()):
            met = founder.meet(thief.peer_id, introduction)
            require(met.groups == () and met.owner is None, f"a thief is met as {met}")


async def malformed_input_is_refused(open_identity: OpenIdentity) -> None:
    """Introductions, memberships and lines; an altered introduction proves nothing more."""
    async with _town(open_identity) as town:
        founder, member = await town.open("one"), await town.open("two")
        group, invitation = await _let_in(founder, member), await _invited(founder)
        sound = member.introduce()
        for junk in (*JUNK, sound[:-1], sound[: len(sound) // 2], sound * 2, b"x" * (1 << 22)):
            async with refused(NotVerified, f"meet with {junk[:20]!r}"):
                founder.meet(member.peer_id, junk)
            async with refused(NotVerified, f"join with {junk[:20]!r}"):
                await member.join(invitation, junk)
            async with refused(RequestError, f"invitation({junk[:20]!r})"):
                member.invitation(junk.decode("latin-1"))
        for cut in range(len(invitation.line)):
            async with refused(RequestError, f"invitation({invitation.line[:cut]!r})"):
                member.invitation(invitation.line[:cut])
        for at in range(0, len(sound), 7):
            _survives(founder, member, sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :], group)


def _survives(one: Identity, other: Identity, introduction: bytes, group: Group) -> None:
    try:
        met = one.meet(other.peer_id, introduction)
    except NotVerified:
        return
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the rule that is broken
        broken(f"meet with an altered introduction raised {error!r}")
    require(met.groups in ((), (group,)), f"an altered introduction shows {met.groups}")


IDENTITY_RULES: tuple[Callable[[OpenIdentity], Awaitable[None]], ...] = (
    the_names_are_of_one_key,
    it_is_the_same_when_opened_again,
    a_signature_is_good_for_one_thing,
    an_altered_signature_is_refused,
    secrets_are_apart,
    an_invitation_makes_a_member,
    an_invitation_is_good_once,
    an_answer_is_of_who_gave_it,
    an_expired_invitation_is_refused,
    only_who_may_invites,
    a_name_is_not_a_group,
    what_is_another_s_counts_for_nothing,
    malformed_input_is_refused,
)
