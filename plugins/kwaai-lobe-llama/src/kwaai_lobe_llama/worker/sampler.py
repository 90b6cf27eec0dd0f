"""llama.cpp's own samplers, in llama.cpp's order.

That is: logit_bias, penalties, top_k, top_p, min_p, temperature, draw. Like llama.cpp's own server
a sampler is told the prompt before it draws, so that the penalties count its tokens too. A grammar,
where an answer has one, comes before all of them.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from kwaai_core import Sampling
from kwaai_lobe_llama.worker.bindings import C
from kwaai_lobe_llama.worker.loaded import Loaded

if TYPE_CHECKING:  # it imports numpy
    from kwaai_lobe_llama.worker.constraint import Constraint

PENALISED = 64
"""So many of the last tokens count for the penalties, llama.cpp's ``penalty_last_n``."""

_LEAST_TEMPERATURE = 1e-20
"""Below it a logit over the temperature may be infinite, and the draw is then of anything."""


class Watch(Protocol):
    """Sees what is drawn, until there is something that the rest has to fit."""

    def after(self, token: int) -> Constraint | None: ...


class DeadEnd(Exception):
    """No token of the vocabulary fits what an answer has to be."""


class Sampler:
    """A sampler chain of one session, for a vocabulary of so many ``tokens``; the session begins
    with ``prompt``, and fits a ``constraint``, which then is its own, or what ``watch`` gives it
    later. Resources: whoever made it calls :meth:`close`."""

    def __init__(
        self,
        sampling: Sampling,
        tokens: int = 0,
        prompt: Sequence[int] = (),
        constraint: Constraint | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._constraint = constraint
        self._watch = watch
        self._chain = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
        for link in (*_shifts(sampling, tokens), *_draws(sampling)):
            C.llama_sampler_chain_add(self._chain, link)
        if sampling.penalises:
            for token in prompt[-PENALISED:]:
                C.llama_sampler_accept(self._chain, token)

    def sample(self, engine: Loaded, row: int) -> int:
        """Draw a token from the logits of a row of the engine's last call.

        Errors: :class:`DeadEnd`.
        """
        if self._constraint is not None:
            return self._constraint.draw(self._chain, row)
        token = int(C.llama_sampler_sample(self._chain, engine.context, row))
        if self._watch is not None:
            self._constraint = self._watch.after(token)
        return token

    def close(self) -> None:
        """Free the chain and its links."""
        C.llama_sampler_free(self._chain)
        if self._constraint is not None:
            self._constraint.close()


def _shifts(sampling: Sampling, tokens: int) -> list[C.llama_sampler_p]:
    """What changes logits, before anything is drawn."""
    links = []
    if biases := sampling.logit_bias:
        array = (C.llama_logit_bias * len(biases))(
            *(C.llama_logit_bias(token, bias) for token, bias in biases)
        )
        links.append(C.llama_sampler_init_logit_bias(tokens, len(biases), array))
    if sampling.penalises:
        factor, each, once = (
            sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty
        )  # fmt: skip
        links.append(C.llama_sampler_init_penalties(tokens, PENALISED, factor, each, once))
    return links


def _draws(sampling: Sampling) -> list[C.llama_sampler_p]:
    if sampling.temperature < _LEAST_TEMPERATURE:
        return [C.llama_sampler_init_greedy()]
    seed = secrets.randbits(31) if sampling.seed is None else sampling.seed
    links = [C.llama_sampler_init_top_k(sampling.top_k)] if sampling.top_k > 0 else []
    if sampling.top_p < 1:
        links.append(C.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        links.append(C.llama_sampler_init_min_p(sampling.min_p, 1))
    links.append(C.llama_sampler_init_temp(sampling.temperature))
    return [*links, C.llama_sampler_init_dist(seed)]
