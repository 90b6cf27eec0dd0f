"""Private networks: who has not the key does not get in, and is told so soon."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from kwaai_core import ConfigError, PeerUnreachable
from kwaai_core.config import Config
from kwaai_lobe_libp2p.private import hsalsa20
from kwaai_lobe_libp2p.settings import Libp2pSettings

from .conftest import Nodes

KEY, OTHER = "11" * 32, "22" * 32


def key_file(folder: Path, key: str) -> str:
    path = folder / f"{key[:2]}.key"
    path.write_text(f"/key/swarm/psk/1.0.0/\n/base16/\n{key}\n")
    return str(path)


def test_the_key_is_derived_as_nacl_does() -> None:
    """The example of the paper “Cryptography in NaCl”, section 8."""
    shared = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    first = hsalsa20(shared, bytes(16))
    assert first.hex() == "1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389"
    second = hsalsa20(first, bytes.fromhex("69696ee955b62b73cd62bda875fc73d6"))
    assert second.hex() == "dc908dda0b9344a953629b733820778880f3ceb421bb61b91cbd4c3e66256ce4"


async def test_who_has_the_key_gets_in(nodes: Nodes, tmp_path: Path) -> None:
    async with nodes.pair(network_key_file=key_file(tmp_path, KEY)) as (one, two):
        assert await one.transport.ping(two.peer) < 5


@pytest.mark.parametrize("mine", [OTHER, None])
@pytest.mark.parametrize("dials", [True, False])
async def test_another_key_or_none_fails_in_seconds_with_a_reason(
    nodes: Nodes, tmp_path: Path, mine: str | None, dials: bool
) -> None:
    file = key_file(tmp_path, mine) if mine else ""
    async with (
        nodes("one", network_key_file=file) as one,
        nodes("two", network_key_file=key_file(tmp_path, KEY)) as two,
    ):
        here, there = (one, two) if dials else (two, one)
        began = trio.current_time()
        with pytest.raises(PeerUnreachable, match="network_key_file"):
            await here.transport.connect(there.transport.addresses)
        assert trio.current_time() - began < 5
        assert one.transport.links() == two.transport.links() == []


def configured(folder: Path, path: Path) -> Libp2pSettings:
    """The settings as `kwaai config check` reads them."""
    document = {"libp2p": {"network_key_file": str(path)}}
    return Config(folder / "kwaai.toml", folder, document).table("libp2p", Libp2pSettings)


@pytest.mark.parametrize("text", ["", "11" * 31, "not hexadecimal", "11" * 33])
def test_a_file_without_a_key_is_an_error_that_does_not_tell_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"\[libp2p\] network_key_file") as caught:
        configured(tmp_path, path)
    assert not text or text not in str(caught.value)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        configured(tmp_path, tmp_path / "none")


def test_the_key_is_the_last_word_of_the_file(tmp_path: Path) -> None:
    settings = configured(tmp_path, Path(key_file(tmp_path, KEY)))
    assert settings.network_key() == bytes.fromhex(KEY)
    assert Libp2pSettings().network_key() is None
