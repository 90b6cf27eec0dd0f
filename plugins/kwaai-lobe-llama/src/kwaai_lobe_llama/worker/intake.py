"""From jobs to sessions: the template, the tokens, the room in the context."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kwaai_core import Message, Prompt, TokenIds, Tool
from kwaai_lobe_llama.answers import Failure, FailureCode
from kwaai_lobe_llama.jobs import Job
from kwaai_lobe_llama.worker.bindings import C
from kwaai_lobe_llama.worker.forms import Forms, Refusal
from kwaai_lobe_llama.worker.loaded import Loaded
from kwaai_lobe_llama.worker.sampler import Sampler
from kwaai_lobe_llama.worker.telling import Echo, Session
from kwaai_lobe_llama.worker.template import ChatTemplate, TemplateError
from kwaai_lobe_llama.worker.text import TextAssembler

if TYPE_CHECKING:
    from kwaai_lobe_llama.worker.logprobs import LogprobReader

_PIECE = 1 << 16  # characters


class Intake:
    """From jobs to sessions: the template, the tokens, the room in the context."""

    def __init__(self, engine: Loaded) -> None:
        self._engine = engine
        vocabulary = engine.vocabulary
        self.bos = engine.special_text(C.llama_vocab_bos(vocabulary))
        self._adds_bos = bool(C.llama_vocab_get_add_bos(vocabulary))
        self.eos = engine.special_text(C.llama_vocab_eos(vocabulary))
        self._template: ChatTemplate | None = None
        self._forms = Forms(engine, self._compiled)

    def session(self, number: int, job: Job) -> Session:
        """The session that a job asks for; raises :class:`Refusal`."""
        prompt = self._prompt(job)
        context = self._engine.plan.context
        if not prompt:
            raise Refusal(Failure(FailureCode.BAD_REQUEST, "the prompt has no tokens"))
        if len(prompt) >= context:
            raise self._too_long(len(prompt))
        strange = [t for t, _ in job.sampling.logit_bias if not 0 <= t < self._engine.n_vocab]
        if strange:
            raise Refusal(
                Failure(
                    FailureCode.BAD_REQUEST,
                    f"logit_bias has the token {strange[0]}, and this model's are numbered from 0 "
                    f"to {self._engine.n_vocab - 1}",
                )
            )
        form = self._forms.form(job)
        sampler = Sampler(job.sampling, self._engine.n_vocab, prompt, form.constraint, form.watch)
        room = context - len(prompt)
        limit = room if job.max_tokens is None else min(room, job.max_tokens)
        digest = hashlib.sha256() if job.digest else None
        text, told = TextAssembler(job.stop), _logprobs(job.logprobs)
        echo = Echo(self._pieces(job.prompt, prompt), told is not None) if job.echo else None
        repeatable = job.sampling.seed is not None
        return Session(
            number, prompt, limit, sampler, text, digest, told, echo, form.calls, repeatable
        )

    def _pieces(self, prompt: Prompt, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of a prompt's tokens; together they are its text, where it was one.

        Tokenisers put a token in front that is not in the text, and some of them a space.
        """
        pieces = [self._engine.piece(token, special=True) for token in tokens]
        if isinstance(prompt, str):
            text = prompt.encode("utf-8", "replace")
            at = int(self._adds_bos and b"".join(pieces) != text)
            pieces[:at] = [b""] * at
            if b"".join(pieces) == b" " + text:
                pieces[at] = pieces[at][1:]
        return pieces

    def _prompt(self, job: Job) -> list[int]:
        if not isinstance(job.prompt, TokenIds):
            return self._tokens(self._text(job))
        return self.known(job.prompt)

    def known(self, tokens: TokenIds) -> list[int]:
        """Tokens, all of which this model has; raises :class:`Refusal`."""
        last = self._engine.n_vocab - 1
        strange = next((token for token in tokens.ids if token > last), None)
        if strange is not None:
            what = f"there is no token {strange}: this model's are numbered from 0 to {last}"
            raise Refusal(Failure(FailureCode.BAD_REQUEST, what))
        return list(tokens.ids)

    def _tokens(self, text: str) -> list[int]:
        """The tokens of a text, which is counted in pieces first where it is long.

        llama.cpp takes time by the square of the special tokens: 20 s for a mebibyte of them.
        """
        check_vocabulary(self._engine)
        if len(text) > _PIECE:
            starts = range(0, len(text), _PIECE)
            about = sum(len(self._engine.tokenise(text[at : at + _PIECE])) for at in starts)
            if about >= 2 * self._engine.plan.context:  # far more than the cuts may add
                raise self._too_long(about)
        return self._engine.tokenise(text)

    def _too_long(self, tokens: int) -> Refusal:
        what = "the prompt is longer than the context"
        context = self._engine.plan.context
        return Refusal(Failure(FailureCode.CONTEXT_LENGTH, what, tokens, context))

    def _text(self, job: Job) -> str:
        if not isinstance(job.prompt, tuple):
            return str(job.prompt)
        text = self.laid_out(job.prompt, job.tools.shown if job.tools else ())
        # the tokeniser adds the first token itself
        return text.removeprefix(self.bos) if self.bos and self._adds_bos else text

    def laid_out(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, opened: bool = True
    ) -> str:
        """A conversation as the model's template writes it; raises :class:`Refusal`."""
        self._forms.check(messages, tools)
        try:
            return self._compiled().render(messages, tools, opened=opened)
        except TemplateError as error:
            raise Refusal(Failure(FailureCode.BAD_REQUEST, str(error))) from None

    @property
    def template(self) -> str:
        """The model's chat template, or nothing."""
        source = C.llama_model_chat_template(self._engine.model, None)
        return source.decode("utf-8", "replace") if source else ""

    def _compiled(self) -> ChatTemplate:
        if self._template is None:
            source = self.template
            if not source:
                raise TemplateError(
                    "this model has no chat template: use /v1/completions with a prompt"
                )
            self._template = ChatTemplate(source, bos_token=self.bos, eos_token=self.eos)
        return self._template


def check_vocabulary(engine: Loaded) -> None:
    """Whether there is one, since llama.cpp ends the process otherwise; raises :class:`Refusal`."""
    if C.llama_vocab_type(engine.vocabulary) == C.LLAMA_VOCAB_TYPE_NONE:
        what = "this model has no tokenizer: give tokens, not text"
        raise Refusal(Failure(FailureCode.BAD_REQUEST, what))


def _logprobs(most: int | None) -> LogprobReader | None:
    if most is None:
        return None
    from kwaai_lobe_llama.worker.logprobs import LogprobReader  # it imports numpy

    return LogprobReader(most)
