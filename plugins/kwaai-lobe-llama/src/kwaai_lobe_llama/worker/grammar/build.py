"""From a schema to the text of a grammar, or to what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from kwaai_lobe_llama.worker.grammar.branches import Branch, branches
from kwaai_lobe_llama.worker.grammar.checks import check, only_objects
from kwaai_lobe_llama.worker.grammar.hints import without_hints
from kwaai_lobe_llama.worker.grammar.schema import ANNOTATIONS, read_schema
from kwaai_lobe_llama.worker.grammar.shapes import SchemaError
from kwaai_lobe_llama.worker.grammar.writer import Writer, quoted

_KEPT = 4
"""So many grammars are remembered: the choices of one request all have the same."""


@lru_cache(_KEPT)
def json_grammar(schema: str, at: str) -> str:
    """The grammar of JSON that fits a schema, a JSON text that stands at a place of the request.

    Errors: :class:`SchemaError`.
    """
    writer = Writer()
    return writer.text(value_rule(writer, schema, at), at)


@dataclass(frozen=True, slots=True)
class Function:
    """A tool that may be called: its schema stands at ``at`` in the request, and is held to the
    letter where it is ``strict``."""

    name: str
    schema: str
    at: str
    strict: bool = True


@dataclass(frozen=True, slots=True)
class Calls:
    """How calls are written: ``begin``, a name, ``between``, arguments and ``close``, and
    ``again`` before another one; None where there is no other."""

    begin: str
    between: str
    close: str
    again: str | None


@lru_cache(_KEPT)
def calls_grammar(
    calls: Calls, tools: tuple[Function, ...], schema: str | None, at: str
) -> CallsGrammar:
    """The grammar of calls of these tools; with a ``schema``, which stands ``at`` a place of the
    request, the answer may also be JSON that fits it. Errors: :class:`SchemaError`."""
    writer = Writer()
    rules = {}
    for tool in tools:
        schema_of_it = tool.schema if tool.strict else _hintless(tool.schema)
        arguments = value_rule(writer, schema_of_it, tool.at, objects=True)
        rules[tool.name + '"'] = f"{quoted(calls.between[1:])} {arguments} {quoted(calls.close)}"
    answer = value_rule(writer, schema, at) if schema is not None else None
    return CallsGrammar(
        writer, calls, {name: writer.rule(rule) for name, rule in rules.items()}, answer
    )


class CallsGrammar:
    """A grammar of calls, which may begin in the middle of the first."""

    def __init__(
        self, writer: Writer, calls: Calls, rules: Mapping[str, str], answer: str | None
    ) -> None:
        self._writer = writer
        self._calls = calls
        self._rules = rules
        self._answer = answer
        self._at = "tools"
        if calls.again is not None:
            again = f"{quoted(calls.again + calls.begin)} {writer.rule(self._named(''))}"
            self._more = f" ({writer.rule(again)})*"
        else:
            self._more = ""

    def text(self) -> str:
        """From the beginning."""
        calls = self._from(self._calls.begin, "")
        answer = f"{self._answer} | " if self._answer is not None else ""
        return self._writer.text(answer + calls, self._at)

    def rest(self, begin: str, name: str) -> str:
        """After so much of a call: ``begin`` has to follow, and a name that begins like this."""
        return self._writer.text(self._from(begin, name), self._at)

    def _from(self, begin: str, name: str) -> str:
        return f"{quoted(begin)} ({self._named(name)}){self._more}"

    def _named(self, begun: str) -> str:
        """The rest of the names that begin like this, each with all that follows it in its call."""
        rest = {
            name[len(begun) :]: rule for name, rule in self._rules.items() if name.startswith(begun)
        }
        if "" in rest:
            return rest[""]
        return " | ".join(self._branch(branch, "", rest) for branch in branches(rest))

    def _branch(self, branch: Branch, before: str, rules: Mapping[str, str]) -> str:
        name = before + branch.text
        if branch.ends:
            return f"{quoted(branch.text)} {rules[name]}"
        others = " | ".join(self._branch(other, name, rules) for other in branch.others)
        return f"{quoted(branch.text)} ({others})"


def _hintless(schema: str) -> str:
    """What is left of the schema of arguments, which are an object if it says nothing."""
    try:
        found = without_hints(json.loads(schema))
    except RecursionError:
        return schema  # which is refused for it
    if isinstance(found, dict) and not found.keys() - ANNOTATIONS:
        found["type"] = "object"
    return json.dumps(found)


def value_rule(writer: Writer, schema: str, at: str, *, objects: bool = False) -> str:
    """The name of a rule for JSON that fits a schema; ``objects``: all of it must be objects.

    Errors: :class:`SchemaError`.
    """
    try:
        shapes = read_schema(schema, at)
        check(shapes, at)
        if objects and not only_objects(shapes):
            raise SchemaError(f"{at} must be of the type object", at)
        return writer.value(shapes, at)
    except RecursionError:
        raise SchemaError("the schema is nested too deeply, with what it refers to", at) from None
