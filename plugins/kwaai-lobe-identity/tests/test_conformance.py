"""The lobe is an identity as core means it, and a node finds it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio

from kwaai_core import ConfigError, RequestError
from kwaai_core.errors import cause_of
from kwaai_core.testing import FakeHost, check_identity, load_lobe, open_test_node
from kwaai_lobe_identity import IdentitySettings
from kwaai_lobe_identity.generations import rotated
from kwaai_lobe_identity.identity import open_identity


def _unlocked() -> None:
    """The passphrase of keys that have none."""


async def test_it_conforms() -> None:
    await check_identity(open_identity)


async def test_a_node_has_it(tmp_path: Path) -> None:
    lobe = load_lobe("identity")
    async with open_test_node(tmp_path, [lobe]) as node:
        assert node.identity is not None
        did = node.identity.did
        (status,) = [status for status in node.statuses() if status.role == "identity"]
        assert status.facts["did"] == did
    async with open_test_node(tmp_path, [lobe]) as node:
        assert node.identity is not None
        assert node.identity.did == did


async def test_a_node_says_what_is_wrong_with_its_key(tmp_path: Path) -> None:
    lobe = load_lobe("identity")
    async with open_test_node(tmp_path, [lobe]):
        pass
    key = tmp_path / "state" / "lobes" / "identity" / "key-0.jwk"
    key.write_text("{}")
    with pytest.raises(ExceptionGroup) as caught:
        async with open_test_node(tmp_path, [lobe]):
            pass
    assert re.search("identity” is failed: .*key-0.jwk cannot be used", cause_of(caught.value))
    assert key.read_text() == "{}"


async def test_a_locked_key_opens_with_its_passphrase_only(tmp_path: Path, passphrase) -> None:
    def host(file: str) -> FakeHost:
        return FakeHost(tmp_path / "lobe", {IdentitySettings: IdentitySettings(file)})

    file = str(passphrase("correct horse"))
    async with open_identity(host(file)) as identity:
        did = identity.did
    seed = b'"d"'
    assert seed not in (tmp_path / "lobe" / "key-0.jwk").read_bytes()
    async with open_identity(host(file)) as identity:
        assert identity.did == did
    for words, said in (("wrong", "passphrase is wrong"), ("", "first line is empty")):
        passphrase(words)
        with pytest.raises(ConfigError, match=said):
            async with open_identity(host(file)):
                pass
    for file, said in (("", "is locked"), (str(tmp_path / "nowhere"), "No such file")):
        with pytest.raises(ConfigError, match=said):
            async with open_identity(host(file)):
                pass


async def test_a_key_in_use_is_not_rotated(tmp_path: Path) -> None:
    host = FakeHost(tmp_path / "lobe")
    async with open_identity(host) as identity, open_identity(host):
        folder = identity.members.circle._folder
        with pytest.raises(RequestError, match="stop it first"):
            await trio.to_thread.run_sync(rotated, folder, _unlocked, 1)
    assert rotated(folder, _unlocked, 1).names[1] == identity.did


async def test_a_node_sees_what_a_command_changes(tmp_path: Path) -> None:
    async with open_identity(FakeHost(tmp_path / "lobe")) as identity:
        assert identity.groups == ()
        async with open_identity(FakeHost(tmp_path / "lobe")) as command:
            await command.invite("friends", [], seconds=1.0)
        assert [group.name for group in identity.groups] == ["friends"]


def test_the_settings_refuse_a_membership_that_nobody_would_take() -> None:
    for days in (0, 367):
        with pytest.raises(ValueError, match="must be 1 to 366"):
            IdentitySettings(membership_days=days)
