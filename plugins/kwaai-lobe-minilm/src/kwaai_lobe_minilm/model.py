"""The model itself: from texts to tokens, and from tokens to vectors. Every call blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

from kwaai_lobe_minilm.files import Files

MAX_TOKENS = 256
"""What the model was trained for, the two around a text included."""

DIMENSIONS = 384
FIRST, LAST = 101, 102
"""[CLS] and [SEP], which stand around the tokens of a text."""

_ERRORS_ONLY = 3

Rows = Sequence[Sequence[int]]


class Model:
    """all-MiniLM-L6-v2, loaded. A second thread may call it meanwhile."""

    def __init__(self, files: Files, threads: int) -> None:
        self._tokenizer = Tokenizer.from_str(files.tokenizer.decode())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()  # the file cuts every text at 128 tokens
        self.vocabulary = self._tokenizer.get_vocab_size()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        # or threads would wait for the next batch by computing nothing at full speed
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            files.model, options, providers=["CPUExecutionProvider"]
        )

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """All tokens of each text, with the first and the last that every text gets."""
        # One by one, since a batch would use every processor there is; and not by encode(), which
        # holds the interpreter's lock, half a second for a megabyte.
        return [self._tokenizer.encode_batch_fast([text])[0].ids for text in texts]

    def vectors(self, rows: Rows) -> npt.NDArray[np.float32]:
        """A vector of length 1 for each row of tokens: ``(len(rows), DIMENSIONS) float32``.

        The mean over the tokens of the last layer, as sentence-transformers has it (1908.10084,
        section 3). A row's bits do not depend on the other rows: weights are int8 and activations
        float32, so nothing is scaled by what else is in the batch, and padding is masked out.
        """
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (states,) = self._session.run(["last_hidden_state"], feed)
        weights = mask[..., None].astype(np.float32)
        mean = (states * weights).sum(axis=1) / weights.sum(axis=1)
        vectors: npt.NDArray[np.float32] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return vectors
