"""What form an answer has to have: JSON by a schema, calls of tools, or text that turns to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kwaai_core import Message, Tool, Tools
from kwaai_lobe_llama.answers import Failure, FailureCode
from kwaai_lobe_llama.jobs import Job
from kwaai_lobe_llama.worker.calling import (
    TAGGED,
    CallForm,
    CallReader,
    Manners,
    Trigger,
    manners,
)
from kwaai_lobe_llama.worker.grammar.build import (
    Calls,
    CallsGrammar,
    Function,
    calls_grammar,
    json_grammar,
)
from kwaai_lobe_llama.worker.grammar.shapes import SchemaError
from kwaai_lobe_llama.worker.loaded import Loaded
from kwaai_lobe_llama.worker.sampler import DeadEnd
from kwaai_lobe_llama.worker.template import ChatTemplate, TemplateError

if TYPE_CHECKING:  # it imports numpy
    from kwaai_lobe_llama.worker.constraint import Constraint

_SCHEMA = "response_format.json_schema.schema"


class Refusal(Exception):
    """A job that cannot be done."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Form:
    """What one answer has to fit from its beginning, or once ``watch`` says so; and what reads its
    calls. Resources: whoever draws by it closes the constraint."""

    constraint: Constraint | None = None
    watch: CallWatch | None = None
    calls: CallReader | None = None


class Forms:
    """Makes forms for one model; ``template`` compiles its chat template."""

    def __init__(self, engine: Loaded, template: Callable[[], ChatTemplate]) -> None:
        self._engine = engine
        self._template = template
        self._known: Manners | None = None

    def check(self, messages: Sequence[Message], tools: Sequence[Tool]) -> None:
        """Raise :class:`Refusal` for tools, or calls, that the chat template would leave out."""
        if tools and not self._manners().tools:
            raise _unsupported(
                "the chat template of this model has no tools: leave them out", "tools"
            )
        for number, message in enumerate(messages):
            if message.tool_calls and not self._manners().calls:
                what = "the chat template of this model has no calls of tools: leave them out"
                raise _unsupported(what, f"messages[{number}].tool_calls")

    def _manners(self) -> Manners:
        if self._known is None:
            try:
                self._known = manners(self._template())
            except TemplateError as error:
                raise Refusal(Failure(FailureCode.BAD_REQUEST, str(error))) from None
        return self._known

    def form(self, job: Job) -> Form:
        """The form of a job that was checked; raises :class:`Refusal`."""
        try:
            if job.tools is not None:
                return self._calling(job.tools, job.schema)
            if job.schema is not None:
                return Form(_constraint(self._engine, json_grammar(job.schema, _SCHEMA)))
        except SchemaError as error:
            code = FailureCode.UNSUPPORTED if error.unsupported else FailureCode.BAD_REQUEST
            raise Refusal(Failure(code, str(error), param=error.at)) from None
        return Form()

    def _calling(self, tools: Tools, schema: str | None) -> Form:
        form = self._manners().form
        if form is None and not tools.required:
            what = (
                'calls of tools in a form that this node does not read: give tool_choice "required"'
            )
            raise _unsupported(f"this model writes {what}", "tools")
        form = form or TAGGED
        if schema is not None and form.bare and not tools.required:
            what = "this model writes calls of tools as it would write JSON"
            raise _unsupported(
                f"{what}: leave one of tools and response_format out", "response_format"
            )
        marks = _marks(self._engine, form)
        made = _grammar(form, tools, None if tools.required else schema)
        whole = _constraint(self._engine, made.text(), marks.keys())
        if tools.required or schema is not None:
            return Form(whole, None, CallReader(form, marks))
        whole.close()  # llama.cpp takes the grammar, so it takes what is left of it later
        trigger = Trigger(form, [tools.shown[number].name for number in tools.allowed])
        watch = CallWatch(self._engine, trigger, made, marks)
        return Form(None, watch, CallReader(form, marks, trigger))


class CallWatch:
    """Lets an answer be any text until a call begins, and has it fit the grammar from there on."""

    def __init__(
        self, engine: Loaded, trigger: Trigger, made: CallsGrammar, marks: Mapping[int, bytes]
    ) -> None:
        self._engine = engine
        self._trigger = trigger
        self._grammar = made
        self._marks = marks

    def after(self, token: int) -> Constraint | None:
        """What has to follow a token, where it began a call."""
        piece = self._marks.get(token) or self._engine.piece(token)
        if not self._trigger.push(piece) or self._trigger.begun is None:
            return None
        try:
            text = self._grammar.rest(*self._trigger.begun)
            return _constraint(self._engine, text, self._marks.keys())
        except SchemaError:
            raise DeadEnd from None


def _grammar(form: CallForm, tools: Tools, schema: str | None) -> CallsGrammar:
    begin = form.marker + form.frame
    again = form.again if tools.parallel else None
    functions = (
        Function(tool.name, tool.parameters, f"tools[{n}].function.parameters", tool.strict)
        for n, tool in ((n, tools.shown[n]) for n in tools.allowed)
    )
    return calls_grammar(
        Calls(begin, form.between, form.close, again), tuple(functions), schema, _SCHEMA
    )


def _constraint(engine: Loaded, text: str, marks: AbstractSet[int] = frozenset()) -> Constraint:
    from kwaai_lobe_llama.worker.constraint import Constraint, GrammarRefused  # numpy

    try:
        return Constraint(engine, text, marks)
    except GrammarRefused:
        raise SchemaError(
            "llama.cpp does not take the grammar of it: make it simpler", _SCHEMA
        ) from None


def _marks(engine: Loaded, form: CallForm) -> dict[int, bytes]:
    """The control tokens that a form is written with, and how they are written in it."""
    found = {}
    for word in {form.marker, form.close.lstrip("} \n"), (form.again or "").strip()}:
        token = engine.tokenise(word)[-1] if word else -1
        if token in engine.textless() and engine.special_text(token) == word:
            found[token] = word.encode()
    return found


def _unsupported(message: str, param: str) -> Refusal:
    return Refusal(Failure(FailureCode.UNSUPPORTED, message, param=param))
