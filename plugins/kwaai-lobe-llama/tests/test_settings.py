"""The table ``[llama]``: what llama.cpp would not survive is refused by name."""

import pytest

from kwaai_lobe_llama.settings import LlamaSettings


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("threads", -1),
        ("threads", 513),
        ("gpu_layers", -2),
        ("context", -1),
        ("streams", 0),
        ("streams", 257),
        ("queue", -1),
        ("memory", -1),
        ("slices", -1),
        ("journal", -1),
        ("spin", -1),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(key: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{key} = {value}: must be"):
        LlamaSettings(**{key: value})
