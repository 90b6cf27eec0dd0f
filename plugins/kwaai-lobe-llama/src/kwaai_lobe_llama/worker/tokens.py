"""Questions about texts and tokens, answered from the vocabulary and the template alone."""

from __future__ import annotations

from collections.abc import Iterator

from kwaai_core import Prompt, TokenIds
from kwaai_lobe_llama.answers import Failure, FailureCode
from kwaai_lobe_llama.jobs import Question
from kwaai_lobe_llama.worker.bindings import C
from kwaai_lobe_llama.worker.forms import Refusal
from kwaai_lobe_llama.worker.intake import Intake, check_vocabulary
from kwaai_lobe_llama.worker.loaded import Loaded

_PIECE = 1 << 14  # characters
_MOST_SPECIAL = 10_000
"""Special tokens of one text, since llama.cpp takes time by the square of them: 0.2 s."""


class Tokeniser:
    """Answers questions about texts of any length, whatever the context of the model holds."""

    def __init__(self, engine: Loaded, intake: Intake) -> None:
        self._engine = engine
        self._intake = intake

    def answer(self, question: Question) -> dict[str, object]:
        """The answer, for JSON; raises :class:`Refusal`."""
        check_vocabulary(self._engine)
        if question.prompt is None:
            return self._facts()
        if isinstance(question.prompt, TokenIds):
            tokens = self._intake.known(question.prompt)
            return {"text": self._engine.detokenise(tokens).decode("utf-8", "replace")}
        text = self._text(question.prompt, opened=question.opened)
        self._check(text)
        tokens = self._engine.tokenise(text, first=question.special)
        shown = [self._engine.special_text(token) for token in tokens] if question.shown else None
        return {"ids": tokens, "shown": shown, "context": self._engine.plan.context}

    def _text(self, prompt: str | Prompt, *, opened: bool) -> str:
        if isinstance(prompt, tuple):
            return self._intake.laid_out(prompt, opened=opened)
        return prompt if isinstance(prompt, str) else ""

    def _check(self, text: str) -> None:
        """Count the special tokens of a long text, piece by piece."""
        if len(text) <= _PIECE:
            return
        found = 0
        for piece in _pieces(text):
            tokens = self._engine.tokenise(piece, first=False)
            found += sum(not self._engine.piece(token) for token in tokens)
            if found > _MOST_SPECIAL:
                what = f"the text has over {_MOST_SPECIAL} special tokens: send it in parts"
                raise Refusal(Failure(FailureCode.BAD_REQUEST, what))

    def _facts(self) -> dict[str, object]:
        vocabulary, text = self._engine.vocabulary, self._engine.special_text
        return {
            "bos": self._intake.bos,
            "eos": self._intake.eos,
            "pad": text(C.llama_vocab_pad(vocabulary)),
            "template": self._intake.template,
            "adds_bos": bool(C.llama_vocab_get_add_bos(vocabulary)),
            "adds_eos": bool(C.llama_vocab_get_add_eos(vocabulary)),
            "tokens": self._engine.n_vocab,
            "context": self._engine.plan.context,
        }


def _pieces(text: str) -> Iterator[str]:
    for at in range(0, len(text), _PIECE):
        yield text[at : at + _PIECE]
