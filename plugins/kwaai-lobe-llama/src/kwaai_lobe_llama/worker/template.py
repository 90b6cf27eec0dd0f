"""The model's own chat template, in an immutable sandbox with limits on time and size.

A template is a program that came with a model file. It sees messages and a few constants, can
change nothing and reach no attribute of Python's own (CVE-2024-34359), and is stopped when it
runs too long or grows too large.
"""

from __future__ import annotations

import ctypes
import faulthandler
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from kwaai_core import Message
from kwaai_lobe_llama.worker.sandbox import MAX_CHARACTERS, Sandbox, TemplateError

__all__ = ["MAX_CHARACTERS", "MAX_SECONDS", "ChatTemplate", "TemplateError"]

MAX_SECONDS = 2.0
_LAST_SECONDS = 10.0
"""After which a step that nothing else stops ends the process."""

_MAX_REASON = 1000  # characters of what a template says when it refuses


class _TooLong(BaseException):
    """Raised inside a template that has used up its time; no template can catch it."""


def _raise_exception(message: str) -> NoReturn:
    reason = str(message)[:_MAX_REASON]
    raise TemplateError(f"the chat template refuses these messages: {reason}")


def _strftime_now(layout: str) -> str:
    return time.strftime(layout)


class ChatTemplate:
    """A compiled template. ``constants`` are what templates expect: bos_token, eos_token.

    Raises :class:`TemplateError` where the source is no template.
    """

    def __init__(self, source: str, **constants: str) -> None:
        environment = Sandbox()
        environment.globals.update(
            raise_exception=_raise_exception, strftime_now=_strftime_now, **constants
        )
        try:
            with _Deadline(MAX_SECONDS):  # constant expressions are computed here
                self._template = environment.from_string(source)
        except _TooLong:
            raise TemplateError("the model's chat template is broken: it takes too long") from None
        except Exception as error:  # noqa: BLE001  # Python's compiler has limits of its own
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
    """Raises :class:`_TooLong` in the thread that entered, once the time is over.

    One endless step of Python's own, which nothing interrupts, ends the process a little later.
    """

    def __init__(self, seconds: float) -> None:
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._over = False
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def __enter__(self) -> None:
        faulthandler.dump_traceback_later(_LAST_SECONDS, exit=True, file=2)
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        with self._lock:  # after this the timer raises nothing any more
            self._over = True
        self._timer.cancel()
        faulthandler.cancel_dump_traceback_later()

    def _expire(self) -> None:
        with self._lock:
            if not self._over:
                self._over = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._thread), ctypes.py_object(_TooLong)
                )
