"""The sandbox of a chat template: nothing of Python's own, and no more memory than a layout needs.

A template that runs for long is stopped between two steps, so what one step makes is limited: a
text or list, the digits of a number. And each step pays for what it makes out of a budget of bytes,
since a template can keep what many steps make, in a list of lists or a text that grows.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, ValuesView
from functools import partial, wraps
from sys import getsizeof
from typing import Any

from jinja2 import TemplateRuntimeError, Undefined, UndefinedError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_indent
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, missing

MAX_CHARACTERS = 8 << 20
BUDGET = 64 << 20
"""Bytes that a template may make besides those that its conversation gives it; see ``spend``."""

_STEP, _ELEMENT = 256, 96  # bytes that one step, or one element of a new list, holds at most
_MAX_REPEAT = 1 << 20
_MAX_PIECES = 1 << 19
_MAX_BITS = 1 << 12
_MAX_WIDTH = 200
_SIZED = (str, bytes, list, tuple)
_CONTAINERS = (list, tuple, dict, set, frozenset, KeysView, ValuesView, ItemsView)
_PADDING = frozenset({"center", "expandtabs", "ljust", "rjust", "zfill"})
_GROWING = _PADDING | {"encode", "format_map", "fromkeys", "maketrans", "to_bytes", "translate"}
"""Methods that make size from numbers or tables, or bytes, which have such methods again."""

_SPLITTING = frozenset({"split", "rsplit", "splitlines"})
_ITERATING = frozenset({"batch", "groupby", "join", "list", "map", "slice", "sort", "unique"}) | {
    word + attribute for word in ("reject", "select") for attribute in ("", "attr")
}
_WRITING = frozenset({"capitalize", "center", "e", "escape", "filesizeformat", "float"}) | {
    "indent", "int", "lower", "replace", "title", "trim", "truncate", "upper",
    "dictsort", "groupby", "max", "min", "sort", "unique",  # which compare what they have lowered
}  # fmt: skip
_WITHOUT = frozenset({"forceescape", "format", "pprint", "striptags", "urlencode", "urlize"}) | {
    "wordcount", "wordwrap", "xmlattr"
}  # fmt: skip
_PLAIN = re.compile(r"(?:[^{}]|\{\{|\}\}|\{\w*\})*")


class TemplateError(Exception):
    """The template refused the conversation, is broken, or went over a limit."""


class _Generator(CodeGenerator):
    """Lets the sandbox see the steps that jinja leaves to Python."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802  # jinja's name
        self.write("environment.concat((")
        for operand in node.nodes:
            self.visit(operand, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        self._paid(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self._paid(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        if node.ctx == "load":
            self._paid(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        if isinstance(node.arg, nodes.Slice):
            self._paid(super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def _paid(self, visit: Callable[[Any, Frame], None], node: nodes.Node, frame: Frame) -> None:
        self.write("environment.made(")
        visit(node, frame)
        self.write(")")

    def visit_Output(self, node: nodes.Output, frame: Frame) -> None:  # noqa: N802
        self.writeline(f"environment.spend({_ELEMENT})", node)  # its place in a list of parts
        super().visit_Output(node, frame)

    def visit_ScopedEvalContextModifier(  # noqa: N802
        self, node: nodes.ScopedEvalContextModifier, frame: Frame
    ) -> None:
        raise TemplateError("autoescape is not for a chat")


class _Generation(Extension):
    """``{% generation %}`` marks what a model is trained on, and is nothing to an answer."""

    tags = {"generation"}  # noqa: RUF012  # as jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    def __repr__(self) -> str:
        return "<namespace>"  # and not all that it holds


class _Undefined(Undefined):
    """What is not there; its error names it, and never writes out what a template made."""

    __slots__ = ()

    def __init__(
        self,
        hint: str | None = None,
        obj: Any = missing,
        name: Any = "",
        exc: type[TemplateRuntimeError] = UndefinedError,
    ) -> None:
        super().__init__(hint, obj, str(name)[:100] if isinstance(name, str | int) else "…", exc)


class Sandbox(ImmutableSandboxedEnvironment):
    """Raises :class:`TemplateError` for a step beyond the limits, and jinja's errors.

    ``left`` is the budget in bytes; whoever renders sets it before.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%", "//"})
    code_generator_class = _Generator

    def __init__(self) -> None:
        self.left = BUDGET
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _Generation],
            undefined=_Undefined,
            finalize=self.text,
            optimized=False,  # it would compute lists beforehand, which then nobody pays for
        )
        for name in _WITHOUT:
            del self.filters[name]
        self.filters.update(tojson=self._tojson, join=self._join, replace=_replace, sum=_sum)
        self.filters.update(indent=_indent, title=lambda text: self.text(text).title())
        self.filters.update(dict.fromkeys(("safe", "string"), self.text))
        self.filters.update(dict.fromkeys(("e", "escape"), lambda text: html.escape(str(text))))
        for name in ("batch", "center", "indent", "round", "slice", "tojson"):
            self.filters[name] = _narrow(self.filters[name])
        self.filters = {name: self._paying(name, one) for name, one in self.filters.items()}
        self.globals["namespace"] = _Namespace
        del self.globals["lipsum"]

    def spend(self, size: int) -> None:
        """Take bytes out of the budget. What is kept takes no more than about twice what it paid.

        Errors: :class:`TemplateError` once nothing is left.
        """
        self.left -= size
        if self.left < 0:
            raise TemplateError("the chat template makes too much: it is over its limit of memory")

    def made(self, value: Any, element: int = 0) -> Any:
        """A value that a step has made, paid for; ``element`` is for each that is new in it."""
        count = len(value) if element and isinstance(value, list | tuple) else 0
        self.spend(_STEP + getsizeof(value) + element * count)
        return value

    def text(self, value: Any) -> str:
        """A value as it is written, paid for."""
        if not isinstance(value, str):
            _weigh(value, _MAX_REPEAT)
            value = str(value)
        self.made(value)
        return str(value)

    def concat(self, parts: Iterable[Any]) -> str:  # of blocks, macros, and what «~» makes
        return self._joined("", parts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse the operations that make something huge in one step, which no timer stops."""
        if any(isinstance(x, int) and x.bit_length() > _MAX_BITS for x in (left, right)):
            raise TemplateError("the chat template computes with a number beyond the limit")
        if operator == "+" and isinstance(left, _SIZED) and isinstance(right, _SIZED):
            _check_size(len(left) + len(right), MAX_CHARACTERS if isinstance(left, str) else None)
        if operator == "*" and _repeats(left, right) > _MAX_REPEAT:
            raise TemplateError("the chat template multiplies a text or list beyond the limit")
        if operator == "**" and (abs(left) > _MAX_REPEAT or abs(right) > 64):
            raise TemplateError("the chat template computes a power beyond the limit")
        if operator == "%" and isinstance(left, str | bytes):
            raise TemplateError("the chat template formats with %, which is not allowed")
        return self.made(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _GROWING and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        return None if wrapped is None else partial(self._format, wrapped, value.__self__)

    def _format(self, format_: Callable[..., str], layout: str, *args: Any, **options: Any) -> str:
        if not _PLAIN.fullmatch(layout):  # a colon in braces is a width, a dot an attribute
            raise TemplateError("the chat template formats with more than {}, which is not allowed")
        longest = max((len(self.text(one)) for one in (*args, *options.values())), default=0)
        _check_size(len(layout) + layout.count("{") * longest)
        return format_(*args, **options)

    def call(
        __self,  # noqa: N805  # jinja's way to leave all other names to the template
        __context: Any,  # noqa: PYI063
        __obj: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        __self.spend(_ELEMENT * (len(args) + len(kwargs)))
        if isinstance(owner, str):
            __self.spend(getsizeof(owner))  # that much may be in the pieces that it makes of it
            if name in _SPLITTING:
                _check_pieces(owner, *args)
            checked = {"join": partial(__self._joined, owner), "replace": partial(_replace, owner)}
            __obj = checked.get(name, __obj)
        result = super().call(__context, __obj, *args, **kwargs)
        return result if name == "get" else __self.made(result, _ELEMENT)

    def _paying(self, name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that refuses what is huge when written out, and pays for what it makes."""

        @wraps(filter_)
        def paying(*args: Any, **options: Any) -> Any:
            for given in (*args, *options.values()):
                if name in _WRITING:
                    _weigh(given, MAX_CHARACTERS)
                if name in _ITERATING and isinstance(given, str) and len(given) > _MAX_PIECES:
                    raise TemplateError("the chat template takes a text apart beyond the limit")
            result = filter_(*args, **options)
            gathered = self._gathered(result) if isinstance(result, Iterator) else result
            return self.made(gathered, _ELEMENT)

        return paying

    def _gathered(self, values: Iterable[Any]) -> list[Any]:
        """All of an iterator at once: one that is kept would make what nobody pays for."""
        gathered = []
        for value in values:
            self.spend(getsizeof(value) if isinstance(value, list | tuple) else 0)
            gathered.append(value)
        return gathered

    def _joined(self, separator: str, parts: Iterable[Any]) -> str:
        texts, size = [], 0
        for part in parts:
            texts.append(part if isinstance(part, str) else self.text(part))
            size += len(texts[-1]) + len(separator)
            _check_size(size)
            self.spend(_ELEMENT)
        return str(self.made(separator.join(texts)))

    def _join(self, values: Any, separator: Any = "", attribute: str | None = None) -> str:
        if attribute is not None:
            raise TemplateError("the chat template joins by an attribute, which is not allowed")
        return self._joined(self.text(separator), values)

    def _tojson(self, value: Any, indent: int | None = None, **_: Any) -> str:
        if not isinstance(indent, int | None):
            raise TemplateError("the chat template indents JSON by what is no number")
        return self.concat(json.JSONEncoder(ensure_ascii=False, indent=indent).iterencode(value))


def _repeats(left: Any, right: Any) -> int:
    for text, times in ((left, right), (right, left)):
        if isinstance(text, _SIZED) and isinstance(times, int):
            return len(text) * times
    return 0


def _check_size(size: int, most: int | None = None) -> None:
    if size > (most or MAX_CHARACTERS):
        raise TemplateError(f"the model's chat template wrote over {MAX_CHARACTERS} characters")


def _check_pieces(text: str, separator: Any = None, *_: Any) -> None:
    pieces = text.count(separator) if separator and isinstance(separator, str) else len(text) // 2
    if pieces > _MAX_PIECES:
        raise TemplateError("the chat template splits a text into too many pieces")


def _weigh(value: Any, most: int) -> None:
    """Refuse what would be too long when written out: a list may hold one thing many times."""
    left, rest = most, [value] if isinstance(value, _CONTAINERS) else []
    while rest:
        one = rest.pop()
        nested = isinstance(one, _CONTAINERS)
        left -= len(one) * (4 if nested else 1) if nested or isinstance(one, str) else 0
        if left < 0:
            raise TemplateError("the chat template writes out a list beyond the limit")
        rest.extend(one if nested else ())
        rest.extend(one.values() if isinstance(one, dict) else ())


def _replace(text: Any, old: str, new: str, count: int | None = None) -> str:
    whole, old, new = str(text), str(old), str(new)
    times = whole.count(old) if count is None or count < 0 else min(count, whole.count(old))
    _check_size(len(whole) + times * len(new))
    return whole.replace(old, new, times)


def _sum(values: Iterable[Any], attribute: str | None = None, start: float = 0) -> Any:
    if attribute is not None or not isinstance(start, int | float):
        raise TemplateError("the chat template sums what are no numbers, which is not allowed")
    return sum(values, start)


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    whole, each = str(text), len(width) if isinstance(width, str) else width
    _check_pieces(whole)
    _check_size(len(whole) + (len(whole.splitlines()) + 1) * each)
    return do_indent(whole, width, first, blank)


def _narrow(filter_: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose arguments, which are widths and counts, are limited."""

    @wraps(filter_)
    def narrowed(*args: Any, **options: Any) -> Any:
        for given in (*args[1:], *options.values()):
            if isinstance(given, int) and abs(given) > _MAX_WIDTH:
                raise TemplateError(f"the chat template asks for {given} at once: over the limit")
        return filter_(*args, **options)

    return narrowed
