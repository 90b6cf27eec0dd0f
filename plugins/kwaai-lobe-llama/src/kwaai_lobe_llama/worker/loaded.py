"""A model and a context of llama.cpp: what whole models, spans and heads have in common.

Everything here is called from one thread, but for :meth:`Loaded.abort` and what reads an immutable
vocabulary: :meth:`Loaded.tokenise`, :meth:`Loaded.piece`, :meth:`Loaded.textless`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import replace

from kwaai_lobe_llama.plan import Plan
from kwaai_lobe_llama.worker.bindings import ABORT_WHEN_SET, KV_TYPES, C, capture_log

_ABORTED = 2


class EngineError(Exception):
    """llama.cpp refused a model, a context or a call; the message has what it logged."""


class Aborted(Exception):
    """A call was stopped by :meth:`Engine.abort`; its rows are not in the KV cache."""


class Loaded:
    """A loaded model with its context, of which a call may have ``outputs`` rows' worth.

    ``scored``: or as many as :attr:`scored_rows`, for prompts whose probabilities are asked for.
    Memory for those is taken when there are any.

    Resources: the caller closes it (:meth:`close`), or the process ends.
    Errors: :class:`EngineError` where the model or its context cannot be made.
    """

    def __init__(self, plan: Plan, outputs: int, *, scored: bool = False) -> None:
        self._log = capture_log()
        C.llama_backend_init()
        self.model = self._load(plan)
        self.plan = plan = _within_nature(self.model, plan)
        self.vocabulary = C.llama_model_get_vocab(self.model)
        self.n_vocab = C.llama_vocab_n_tokens(self.vocabulary)
        self.scored_rows = plan.scored_rows(self.n_vocab) if scored else 0
        self.context = self._open(plan, max(outputs, self.scored_rows))
        self.memory = C.llama_get_memory(self.context)
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self._textless: frozenset[int] | None = None

    def _arrange(self, params: C.llama_context_params) -> None:
        """Change what is particular to a kind of model before its context is made."""

    def _load(self, plan: Plan) -> C.llama_model_p:
        params = C.llama_model_default_params()
        params.n_gpu_layers = plan.gpu_layers
        params.use_extra_bufts = plan.repack
        model: C.llama_model_p = C.llama_model_load_from_file(os.fsencode(plan.path), params)
        if not model:
            raise EngineError(f"llama.cpp cannot load {plan.path}: {self._why()}")
        return model

    def _open(self, plan: Plan, outputs: int) -> C.llama_context_p:
        params = C.llama_context_default_params()
        params.n_ctx = plan.cells * plan.streams
        params.n_seq_max = plan.streams
        params.n_batch = params.n_ubatch = max(plan.chunk, plan.streams + 1)
        params.n_outputs_max = outputs
        params.n_threads = params.n_threads_batch = plan.threads
        params.flash_attn_type = 1 if plan.flash_attention else 0
        params.kv_unified = plan.unified
        # a smaller cache of a sliding window forgets, and truncation then lies about it
        params.swa_full = True
        params.type_k, params.type_v = KV_TYPES[plan.k_type], KV_TYPES[plan.v_type]
        self._abort = ctypes.create_string_buffer(2)
        params.abort_callback = ABORT_WHEN_SET
        params.abort_callback_data = ctypes.addressof(self._abort)
        self._arrange(params)
        context: C.llama_context_p = C.llama_init_from_model(self.model, params)
        if not context:
            raise EngineError(
                f"llama.cpp cannot make a context of {plan.streams} × {plan.context} tokens: "
                f"{self._why()}"
            )
        return context

    def _why(self) -> str:
        return "; ".join(self._log[-3:]) or "it gave no reason"

    def close(self) -> None:
        """Free the context and the model."""
        C.llama_free(self.context)
        C.llama_model_free(self.model)

    def tokenise(self, text: str, *, special: bool = True, first: bool = True) -> list[int]:
        """The tokens of a text, with the model's own ``first`` token; ``special`` parses the
        others."""
        data = text.encode("utf-8", "replace")
        size = len(data) + 8
        while True:
            tokens = (C.llama_token * size)()
            n = C.llama_tokenize(self.vocabulary, data, len(data), tokens, size, first, special)
            if n >= 0:
                return tokens[:n]
            size = -n

    def detokenise(self, tokens: Sequence[int]) -> bytes:
        """The text of tokens, special ones as they are written."""
        given = (C.llama_token * len(tokens))(*tokens)
        size = 8 * len(tokens) + 8
        while True:
            text = ctypes.create_string_buffer(size)
            n = C.llama_detokenize(self.vocabulary, given, len(given), text, size, False, True)
            if n >= 0:
                return text.raw[:n]
            size = -n

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes that a token stands for; none for control tokens, or what is written for them
        where ``special``."""
        piece = self._pieces.get((token, special))
        if piece is None:
            buffer = ctypes.create_string_buffer(256)
            n = C.llama_token_to_piece(self.vocabulary, token, buffer, 256, 0, special)
            if n < 0:
                buffer = ctypes.create_string_buffer(-n)
                n = C.llama_token_to_piece(self.vocabulary, token, buffer, -n, 0, special)
            piece = self._pieces[token, special] = buffer.raw[: max(n, 0)]
        return piece

    def special_text(self, token: int) -> str:
        """How a special token is written in a text, or nothing where there is no such token."""
        text = C.llama_vocab_get_text(self.vocabulary, token) if token >= 0 else None
        return text.decode("utf-8", "replace") if text else ""

    def _run(self, batch: C.llama_batch) -> None:
        result = C.llama_decode(self.context, batch)
        if result == _ABORTED:
            raise Aborted
        if result:
            raise EngineError(
                f"llama_decode of {batch.n_tokens} rows failed with {result}: {self._why()}"
            )

    def abort(self) -> None:
        """From another thread: stop the call under way, at its next operation."""
        self._abort[0] = b"\1"

    def arm(self) -> None:
        """Let calls run again after :meth:`abort`."""
        self._abort[0] = b"\0"

    def logits(self, row: int) -> bytes:
        """The logits of a row of the last call: ``(n_vocab,) float32``, as bytes."""
        return ctypes.string_at(C.llama_get_logits_ith(self.context, row), self.n_vocab * 4)

    def textless(self) -> frozenset[int]:
        """The control tokens that end no answer, and the one for what is unknown; found out at
        the first call."""
        if self._textless is None:
            kind, end = C.llama_vocab_get_attr, C.llama_vocab_is_eog
            named = C.LLAMA_TOKEN_ATTR_CONTROL | C.LLAMA_TOKEN_ATTR_UNKNOWN
            self._textless = frozenset(
                token
                for token in range(self.n_vocab)
                if kind(self.vocabulary, token) & named and not end(self.vocabulary, token)
            )
        return self._textless

    def is_end(self, token: int) -> bool:
        """Whether a token ends an answer."""
        return bool(C.llama_vocab_is_eog(self.vocabulary, token))

    def forget(self) -> None:
        """Empty all streams and fill their cells with zeros."""
        C.llama_memory_clear(self.memory, True)

    def truncate(self, stream: int, length: int) -> bool:
        """Drop what a stream holds from ``length`` on; False where its past cannot be trusted.

        A cache with a sliding window answers True although it has forgotten what lies before the
        window, so the first position is asked for.
        """
        if not C.llama_memory_seq_rm(self.memory, stream, length, -1):
            C.llama_memory_seq_rm(self.memory, stream, -1, -1)
            return length == 0
        return length == 0 or C.llama_memory_seq_pos_min(self.memory, stream) == 0


def _within_nature(model: C.llama_model_p, plan: Plan) -> Plan:
    """The plan as far as this kind of model allows; :class:`EngineError` where not at all.

    A recurrent state cannot be cut back by a few tokens, so such a model has one stream, which
    never carries a dummy row, and no exactness.
    """
    if C.llama_model_has_encoder(model) or C.llama_model_is_diffusion(model):
        raise EngineError(f"{plan.path} is no model that continues a text, token by token")
    if C.llama_model_is_recurrent(model) or C.llama_model_is_hybrid(model):
        if plan.exact:
            raise EngineError(
                f"{plan.path} keeps a recurrent state, which cannot be replayed in parts: it "
                "cannot be exact; set [llama] exact = false"
            )
        return replace(plan, streams=1, max_rows=1)
    return plan
