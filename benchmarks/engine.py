"""Plain llama.cpp: a bare loop around ``llama_decode``, with its own greedy sampler."""

import ctypes
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import llama_cpp as L

BATCH = 512
TEXT = (
    "the river carried old letters past a quiet mill where seven painters argued about the colour "
    "of winter bread while their teacher measured the shadow of a bridge and wrote every number in "
    "a green book that nobody would open until spring because of what had happened to the clock"
)
WORDS = tuple(TEXT.split())
ASKS = ("Here is a long and lively story about", "A list of surprising facts about")
TOPICS = (
    "a baker in Lisbon",
    "whales",
    "the first railway",
    "glass",
    "a night at sea",
    "volcanoes",
)
BF16, F16 = 30, 1  # ggml_type


@dataclass(frozen=True, slots=True)
class Settings:
    """How plain llama.cpp is set up; ``context`` is in tokens, for all sequences together.

    With ``exact`` it has what exactness needs: no repacked weights, flash attention, a cache
    of each sequence's own, K and V of different types, and no more than ``rows`` rows in a call
    that decodes (K-quants: 7, so that 8 sequences are two calls of 4).
    """

    path: Path
    context: int
    sequences: int
    threads: int
    flash: bool = True
    exact: bool = False
    rows: int = BATCH


@dataclass(frozen=True, slots=True)
class Generated:
    """What one run gave, one entry a stream; seconds from its start to the first token of each."""

    tokens: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    prompt_tokens: tuple[int, ...]
    first_s: float
    decode_s: float


class Engine:
    """One model in one context. The process that made it owns it until it ends."""

    def __init__(self, settings: Settings) -> None:
        quiet = L.llama_log_callback(lambda level, text, data: None)
        L.llama_log_set(quiet, ctypes.c_void_p(0))
        self._quiet = quiet  # llama.cpp keeps the pointer
        L.llama_backend_init()
        model = L.llama_model_load_from_file(str(settings.path).encode(), _model(settings))
        if not model:
            raise SystemExit(f"llama.cpp cannot load {settings.path}")
        self._context = L.llama_init_from_model(model, _context(settings))
        if not self._context:
            raise SystemExit(f"llama.cpp cannot make a context for {settings.path}")
        self._vocab = L.llama_model_get_vocab(model)
        self._memory = L.llama_get_memory(self._context)
        self._batch = L.llama_batch_init(BATCH, 0, 1)
        self._rows = settings.rows
        self._sampler = L.llama_sampler_chain_init(L.llama_sampler_chain_default_params())
        L.llama_sampler_chain_add(self._sampler, L.llama_sampler_init_greedy())

    def threads(self, count: int) -> None:
        L.llama_set_n_threads(self._context, count, count)

    def tokenize(self, text: str) -> list[int]:
        raw = text.encode()
        room = (L.llama_token * (len(raw) + 8))()
        count = L.llama_tokenize(self._vocab, raw, len(raw), room, len(room), True, False)
        return list(room[:count])

    def prompt(self, seed: int, length: int) -> str:
        """A text of exactly ``length`` tokens that shares no beginning with another seed's."""
        draw = random.Random(seed)
        for _ in range(100):
            number = str(draw.randrange(10**5, 10**6))  # so that no two begin alike
            text = f". {draw.choice(ASKS)} {draw.choice(TOPICS)}:\n"
            if len(self.tokenize(number + text)) > length:  # a vocabulary of little more than bytes
                text = ""
            while len(self.tokenize(number + text)) < length:
                text = f" {draw.choice(WORDS)}{text}"
            if len(self.tokenize(number + text)) == length:
                return number + text
        raise SystemExit(f"no prompt of {length} tokens could be made for this vocabulary")

    def generate(self, prompts: Sequence[str], length: int) -> Generated:
        """Greedily ``length`` tokens for each prompt, all in one batch; stops no stream early."""
        L.llama_memory_clear(self._memory, True)
        start = time.perf_counter()
        prompted = [self.tokenize(prompt) for prompt in prompts]
        rows = [[self._prefill(tokens, i)] for i, tokens in enumerate(prompted)]
        first = time.perf_counter()
        for _ in range(length - 1):
            self._step(rows, prompted)
        end = time.perf_counter()
        return Generated(
            tokens=tuple(tuple(row) for row in rows),
            texts=tuple(self._text(row) for row in rows),
            prompt_tokens=tuple(len(tokens) for tokens in prompted),
            first_s=first - start,
            decode_s=end - first,
        )

    def _prefill(self, tokens: Sequence[int], sequence: int) -> int:
        for lo in range(0, len(tokens), BATCH):
            piece = tokens[lo : lo + BATCH]
            for i, token in enumerate(piece):
                self._row(i, token, lo + i, sequence, lo + i == len(tokens) - 1)
            self._decode(len(piece))
        return int(L.llama_sampler_sample(self._sampler, self._context, -1))

    def _step(self, rows: list[list[int]], prompted: list[list[int]]) -> None:
        width = -(-len(rows) // -(-len(rows) // self._rows))  # of as few calls as can be
        for lo in range(0, len(rows), width):
            together = rows[lo : lo + width]
            for i, row in enumerate(together):
                self._row(i, row[-1], len(prompted[lo + i]) + len(row) - 1, lo + i, True)
            self._decode(len(together))
            for i, row in enumerate(together):
                row.append(int(L.llama_sampler_sample(self._sampler, self._context, i)))

    def _row(self, i: int, token: int, position: int, sequence: int, output: bool) -> None:
        batch = self._batch
        batch.token[i], batch.pos[i] = token, position
        batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, sequence, output

    def _decode(self, rows: int) -> None:
        self._batch.n_tokens = rows
        if code := L.llama_decode(self._context, self._batch):
            raise SystemExit(f"llama_decode failed with {code}")

    def _text(self, tokens: Sequence[int]) -> str:
        ended = next(
            (i for i, t in enumerate(tokens) if L.llama_vocab_is_eog(self._vocab, t)), len(tokens)
        )
        room = ctypes.create_string_buffer(256)
        pieces = []
        for token in tokens[:ended]:
            size = L.llama_token_to_piece(self._vocab, token, room, len(room), 0, False)
            pieces.append(room.raw[:size])
        return b"".join(pieces).decode("utf-8", "replace")


def _model(settings: Settings) -> L.llama_model_params:
    params: L.llama_model_params = L.llama_model_default_params()
    params.n_gpu_layers, params.use_extra_bufts = 0, not settings.exact
    return params


def _context(settings: Settings) -> L.llama_context_params:
    params: L.llama_context_params = L.llama_context_default_params()
    params.n_ctx, params.n_seq_max = settings.context, settings.sequences
    params.n_batch = params.n_ubatch = BATCH
    params.n_threads = params.n_threads_batch = settings.threads
    params.flash_attn_type = int(settings.flash or settings.exact)
    if settings.exact:
        params.kv_unified, params.type_k, params.type_v = False, BF16, F16
    return params
