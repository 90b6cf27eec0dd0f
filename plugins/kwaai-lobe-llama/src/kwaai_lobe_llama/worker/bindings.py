"""llama.cpp's C interface through ctypes, and nothing of llama-cpp-python around it.

The package's ``__init__`` imports numpy, jinja2 and a high-level interface that a worker has no
use for: 0.36 s and 31 MB, against 0.03 s and 8 MB for the bindings alone (measured on version
0.3.36, which is pinned). So the package object is made here, without running its ``__init__``.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_cpp import llama_cpp as C
else:
    if "llama_cpp" not in sys.modules:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None:
            raise ImportError("llama-cpp-python is not installed: pip install kwaai-lobe-llama")
        package = types.ModuleType("llama_cpp")
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules["llama_cpp"] = package
    from llama_cpp import llama_cpp as C

__all__ = ["ABORT_WHEN_SET", "KV_TYPES", "C", "capture_log", "ggml"]

ggml = ctypes.CDLL(str(Path(sys.modules["llama_cpp"].__path__[0], "lib", "libggml-base.so.0")))
"""ggml's own library, which the bindings do not cover: tensors of a graph, and types."""

ggml.ggml_get_name.argtypes, ggml.ggml_get_name.restype = [ctypes.c_void_p], ctypes.c_char_p
ggml.ggml_nbytes.argtypes, ggml.ggml_nbytes.restype = [ctypes.c_void_p], ctypes.c_size_t
ggml.ggml_backend_tensor_get.argtypes = [
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_size_t,
]
ggml.ggml_backend_tensor_get.restype = None

KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}
"""Numbers of ``enum ggml_type`` that a KV cache may have here."""

ABORT_WHEN_SET = ctypes.cast(ctypes.CDLL(None).strlen, C.ggml_abort_callback)
"""An abort callback that runs no Python: C's ``strlen`` of the two bytes it is given.

llama.cpp asks before every operation of a graph, thousands of times a second; a Python function
there would take the interpreter's lock each time. The length is 0, false, until the first byte
is set, and then 1, true; on every ABI of ours the low byte of a ``size_t`` is where C looks for a
``bool``.
"""

_WARNING = 3
_lines: list[str] = []


def _keep_line(level: int, text: bytes, _: object) -> None:
    if level >= _WARNING:
        del _lines[:-20]
        _lines.append(text.decode("utf-8", "replace").strip())


_on_log = C.llama_log_callback(_keep_line)  # llama.cpp keeps the pointer, so this stays


def capture_log() -> list[str]:
    """Send llama.cpp's log here instead of to stderr; the last warnings and errors, live."""
    C.llama_log_set(_on_log, ctypes.c_void_p(0))
    return _lines
