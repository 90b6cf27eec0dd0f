"""The table of tensor types is that of the package ``gguf``, as far as that one goes."""

from __future__ import annotations

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from kwaai_core.gguf import TENSOR_TYPES

# gguf-py still has the 40 bytes of a Q8_1 block with two float32 in it; ggml has two float16
SAME = [kind for kind in GGMLQuantizationType if kind.name != "Q8_1"]


@pytest.mark.parametrize("kind", SAME, ids=lambda kind: kind.name)
def test_agreement_with_gguf_py(kind: GGMLQuantizationType) -> None:
    assert TENSOR_TYPES[kind] == (kind.name, *GGML_QUANT_SIZES[kind])
