"""The sandbox of a chat template: nothing of Python's own, and nothing huge in one step.

A template that runs for long is stopped between two steps. So what one step makes is limited here:
a text or list, the digits of a number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial, wraps
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_CHARACTERS = 8 << 20
_MAX_REPEAT = 1 << 20
_MAX_BITS = 1 << 12
_MAX_WIDTH = 200
_SIZED = (str, bytes, list, tuple)
_PADDING = frozenset({"center", "expandtabs", "ljust", "rjust", "zfill"})
_GROWING = _PADDING | {"encode", "format_map", "to_bytes", "translate"}
"""Methods that make size from numbers or tables, or bytes, which have such methods again."""


class TemplateError(Exception):
    """The template refused the conversation, is broken, or went over a limit."""


class _Generator(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802  # jinja's name
        self.write("environment.concat((")
        for operand in node.nodes:
            self.visit(operand, frame)
            self.write(", ")
        self.write("))")


class _Generation(Extension):
    """``{% generation %}`` marks what a model is trained on, and is nothing to an answer."""

    tags = {"generation"}  # noqa: RUF012  # as jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """Raises :class:`TemplateError` for a step beyond the limits, and jinja's errors."""

    intercepted_binops = frozenset({"+", "*", "**", "%", "//"})
    code_generator_class = _Generator

    def __init__(self) -> None:
        extensions = [loopcontrols, _Generation]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        for name in ("format", "urlize"):
            del self.filters[name]
        for name in ("batch", "center", "indent", "round", "slice", "wordwrap"):
            self.filters[name] = _narrow(self.filters[name])
        self.filters.update(tojson=_narrow(_tojson), join=_join, replace=_replace, sum=_sum)
        del self.globals["lipsum"]

    @staticmethod
    def concat(parts: Iterable[Any]) -> str:  # what makes the text of blocks, macros and «~»
        return _joined("", parts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse the operations that make something huge in one step, which no timer stops."""
        if any(isinstance(x, int) and x.bit_length() > _MAX_BITS for x in (left, right)):
            raise TemplateError("the chat template computes with a number beyond the limit")
        if operator == "+" and isinstance(left, _SIZED) and isinstance(right, _SIZED):
            _check_size(len(left) + len(right))
        if operator == "*" and _repeats(left, right) > _MAX_REPEAT:
            raise TemplateError("the chat template multiplies a text or list beyond the limit")
        if operator == "**" and (abs(left) > _MAX_REPEAT or abs(right) > 64):
            raise TemplateError("the chat template computes a power beyond the limit")
        if operator == "%" and isinstance(left, str | bytes):
            raise TemplateError("the chat template formats with %, which is not allowed")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _GROWING and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        # without a colon there is no width
        return wrapped if ":" not in value.__self__ else _no_format

    def call(
        __self,  # noqa: N805  # jinja's way to leave all other names to the template
        __context: Any,  # noqa: PYI063
        __obj: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str) and name in _CHECKED:
            return super().call(__context, partial(_CHECKED[name], owner), *args, **kwargs)
        return super().call(__context, __obj, *args, **kwargs)


def _repeats(left: Any, right: Any) -> int:
    for text, times in ((left, right), (right, left)):
        if isinstance(text, _SIZED) and isinstance(times, int):
            return len(text) * times
    return 0


def _check_size(size: int) -> None:
    if size > MAX_CHARACTERS:
        raise TemplateError(f"the model's chat template wrote over {MAX_CHARACTERS} characters")


def _joined(separator: str, parts: Iterable[Any]) -> str:
    texts = [str(part) for part in parts]
    _check_size(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


def _join(values: Iterable[Any], separator: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        raise TemplateError("the chat template joins by an attribute, which is not allowed")
    return _joined(str(separator), values)


def _replace(text: Any, old: str, new: str, count: int | None = None) -> str:
    whole, old, new = str(text), str(old), str(new)
    times = whole.count(old) if count is None or count < 0 else min(count, whole.count(old))
    _check_size(len(whole) + times * len(new))
    return whole.replace(old, new, times)


def _sum(values: Iterable[Any], attribute: str | None = None, start: float = 0) -> Any:
    if attribute is not None or not isinstance(start, int | float):
        raise TemplateError("the chat template sums what are no numbers, which is not allowed")
    return sum(values, start)


def _no_format(*_: Any, **__: Any) -> str:
    raise TemplateError("the chat template formats with a width, which is not allowed")


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    _check_size(len(text))
    return text


def _narrow(filter_: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose arguments, which are widths and counts, are limited."""

    @wraps(filter_)
    def narrowed(*args: Any, **options: Any) -> Any:
        for given in (*args[1:], *options.values()):
            if isinstance(given, int) and abs(given) > _MAX_WIDTH:
                raise TemplateError(f"the chat template asks for {given} at once: over the limit")
        return filter_(*args, **options)

    return narrowed


_CHECKED: dict[str, Callable[..., str]] = {"join": _joined, "replace": _replace}
