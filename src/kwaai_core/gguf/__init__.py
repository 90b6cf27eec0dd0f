"""GGUF, the file format of llama.cpp: a strict reader, and the digest that is a model's identity.

A format of its own like :mod:`kwaai_core.openai`, and beside the core for the same reason: it
knows nothing of nodes and lobes, and whoever handles model files needs the same answer.
"""

from kwaai_core.gguf.contents import TENSOR_TYPES, GgufFile, Stamp, Tensor, Value
from kwaai_core.gguf.reader import MAX_ELEMENTS, MAX_HEADER, MAX_STRING, open_model, read_gguf

__all__ = [
    "MAX_ELEMENTS",
    "MAX_HEADER",
    "MAX_STRING",
    "TENSOR_TYPES",
    "GgufFile",
    "Stamp",
    "Tensor",
    "Value",
    "open_model",
    "read_gguf",
]
