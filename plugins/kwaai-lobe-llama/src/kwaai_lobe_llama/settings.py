"""The table ``[llama]`` of ``kwaai.toml``."""

from dataclasses import dataclass
from typing import Literal

from kwaai_core.config import Count


@dataclass(frozen=True, slots=True)
class LlamaSettings:
    """How models are run on this machine.

    ``threads``: of a computation; 0 is one for each physical core this process may use.
    ``gpu_layers``: blocks of a model to offload; -1 is all, and needs a build of llama.cpp for it.
    ``context``: tokens of one conversation; 0 is the model's own, at most 8192 of it, and less
    where ``memory`` has no room. ``streams``: conversations computed at once.
    ``queue``: requests that may wait for one, beyond which they are refused.
    ``kv_type``: of the KV cache; ``exact`` has its own.
    ``memory``: for the weights and KV of all loaded models, like ``"6GiB"``; 0 is half of the
    machine's. ``exact``: logits of an answer do not depend on what else is computed.
    ``load``: the model to load at the start; empty is the first there is, ``"none"`` none.
    ``slices``: bytes on disk that parts of models may take; those in use stay in any case.
    ``journal``: bytes that a worker keeps of what it sent to other nodes for its answers, so that
    another one can take the place of a node that is lost; 0 is a sixteenth of the machine's memory.
    ``spin``: how long threads wait actively for one another (``GOMP_SPINCOUNT``).
    """

    threads: Count = 0
    gpu_layers: Count = 0
    context: Count = 0
    streams: Count = 8
    queue: Count = 64
    kv_type: Literal["f16", "bf16", "f32", "q8_0"] = "f16"
    memory: int = 0
    exact: bool = False
    load: str = ""
    slices: int = 16 << 30
    journal: int = 0
    spin: Count = 3_000

    def __post_init__(self) -> None:
        for key, (low, high) in _LIMITS.items():
            value = getattr(self, key)
            if not low <= value <= high:
                raise ValueError(f"{key} = {value}: must be {low} to {high}")


_MANY = 2**31 - 1
_LIMITS = {
    "threads": (0, 512),  # llama.cpp's own limit, like that of streams
    "gpu_layers": (-1, _MANY),
    "context": (0, _MANY),
    "streams": (1, 256),
    "queue": (0, _MANY),
    "memory": (0, 2**63 - 1),
    "slices": (0, 2**63 - 1),
    "journal": (0, 2**63 - 1),
    "spin": (0, _MANY),
}
