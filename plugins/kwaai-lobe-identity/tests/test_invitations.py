"""Invitations: one line, one use, for whoever holds it, and nobody who only overheard it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jwcrypto.common import base64url_decode, base64url_encode

from kwaai_core import Group, Invitation, NotVerified, RequestError
from kwaai_core.testing import FakeHost
from kwaai_lobe_identity.identity import open_identity
from kwaai_lobe_identity.invitations import answer, answered, make, read
from kwaai_lobe_identity.keys import Key

ADA, BOB, EVE = (Key(bytes([n]) * 32) for n in range(1, 4))
ADDRESSES = ["/ip4/127.0.0.1/tcp/4001", "/ip6/::1/tcp/4001/p2p/" + ADA.peer_id]
HOME = Group(ADA.did, "home")
LATE = 2_000


def invited() -> Invitation:
    return make(ADA.peer_id, ADDRESSES, HOME, LATE)[0]


GOOD = invited()
PREFIX, _, ENCODED = GOOD.line.partition(".")
FACTS: dict[str, Any] = json.loads(base64url_decode(ENCODED))


def line(facts: Any) -> str:
    return f"{PREFIX}.{base64url_encode(json.dumps(facts, separators=(',', ':')))}"


def test_a_line_says_all() -> None:
    assert read(line(FACTS), LATE - 1) == GOOD
    assert (GOOD.peer, GOOD.addresses, GOOD.group) == (ADA.peer_id, tuple(ADDRESSES), HOME)
    assert GOOD.expires == LATE
    assert invited().line != invited().line


def test_it_expires() -> None:
    with pytest.raises(RequestError, match="has expired: ask for another"):
        read(GOOD.line, LATE)


@pytest.mark.parametrize(
    "changes",
    [
        {"peer": ""},
        {"peer": ADA.did},
        {"addresses": "x"},
        {"addresses": ["no-slash"]},
        {"addresses": ["/ip4/\x1b[2J"]},
        {"addresses": ["/" + "a" * 256]},
        {"addresses": ["/a"] * 17},
        {"addresses": [7]},
        {"founder": "me"},
        {"group": "a b"},
        {"group": "\x1b[2J"},
        {"expires": 1e400},
        {"expires": "2000"},
        {"expires": -1},
        {"secret": "AAAA"},
        {"secret": "*"},
        {"secret": None},
        {"more": 1},
    ],
    ids=str,
)
def test_a_line_that_says_nonsense(changes: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="copy the whole line"):
        read(line(FACTS | changes), 0)


@given(
    st.text(max_size=200) | st.binary(max_size=200).map(lambda b: f"{PREFIX}.{base64url_encode(b)}")
)
def test_junk(text: str) -> None:
    with pytest.raises(RequestError, match="copy the whole line"):
        read(text, 0)


@given(st.integers(0, len(GOOD.line) - 1), st.text(max_size=3))
def test_a_line_that_was_changed(at: int, text: str) -> None:
    changed = GOOD.line[:at] + text + GOOD.line[at + 1 :]
    try:
        read(changed, 0)
    except RequestError:
        return
    says = json.loads(base64url_decode(changed.removeprefix(PREFIX + ".")))
    assert line(says) == changed


@pytest.mark.parametrize("addresses", [["x"], ["/a"] * 17, ["/a\n"], ["/é"]])
def test_addresses_that_nobody_can_dial(addresses: list[str]) -> None:
    with pytest.raises(RequestError, match="nobody could be invited so"):
        make(ADA.peer_id, addresses, HOME, LATE)


def test_an_answer_shows_no_secret_and_is_good_for_one_pair() -> None:
    invitation, did = make(ADA.peer_id, [], HOME, LATE)
    given = answer(invitation, BOB.did)
    secret = json.loads(base64url_decode(invitation.line.partition(".")[2]))["secret"]
    assert secret.encode() not in given
    assert answered(given, BOB.did, ADA.peer_id) == did
    for joiner, inviter in ((EVE.did, ADA.peer_id), (BOB.did, EVE.peer_id)):
        with pytest.raises(NotVerified, match="somebody else's"):
            answered(given, joiner, inviter)


@given(st.binary(max_size=200))
def test_answers_that_are_junk(given: bytes) -> None:
    with pytest.raises(NotVerified):
        answered(given, BOB.did, ADA.peer_id)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_answer_that_was_changed_uses_nothing_up(town: Any, data: st.DataObject) -> None:
    one, other = town("one", "other")
    if not hasattr(town, "invitation"):
        town.invitation = one.members.invite("home", [], 60, may_invite=False)
    given = other.answer_to(town.invitation)
    at = data.draw(st.integers(0, len(given) - 1))
    changed = given[:at] + data.draw(st.binary(max_size=2)) + given[at + 1 :]
    if changed != given:
        with pytest.raises(NotVerified):
            one.members.admit(other.peer_id, changed)
    assert len(one.members.circle.state().invitations) == 1


def test_the_secret_is_not_kept(town: Any) -> None:
    (one,) = town("one")
    invitation = one.members.invite("home", ["/ip4/127.0.0.1/tcp/1"], 60, may_invite=False)
    facts = json.loads(base64url_decode(invitation.line.partition(".")[2]))
    kept = b"".join(path.read_bytes() for path in town.state("one").path.iterdir())
    assert facts["secret"].encode() not in kept
    assert base64url_decode(facts["secret"]).hex().encode() not in kept


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e12])
def test_how_long_an_invitation_may_be_good(town: Any, seconds: float) -> None:
    with pytest.raises(RequestError, match="is good for 0 to"):
        town("one")[0].members.invite("home", [], seconds, may_invite=False)


def test_late_is_late_for_the_inviter_too(town: Any) -> None:
    one, other = town("one", "other")
    invitation = one.members.invite("home", [], 60, may_invite=False)
    given = other.answer_to(invitation)
    town.now += 60
    with pytest.raises(NotVerified, match="used before, or has expired"):
        one.members.admit(other.peer_id, given)


def test_an_inviter_that_was_put_out_lets_nobody_in(town: Any) -> None:
    town.let_in("founder", "ada", may_invite=True)
    founder, ada, bob = town("founder", "ada", "bob")
    invitation = ada.members.invite("home", [], 60, may_invite=False)
    town.now += 1
    founder.members.revoke("home", ada.did)
    assert ada.members.admit(bob.peer_id, bob.answer_to(invitation))
    again = ada.members.invite("home", [], 60, may_invite=False)
    town.meets("ada", "founder")
    with pytest.raises(NotVerified, match="not in the group home any more"):
        ada.members.admit(bob.peer_id, bob.answer_to(again))


def test_a_line_for_another_founder_than_its_inviter_s(town: Any) -> None:
    one, other = town("one", "other")
    invitation = one.members.invite("home", [], 60, may_invite=False)
    admission = one.members.admit(other.peer_id, other.answer_to(invitation))
    wrong = replace(invitation, group=Group(other.did, "home"))
    with pytest.raises(NotVerified, match="not what the invitation said"):
        other.members.join(wrong, admission)


def test_those_of_many_processes_are_all_kept(town: Any) -> None:
    town("one")
    program = (
        "import sys; from pathlib import Path; from kwaai_lobe_identity import folder, generations;"
        "from kwaai_lobe_identity.identity import LobeIdentity;"
        "found = generations.load(folder.Folder(Path(sys.argv[1])), lambda: None);"
        "one = LobeIdentity(found, found.key(lambda: None));"
        "[one.members.invite('home', [], 1e6, may_invite=False) for _ in range(5)]"
    )
    run = [sys.executable, "-c", program, town.state("one").path]
    processes = [subprocess.Popen(run) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    town.now = 0
    assert len(town.open("one").members.circle.state().invitations) == 20


async def test_of_many_at_once_one_is_let_in(tmp_path: Path) -> None:
    host = FakeHost(tmp_path / "founder")
    let_in = []
    async with open_identity(host) as one, open_identity(host) as two:
        invitation = await one.invite("home", [], seconds=60.0)

        async def take(inviter: Any, key: Key) -> None:
            try:
                let_in.append(await inviter.admit(key.peer_id, answer(invitation, key.did)))
            except NotVerified:
                pass

        async with trio.open_nursery() as nursery:
            for number in range(1, 21):
                inviter = (one, two)[number % 2]
                nursery.start_soon(take, inviter, Key(bytes([number]) * 32))
    assert len(let_in) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from kwaai_lobe_identity import admission, circle, folder, generations
from kwaai_lobe_identity.identity import LobeIdentity

state, peer, given, moment = Path(sys.argv[1]), sys.argv[2], sys.argv[3].encode(), sys.argv[4]

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

home = folder.Folder(state)
found = generations.load(home, lambda: None)
identity = LobeIdentity(found, found.key(lambda: None))
setattr(*{
    "before it is written": (folder, "_write", kill),
    "before it has its name": (Path, "replace", kill),
    "before the membership": (admission, "issue", kill),
}[moment])
identity.members.admit(peer, given)
"""


@pytest.mark.parametrize(
    ("moment", "good"),
    [
        ("before it is written", True),
        ("before it has its name", True),
        ("before the membership", False),
    ],
)
async def test_a_kill_never_makes_it_good_twice(tmp_path: Path, moment: str, good: bool) -> None:
    host = FakeHost(tmp_path / "founder")
    async with open_identity(host) as founder:
        invitation = await founder.invite("home", [], seconds=60.0)
    given = answer(invitation, BOB.did)
    run = [sys.executable, "-c", KILLED, host.state, BOB.peer_id, given.decode(), moment]
    done = await trio.run_process(run, check=False, capture_stderr=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    async with open_identity(host) as founder:
        if good:
            await founder.admit(BOB.peer_id, given)
        with pytest.raises(NotVerified, match="used before"):
            await founder.admit(BOB.peer_id, given)
