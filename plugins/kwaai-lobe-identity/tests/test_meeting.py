"""Introductions: whatever comes is refused or harmless, and cheap."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kwaai_core import NotVerified
from kwaai_lobe_identity.circle import State
from kwaai_lobe_identity.meeting import MAX_INTRODUCTION

in_one_town = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
KEYS = ["founded", "memberships", "history", "revocations", "conflicts", "owner"]


def test_what_is_shown(town: Any) -> None:
    town.let_in("founder", "ada")
    (ada,) = town("ada")
    assert list(json.loads(ada.introduce())) == KEYS
    assert str(ada.handshake_key().hex()) not in ada.introduce().decode()


@in_one_town
@given(st.binary(max_size=300) | json_values.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
@example(b'{"founded":' * 50_000)
@example(b"1" * 100_000)
@example(b"NaN")
def test_junk(town: Any, content: bytes) -> None:
    one, other = town("one", "other")
    with pytest.raises(NotVerified):
        one.meet(other.peer_id, content)


@in_one_town
@given(st.sampled_from(KEYS), json_values)
def test_other_values_in_it(town: Any, key: str, value: Any) -> None:
    one, other = town("one", "other")
    if not town.opened["other"].groups:
        town.let_in("one", "other")
    shown = json.loads(other.introduce()) | {key: value}
    try:
        met = one.meet(other.peer_id, json.dumps(shown).encode())
    except NotVerified:
        return
    assert set(met.groups) <= set(other.groups)
    assert met.owner is None


@in_one_town
@given(data=st.data())
def test_changed_bytes(town: Any, data: st.DataObject) -> None:
    one, other = town("one", "other")
    if not other.groups:
        town.let_in("one", "other")
    content = other.introduce()
    at, length = data.draw(st.integers(0, len(content))), data.draw(st.integers(0, 50))
    changed = content[:at] + data.draw(st.binary(max_size=20)) + content[at + length :]
    try:
        assert set(one.meet(other.peer_id, changed).groups) <= set(other.groups)
    except NotVerified:
        pass


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("founded", [{"founder": "x", "name": "y"}] * 17),
        ("memberships", [["x"]] * 17),
        ("revocations", ["x"] * 17),
        ("history", ["x"] * 50),
        ("conflicts", [["x", "y"]] * 9),
    ],
)
def test_more_than_anybody_has(town: Any, key: str, values: list[Any]) -> None:
    one, other = town("one", "other")
    shown = json.loads(other.introduce()) | {key: values}
    with pytest.raises(NotVerified, match="more than|too many"):
        one.meet(other.peer_id, json.dumps(shown).encode())


def test_longer_than_anybody_s(town: Any) -> None:
    one, other = town("one", "other")
    with pytest.raises(NotVerified, match="more than"):
        one.meet(other.peer_id, other.introduce() + b" " * MAX_INTRODUCTION)


def test_a_peer_that_is_none(town: Any) -> None:
    one, other = town("one", "other")
    for peer in ("", other.did, "12D3KooW", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"):
        with pytest.raises(NotVerified, match="not the name"):
            one.meet(peer, other.introduce())


def test_a_founder_s_name_taken_by_another(town: Any) -> None:
    town.let_in("founder", "ada")
    founder, ada, thief = town("founder", "ada", "thief")
    shown = json.loads(thief.introduce()) | {"founded": json.loads(founder.introduce())["founded"]}
    assert ada.meet(thief.peer_id, json.dumps(shown).encode()).groups == ()


def test_strangers_leave_no_trace(town: Any) -> None:
    (one,) = town("one")
    for number in range(20):
        town.meets("one", f"stranger-{number}")
    assert one.members.circle.state() == State()
    assert not (town.state("one").path / "circle.json").exists()


def test_the_last_members_met_are_remembered(town: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kwaai_lobe_identity.circle.MAX_KNOWN", 3)
    for name in "abcde":
        town.let_in("founder", name)
        town.meets("founder", name)
    (founder,) = town("founder")
    known = founder.members.circle.state().known
    assert list(known) == [identity.did for identity in town("c", "d", "e")]


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b"{}", b"null", b"\xff", b"[" * 9999],
)
def test_a_damaged_file(town: Any, damage: bytes) -> None:
    from kwaai_core import ConfigError

    town.let_in("founder", "ada")
    town.state("founder").replace("circle.json", damage)
    for use in (town.open, lambda name: town.let_in(name, "bob")):
        with pytest.raises(ConfigError, match=r"circle.json cannot be used: .*backup"):
            use("founder")
    assert town.state("founder").read("circle.json") == damage


@in_one_town
@given(
    st.sampled_from(
        [*KEYS[:1], "memberships", "history", "revocations", "invitations", "known", "conflicts"]
    ),
    json_values,
)
def test_a_damaged_state_is_one_error(town: Any, key: str, value: Any) -> None:
    from kwaai_core import ConfigError

    if not (town.state("founder").path / "circle.json").exists():
        town.let_in("founder", "ada")
        town.meets("founder", "ada")
        town.sound = json.loads(town.state("founder").read("circle.json"))
    town.state("founder").replace("circle.json", json.dumps(town.sound | {key: value}).encode())
    try:
        town.open("founder").introduce()
    except ConfigError as error:
        assert "circle.json cannot be used" in error.message
