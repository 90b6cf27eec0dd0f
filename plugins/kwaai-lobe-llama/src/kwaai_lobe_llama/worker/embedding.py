"""Rows of the token embedding, as they go into block 0: from the model's file, by ggml itself."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from pathlib import Path

from kwaai_core import ModelFileError
from kwaai_core.gguf import TENSOR_TYPES, open_model, read_gguf
from kwaai_lobe_llama.slicing import embedding_scale
from kwaai_lobe_llama.worker.bindings import ggml
from kwaai_lobe_llama.worker.loaded import EngineError

_TABLE = "token_embd.weight"
_NUMBERS = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}


class _Traits(ctypes.Structure):
    """The beginning of ``struct ggml_type_traits`` of ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
    )


_ToFloat = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)

ggml.ggml_get_type_traits.argtypes = [ctypes.c_int]
ggml.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)


class Embedding:
    """The table of a model's file, mapped: what nobody asks for takes no memory.

    Errors: :class:`ModelFileError` where the file cannot be read; :class:`EngineError` where
    ggml cannot turn its type into numbers.
    """

    def __init__(self, path: str) -> None:
        file = read_gguf(Path(path))
        table = next((tensor for tensor in file.tensors if tensor.name == _TABLE), None)
        if table is None or len(table.shape) != 2:
            raise ModelFileError(f"{path} has no table of token embeddings ({_TABLE})")
        self.width, self.tokens = table.shape
        scale = embedding_scale(file)
        self._finished = bytes if scale == 1.0 else _times(scale)
        self._row = table.nbytes // self.tokens
        with open_model(file.path) as opened:
            # a private mapping, since ctypes takes the address of nothing that is read-only
            self._map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._map)) + table.offset
        self._to_float = None
        if table.type != "F32":
            traits = ggml.ggml_get_type_traits(_NUMBERS[table.type]).contents
            if not traits.to_float:
                raise EngineError(f"{path}: ggml has no way from {table.type} to float32")
            self._to_float = _ToFloat(traits.to_float)

    def rows(self, tokens: Sequence[int]) -> bytes:
        """The hidden states of some tokens: ``(len(tokens), width) float32``.

        Errors: :class:`EngineError` for a token that the table does not have.
        """
        out = (ctypes.c_float * (self.width * len(tokens)))()
        at, size = ctypes.addressof(out), 4 * self.width
        for token in tokens:
            if not 0 <= token < self.tokens:
                raise EngineError(f"there is no token {token}: the table has {self.tokens}")
            if self._to_float is None:
                ctypes.memmove(at, self._base + token * self._row, size)
            else:
                self._to_float(self._base + token * self._row, at, self.width)
            at += size
        return self._finished(out)


def _times(scale: float) -> Callable[[ctypes.Array[ctypes.c_float]], bytes]:
    """Multiplies values, as float32."""
    import numpy as np  # which not every model needs

    factor = np.float32(scale)
    return lambda values: (np.frombuffer(memoryview(values), np.float32) * factor).tobytes()
