"""The table ``[minilm]`` of ``kwaai.toml``."""

from dataclasses import dataclass

from kwaai_core.config import Count


@dataclass(frozen=True, slots=True)
class MinilmSettings:
    """How texts are embedded on this machine.

    ``threads``: of a computation; 0 is one for every two processors that this process may use.
    ``calls``: that are served in turns, beyond which they are refused.
    ``tokens``: of all texts of one call together.
    """

    threads: Count = 0
    calls: Count = 64
    tokens: Count = 300_000

    def __post_init__(self) -> None:
        for key, (low, high) in _LIMITS.items():
            value = getattr(self, key)
            if not low <= value <= high:
                raise ValueError(f"{key} = {value}: must be {low} to {high}")


_LIMITS = {"threads": (0, 256), "calls": (1, 100_000), "tokens": (256, 2**31 - 1)}
