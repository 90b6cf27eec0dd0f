"""First contact: what an identity shows of itself, and what it makes of what others show."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from kwaai_core import Acquaintance, Group, NotVerified
from kwaai_lobe_identity import credentials
from kwaai_lobe_identity.circle import State, accusing, contradicting, remembering
from kwaai_lobe_identity.documents import loaded, parsed, parsing, written
from kwaai_lobe_identity.members import MAX_GROUPS, Members
from kwaai_lobe_identity.memberships import group_of, newest, standing
from kwaai_lobe_identity.names import did_of_key, key_of_peer
from kwaai_lobe_identity.succession import Lineage, Told, told

log = logging.getLogger(__name__)

MAX_INTRODUCTION = 1 << 18
"""The longest introduction in bytes."""
MEETING_SECONDS = 3600.0
"""How long what a peer has proved may be relied on, so that a revocation comes through."""
_MAX_HISTORY, _MAX_CONFLICTS = 49, 8


@dataclass(frozen=True, slots=True)
class Introduction:
    """What peers show one another; everything in it is signed by itself, or is about its bearer.

    ``history`` has the successions of the bearer, and those that the other statements need;
    ``conflicts`` are pairs of successions that contradict each other; ``owner`` may be empty.
    """

    founded: tuple[Group, ...]
    memberships: tuple[tuple[str, ...], ...]
    history: tuple[str, ...]
    revocations: tuple[str, ...]
    conflicts: tuple[tuple[str, ...], ...]
    owner: str


def introduction(members: Members, control: credentials.Control | None) -> bytes:
    """What this node shows."""
    state = members.circle.state()
    shown = Introduction(
        founded=state.founded,
        memberships=tuple(chain for _, chain in members.standings(state)),
        history=tuple(dict.fromkeys([*members.history, *state.history])),
        revocations=state.revocations,
        conflicts=state.conflicts[-_MAX_CONFLICTS:],
        owner=control.jwt if control is not None else "",
    )
    return written(shown)


def meet(members: Members, peer: str, content: bytes) -> Acquaintance:
    """See :meth:`kwaai_core.Identity.meet`."""
    did = did_of_key(key_of_peer(peer))
    with parsing("an introduction"):
        shown = _read(content)
        history = [told(jws) for jws in shown.history]
        state = _heard(members, history)
        lineage = members.lineage(state, history)
        _check(did, lineage, members.now())
        state = _learnt(members, state, shown, lineage)
        groups, good_until = _in_common(members, state, shown, lineage, did)
        control = credentials.control(shown.owner) if shown.owner else None
    if control is not None and not control.holds(lineage.names(did), members.now()):
        control = None
    if groups:
        _remember(members, state, shown, [one for one in history if one.did in lineage.names(did)])
    owner = control.owner if control is not None else None
    expires = min(good_until, control.expires if control is not None else good_until)
    return Acquaintance(peer, did, owner, groups, expires, lineage.names(did)[1:])


def _read(content: bytes) -> Introduction:
    """Errors: ValueError, TypeError."""
    if len(content) > MAX_INTRODUCTION:
        raise ValueError(f"it has more than {MAX_INTRODUCTION} bytes")
    shown = parsed(Introduction, loaded(content))
    if max(len(shown.founded), len(shown.memberships), len(shown.revocations)) > MAX_GROUPS:
        raise ValueError(f"it is about more than {MAX_GROUPS} groups")
    if len(shown.history) > _MAX_HISTORY or len(shown.conflicts) > _MAX_CONFLICTS:
        raise ValueError("it tells of too many rotations")
    return shown


def _heard(members: Members, history: Sequence[Told]) -> State:
    """The state, with what is shown now and contradicts what was shown before, as a proof."""
    state = members.circle.state()
    pairs = contradicting(state, history)
    new = accusing(state, pairs).frozen - state.frozen
    if not new:
        return state
    log.warning("frozen, since they have named two successors: %s", ", ".join(sorted(new)))
    with members.circle.changing() as changing:
        changing.state = accusing(changing.state, pairs)
    return members.circle.state()


def _check(did: str, lineage: Lineage, now: float) -> None:
    if lineage.touches_frozen(did):
        raise NotVerified(f"{did} is frozen: a key of it has named two successors")
    if lineage.until(did) <= now:
        raise NotVerified(f"{did} has by its own word been given up for another key")


def _learnt(members: Members, state: State, shown: Introduction, lineage: Lineage) -> State:
    """The state with the lists of revocations that are newer than what was known."""
    if members.with_lists(state, shown.revocations, lineage) is state:
        return state
    with members.circle.changing() as changing:
        changing.state = members.with_lists(changing.state, shown.revocations, lineage)
    return members.circle.state()


def _in_common(
    members: Members, state: State, shown: Introduction, lineage: Lineage, did: str
) -> tuple[tuple[Group, ...], float]:
    """The groups that both are in, and until when that is known."""
    theirs, mine, now = lineage.names(did), members.groups(state), members.now()
    lists = newest(state.revocations, mine, lineage)
    common = [group for group in shown.founded if group in mine and group.founder in theirs]
    expires = now + MEETING_SECONDS
    for chain in shown.memberships:
        group = group_of(chain)
        if group not in mine:
            continue
        held = standing(chain, lists, lineage, now)
        if held is not None and held.member in theirs:
            common.append(group)
            expires = min(expires, float(held.expires))
    return tuple(dict.fromkeys(common)), expires


def _remember(members: Members, state: State, shown: Introduction, kin: Sequence[Told]) -> None:
    """Keep what a member's keys have said, and the conflicts that it knows of, if they are news."""
    news = remembering(state, kin) != state
    proofs = [pair for pair in shown.conflicts if pair not in state.conflicts]
    if news or (proofs and accusing(state, proofs) != state):
        with members.circle.changing() as changing:
            changing.state = accusing(remembering(changing.state, kin), proofs)
