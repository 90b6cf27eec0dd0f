"""llama.cpp's own samplers, in llama.cpp's order: top_k, top_p, temperature, draw."""

from __future__ import annotations

import secrets

from kwaai_core import Sampling
from kwaai_lobe_llama.worker.bindings import C
from kwaai_lobe_llama.worker.loaded import Loaded

_LEAST_TEMPERATURE = 1e-20
"""Below it a logit over the temperature may be infinite, and the draw is then of anything."""


class Sampler:
    """A sampler chain of one session. Resources: whoever made it calls :meth:`close`."""

    def __init__(self, sampling: Sampling) -> None:
        self._chain = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
        for link in _links(sampling):
            C.llama_sampler_chain_add(self._chain, link)

    def sample(self, engine: Loaded, row: int) -> int:
        """Draw a token from the logits of a row of the engine's last call."""
        return int(C.llama_sampler_sample(self._chain, engine.context, row))

    def close(self) -> None:
        """Free the chain and its links."""
        C.llama_sampler_free(self._chain)


def _links(sampling: Sampling) -> list[C.llama_sampler_p]:
    if sampling.temperature < _LEAST_TEMPERATURE:
        return [C.llama_sampler_init_greedy()]
    seed = secrets.randbits(31) if sampling.seed is None else sampling.seed
    links = [C.llama_sampler_init_top_k(sampling.top_k)] if sampling.top_k > 0 else []
    if sampling.top_p < 1:
        links.append(C.llama_sampler_init_top_p(sampling.top_p, 1))
    links.append(C.llama_sampler_init_temp(sampling.temperature))
    return [*links, C.llama_sampler_init_dist(seed)]
