"""The catalog of a node: what was added, what is in the folder, and what became of the files."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast

import pytest
import trio

from kwaai_core import ConfigError, Host, ModelFileError, ModelNotFound
from kwaai_core.config import Config
from kwaai_core.testing.conformance import check_catalog
from kwaai_lobe_models import ModelsSettings, catalog, provide_catalog
from kwaai_lobe_models.catalog import open_catalog
from kwaai_lobe_models.folder import scan
from kwaai_lobe_models.index import Index, describe

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Home:
    """A host of which only the state folder and the settings are looked at."""

    state: Path
    folder: str = ""

    def settings(self, kind: type[S]) -> S:
        assert kind is ModelsSettings
        return cast(S, ModelsSettings(self.folder))


def home(tmp_path: Path, folder: str = "") -> Host:
    return cast(Host, Home(tmp_path / "state", folder))


def add(tmp_path: Path, path: Path) -> None:
    state = tmp_path / "state"
    Index(state).add(describe(path, "", state / "digests"))


async def test_it_conforms(tmp_path: Path, write) -> None:
    write("folder/found.gguf", 1)
    add(tmp_path, write("added.gguf"))
    offer = provide_catalog()
    assert (offer.name, offer.settings) == ("models", ModelsSettings)
    async with offer.open(home(tmp_path, str(tmp_path / "folder"))) as models:
        assert [card.id for card in await models.cards()] == ["added", "found"]
        await check_catalog(models)


async def test_what_is_added_and_removed_is_seen_at_once(tmp_path: Path, write) -> None:
    first, second = write("first.gguf"), write("second.gguf", 1)
    async with open_catalog(home(tmp_path)) as models:
        assert await models.cards() == []
        add(tmp_path, first)
        (card,) = await models.cards()
        assert await models.fetch(card) == first
        add(tmp_path, second)
        assert [card.id for card in await models.cards()] == ["first", "second"]
        Index(tmp_path / "state").remove("first")
        assert [card.id for card in await models.cards()] == ["second"]
        with pytest.raises(ModelNotFound, match="second"):
            await models.fetch(card)


async def test_cards_say_what_the_file_says(tmp_path: Path, write) -> None:
    path = write("tiny.gguf")
    add(tmp_path, path)
    async with open_catalog(home(tmp_path)) as models:
        (card,) = await models.cards()
        assert (card.architecture, card.blocks, card.context_length) == ("llama", 1, 4096)
        assert (card.size, card.source) == (path.stat().st_size, "kwaai-lobe-models")
        for other in (replace(card, digest="0" * 64), replace(card, id="other")):
            with pytest.raises(ModelNotFound):
                await models.fetch(other)


async def test_a_file_that_has_gone(tmp_path: Path, write) -> None:
    path = write("tiny.gguf")
    add(tmp_path, path)
    async with open_catalog(home(tmp_path)) as models:
        (card,) = await models.cards()
        path.unlink()
        assert await models.cards() == []
        with pytest.raises(ModelFileError, match="is gone"):
            await models.fetch(card)


async def test_a_file_that_was_only_touched(tmp_path: Path, write) -> None:
    path = write("tiny.gguf")
    add(tmp_path, path)
    os.utime(path, ns=(1, 1))
    async with open_catalog(home(tmp_path)) as models:
        (card,) = await models.cards()
        assert await models.fetch(card) == path


async def test_another_model_in_its_place(tmp_path: Path, write) -> None:
    add(tmp_path, write("tiny.gguf"))
    async with open_catalog(home(tmp_path)) as models:
        (card,) = await models.cards()
        write("tiny.gguf", 1)
        with pytest.raises(ModelFileError, match="no longer the model tiny .* models rm tiny"):
            await models.fetch(card)
        (tmp_path / "tiny.gguf").write_bytes(b"damaged")
        with pytest.raises(ModelFileError, match="does not begin with GGUF"):
            await models.fetch(card)


async def test_a_damaged_index(tmp_path: Path, write) -> None:
    add(tmp_path, write("tiny.gguf"))
    async with open_catalog(home(tmp_path)) as models:
        (tmp_path / "state" / "models.json").write_text("{")
        with pytest.raises(ConfigError, match="is damaged"):
            await models.cards()


async def test_the_folder(tmp_path: Path, write, caplog: pytest.LogCaptureFixture) -> None:
    for number, name in enumerate(("b.gguf", "a.gguf", "A .gguf")):
        write(f"folder/{name}", number)
    write("folder/copy.gguf")
    (tmp_path / "folder/bad.gguf").write_bytes(b"bad")
    with caplog.at_level(logging.WARNING):
        async with open_catalog(home(tmp_path, str(tmp_path / "folder"))) as models:
            cards = await models.cards()
            assert [card.id for card in cards] == ["a", "b"]
            assert await models.fetch(cards[1]) == tmp_path / "folder/b.gguf"
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert all(text.startswith("left out: ") for text in said)
    assert any("bad.gguf" in text for text in said)
    async with open_catalog(home(tmp_path, str(tmp_path / "folder"))) as models:
        assert await models.cards() == cards, "they are the same at every start"


async def test_the_folder_in_the_home_folder(tmp_path: Path, write, monkeypatch) -> None:
    write("folder/tiny.gguf")
    monkeypatch.setenv("HOME", str(tmp_path))
    async with open_catalog(home(tmp_path, "~/folder")) as models:
        assert [card.id for card in await models.cards()] == ["tiny"]


async def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    document = {"models": {"folder": str(tmp_path / "folder")}}
    config = Config(Path("kwaai.toml"), tmp_path, document)
    with pytest.raises(ConfigError, match=r"kwaai.toml: \[models\] folder = .*no such folder"):
        config.check({"models": ModelsSettings})
    (tmp_path / "folder").mkdir()
    assert config.check({"models": ModelsSettings}) == []
    with pytest.raises(ConfigError, match="nowhere.*No such file"):  # gone since it was checked
        scan(tmp_path / "nowhere", tmp_path)


async def test_what_was_added_comes_before_the_folder(tmp_path: Path, write) -> None:
    path = write("folder/tiny.gguf")
    write("folder/other.gguf", 1)
    add(tmp_path, path)
    async with open_catalog(home(tmp_path, str(tmp_path / "folder"))) as models:
        assert [card.id for card in await models.cards()] == ["tiny", "other"]


async def test_opening_can_be_cancelled_while_a_file_is_hashed(
    tmp_path: Path, write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("folder/tiny.gguf")
    hashing, cancelled, check = trio.Event(), threading.Event(), catalog._cancellable

    def progress(done: int, total: int) -> None:
        trio.from_thread.run_sync(hashing.set)
        assert cancelled.wait(10)
        check(done, total)

    monkeypatch.setattr(catalog, "_cancellable", progress)

    async def opening() -> None:
        async with open_catalog(home(tmp_path, str(tmp_path / "folder"))):
            raise AssertionError("it was hashed to its end")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(opening)
        await hashing.wait()
        nursery.cancel_scope.cancel()
        cancelled.set()
    assert not (tmp_path / "state/digests").exists()
