"""The model's own chat template, in an immutable sandbox with limits on time and memory.

A template is a program that came with a model file. It sees messages and a few constants, can
change nothing and reach no attribute of Python's own (CVE-2024-34359), and is stopped when it
runs too long or makes too much.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import threading
import time
from collections.abc import Sequence
from sys import getsizeof
from typing import NoReturn

from kwaai_core import Message, Tool, ToolCall
from kwaai_lobe_llama.worker.sandbox import BUDGET, Sandbox, TemplateError

__all__ = ["MAX_SECONDS", "ChatTemplate", "TemplateError"]

MAX_SECONDS = 2.0
_LAST_SECONDS = 10.0
"""After which a step that nothing else stops ends the process."""

_MAX_REASON = 1000  # characters of what a template says when it refuses
_MAX_SOURCE = 1 << 16  # characters; compiling them takes 2 KB each
_COPIES = 128  # of a conversation that laying it out may make, within
_MOST = 256 << 20  # bytes
_MESSAGE = 1024  # bytes besides its text that a message has


class _TooLong(BaseException):
    """Raised inside a template that has used up its time; no template can catch it."""


def _raise_exception(message: object) -> NoReturn:
    reason = message[:_MAX_REASON] if isinstance(message, str) else type(message).__name__
    raise TemplateError(f"the chat template refuses these messages: {reason}")


def _strftime_now(layout: str) -> str:
    return time.strftime(layout[:100])


class ChatTemplate:
    """A compiled template. ``constants`` are what templates expect: bos_token, eos_token.

    Raises :class:`TemplateError` where the source is no template.
    """

    def __init__(self, source: str, **constants: str) -> None:
        if len(source) > _MAX_SOURCE:
            raise TemplateError(
                f"the model's chat template has {len(source)} characters, over {_MAX_SOURCE}"
            )
        self._sandbox = Sandbox()
        self._sandbox.globals.update(
            raise_exception=_raise_exception, strftime_now=_strftime_now, **constants
        )
        try:
            with _Deadline(MAX_SECONDS):  # what is written of constants is computed here
                self._template = self._sandbox.from_string(source)
        except _TooLong:
            raise TemplateError("the model's chat template is broken: it takes too long") from None
        except Exception as error:  # noqa: BLE001  # Python's compiler has limits of its own
            raise TemplateError(f"the model's chat template is broken: {error}") from None

    def render(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, opened: bool = True
    ) -> str:
        """The conversation as the text that the model continues, with tools that it may call, and
        with the beginning of the next turn where it is ``opened``; see :class:`TemplateError`."""
        turns = [_turn(message) for message in messages]
        shown = [_as_json(tool) for tool in tools] or None
        size = sum(map(_size, messages)) + sum(_MESSAGE + len(tool.parameters) for tool in tools)
        self._sandbox.left = min(BUDGET + _COPIES * size, _MOST)
        try:
            with _Deadline(MAX_SECONDS):
                return self._sandbox.concat(
                    self._template.generate(
                        messages=turns, add_generation_prompt=opened, tools=shown
                    )
                )
        except _TooLong:
            raise TemplateError(
                f"the model's chat template ran for over {MAX_SECONDS:g} s and was stopped"
            ) from None
        except TemplateError:
            raise
        except Exception as error:  # noqa: BLE001  # foreign code: what it raises is its fault
            reason = str(error)[:_MAX_REASON]
            raise TemplateError(f"the model's chat template failed: {reason}") from None


def _turn(message: Message) -> dict[str, object]:
    role = "system" if message.role == "developer" else message.role
    turn: dict[str, object] = {"role": role, "content": message.content}
    if message.name:
        turn["name"] = message.name
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        turn["tool_calls"] = [_call(call) for call in message.tool_calls]
    return turn


def _call(call: ToolCall) -> dict[str, object]:
    """A call with its arguments as an object, which is what templates write as JSON."""
    function = {"name": call.name, "arguments": json.loads(call.arguments)}
    return {"id": call.id, "type": "function", "function": function}


def _as_json(tool: Tool) -> dict[str, object]:
    function: dict[str, object] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function | {"parameters": json.loads(tool.parameters)}}


def _size(message: Message) -> int:
    calls = sum(_MESSAGE + len(call.arguments) for call in message.tool_calls)
    return _MESSAGE + getsizeof(message.content) + calls


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
