"""The table of tensor types is that of the llama.cpp which is installed."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import llama_cpp

from kwaai_core.gguf import TENSOR_TYPES


def types_of_llama_cpp() -> Iterator[tuple[int, tuple[str, int, int]]]:
    """Its types with a size; those that were removed have none. It does not tell its last one."""
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    library.ggml_type_name.restype = ctypes.c_char_p
    library.ggml_blck_size.restype = ctypes.c_int64
    library.ggml_type_size.restype = ctypes.c_size_t
    for number in range(max(TENSOR_TYPES) + 1):
        if size := library.ggml_type_size(number):
            name = library.ggml_type_name(number).decode().upper()
            yield number, (name, library.ggml_blck_size(number), size)


def test_agreement_with_llama_cpp() -> None:
    assert dict(types_of_llama_cpp()) == TENSOR_TYPES
