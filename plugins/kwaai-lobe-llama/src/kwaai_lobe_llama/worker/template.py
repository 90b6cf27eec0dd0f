"""The model's own chat template, in an immutable sandbox with limits on time and size.

A template is a program that came with a model file. It sees messages and a few constants, can
change nothing and reach no attribute of Python's own (CVE-2024-34359), and is stopped when it
runs too long or grows too large.
"""

from __future__ import annotations

import ctypes
import json
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kwaai_core import Message

MAX_SECONDS = 2.0
MAX_CHARACTERS = 8 << 20
_MAX_REPEAT = 1 << 20


class TemplateError(Exception):
    """The template refused the conversation, is broken, or went over a limit."""


class _TooLong(BaseException):
    """Raised inside a template that has used up its time; no template can catch it."""


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse the operations that make something huge in one step, which no timer stops."""
        if operator == "*" and _repeats(left, right) > _MAX_REPEAT:
            raise TemplateError("the chat template multiplies a text or list beyond the limit")
        if operator == "**" and (abs(left) > _MAX_REPEAT or abs(right) > 64):
            raise TemplateError("the chat template computes a power beyond the limit")
        if operator == "%" and isinstance(left, str | bytes):
            raise TemplateError("the chat template formats with %, which is not allowed")
        return super().call_binop(context, operator, left, right)


def _repeats(left: Any, right: Any) -> int:
    sizes = [x if isinstance(x, int) else len(x) for x in (left, right) if isinstance(x, _SIZED)]
    if len(sizes) == 2 and not all(isinstance(x, int) for x in (left, right)):
        return sizes[0] * sizes[1]
    return 0


_SIZED = (int, str, bytes, list, tuple)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(f"the chat template refuses these messages: {message}")


def _strftime_now(layout: str) -> str:
    return time.strftime(layout)


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


class ChatTemplate:
    """A compiled template. ``constants`` are what templates expect: bos_token, eos_token.

    Raises :class:`TemplateError` where the source is no template.
    """

    def __init__(self, source: str, **constants: str) -> None:
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], autoescape=False
        )
        for filter_ in ("center", "indent", "format", "wordwrap"):  # they make size from numbers
            environment.filters.pop(filter_, None)
        environment.filters["tojson"] = _tojson
        environment.globals.update(
            raise_exception=_raise_exception, strftime_now=_strftime_now, **constants
        )
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise TemplateError(f"the model's chat template is broken: {error}") from None

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as the text that the model continues; see :class:`TemplateError`."""
        turns = [_turn(message) for message in messages]
        try:
            with _Deadline(MAX_SECONDS):
                return self._join(messages=turns, add_generation_prompt=True, tools=None)
        except _TooLong:
            raise TemplateError(
                f"the model's chat template ran for over {MAX_SECONDS:g} s and was stopped"
            ) from None
        except TemplateError:
            raise
        except Exception as error:  # noqa: BLE001  # foreign code: what it raises is its fault
            raise TemplateError(f"the model's chat template failed: {error}") from None

    def _join(self, **context: Any) -> str:
        parts, size = [], 0
        for part in self._template.generate(**context):
            size += len(part)
            if size > MAX_CHARACTERS:
                raise TemplateError(
                    f"the model's chat template wrote over {MAX_CHARACTERS} characters"
                )
            parts.append(part)
        return "".join(parts)


def _turn(message: Message) -> dict[str, str]:
    role = "system" if message.role == "developer" else message.role
    turn = {"role": role, "content": message.content}
    return turn | {"name": message.name} if message.name else turn


class _Deadline:
    """Raises :class:`_TooLong` in the thread that entered, once the time is over."""

    def __init__(self, seconds: float) -> None:
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._over = False
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        with self._lock:  # after this the timer raises nothing any more
            self._over = True
        self._timer.cancel()

    def _expire(self) -> None:
        with self._lock:
            if not self._over:
                self._over = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._thread), ctypes.py_object(_TooLong)
                )
