"""How a model writes calls of tools, as its chat template shows it, and how they are read.

A template lays out a past call as the model was trained to write one: so a call that is made up is
rendered, and what stands around its name and its arguments is the form. Calls that are written
without a marker are those of an answer that begins like one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kwaai_core import CallPiece, Message, Tool, ToolCall
from kwaai_lobe_llama.worker.template import ChatTemplate, TemplateError

_PROBES = ("kwaai_probe_a", "kwaai_probe_b")
_SAID = "§"
_SHAPE = re.compile(
    rf'(.*?)(\{{\s*"name"\s*:\s*"){_PROBES[0]}("\s*,\s*"(?:arguments|parameters)"\s*:\s*)'
    r'\{\s*"probe"\s*:\s*1\s*\}(\s*\}.*)',
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class CallForm:
    """How a call is written: ``marker``, ``frame``, the name, ``between``, the arguments,
    ``close``; and ``again`` before another one, None where an answer has one call alone.

    ``bare``: there is nothing to tell a call from text but how it begins, so the marker counts at
    the beginning alone.
    """

    marker: str
    frame: str
    between: str
    close: str
    again: str | None
    bare: bool = False

    def frames(self) -> tuple[str, ...]:
        """The frame, and how else it may be written."""
        return tuple(dict.fromkeys((self.frame, self.frame.lstrip())))


TAGGED = CallForm("<tool_call>", '\n{"name": "', '", "arguments": ', "}\n</tool_call>", "\n")
"""What is asked for where a template has tools and shows no form that is known."""


@dataclass(frozen=True, slots=True)
class Manners:
    """What a chat template does with tools: whether it shows them to the model, and calls that were
    made before; and the form of those, where it is a known one."""

    tools: bool
    calls: bool
    form: CallForm | None


def manners(template: ChatTemplate) -> Manners:
    """Find out by rendering."""
    shown = _rendered(template, [_USER], (_PROBE,), opened=True)
    said = Message("assistant", _SAID)
    text = _rendered(template, [_USER, said], (_PROBE,))
    one = _rendered(template, [_USER, _turn(1)], (_PROBE,))
    two = _rendered(template, [_USER, _turn(2)], (_PROBE,))
    form = _form(text, one, two) if text and one else None
    return Manners(_PROBES[0] in shown, _PROBES[0] in _rendered(template, [_USER, _turn(1)]), form)


_USER = Message("user", "hello")
_PROBE = Tool(
    _PROBES[0], "probe", '{"type": "object", "properties": {"probe": {"type": "integer"}}}'
)


def _turn(calls: int) -> Message:
    made = (ToolCall(f"probe000{i}", _PROBES[i], '{"probe": 1}') for i in range(calls))
    return Message("assistant", "", tool_calls=tuple(made))


def _rendered(
    template: ChatTemplate,
    turns: Sequence[Message],
    tools: Sequence[Tool] = (),
    *,
    opened: bool = False,
) -> str:
    try:
        return template.render(turns, tools, opened=opened)
    except TemplateError:
        return ""


def _form(text: str, one: str, two: str) -> CallForm | None:
    """From the same conversation with a text, with a call, and with two of them."""
    begin = _common(text, one)
    end = min(_common(text[begin:][::-1], one[begin:][::-1]), len(text) - begin - len(_SAID))
    call = one[begin : len(one) - end]
    found = _SHAPE.fullmatch(call)
    if found is None:
        return None
    opening, name, between, close = found.groups()
    if not opening.strip():
        return CallForm(name, "", between, close.rstrip(), None, bare=True)
    marker = opening.strip()
    frame = opening[opening.index(marker) + len(marker) :] + name
    both = two[begin : len(two) - end]
    second = call.replace(_PROBES[0], _PROBES[1])
    again = None
    if both.startswith(call) and both.endswith(second):
        between_calls = both[len(call) : len(both) - len(second)]
        again = close[len(close.rstrip()) :] + between_calls + opening[: opening.index(marker)]
    return CallForm(marker, frame, between, close.rstrip(), again)


def _common(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


@dataclass(slots=True)
class CallReader:
    """Takes the text of an answer apart: what is said, and the calls that follow it.

    ``marks`` are tokens without a text of their own that the form is written with. A call begins
    once the ``trigger``, where there is one, has seen it. Text that may be the beginning of a call
    is held back, and so is white space before it.
    """

    form: CallForm
    marks: Mapping[int, bytes] = field(default_factory=dict)
    trigger: Trigger | None = None
    begun: int = 0
    complete: int = 0
    _held: str = ""
    _over: bool = False
    _expected: str = ""
    _scan: _Scan | None = None

    @property
    def called(self) -> bool:
        """Whether there are calls, and all of them are complete."""
        return 0 < self.begun == self.complete

    def push(self, text: str, *, last: bool = False) -> tuple[str, list[CallPiece]]:
        """Take text; what is certain of it. ``last``: nothing follows."""
        self._held += text
        said = "" if self.begun else self._said(last=last)
        return said, self._pieces() if self.begun else []

    def _may_begin(self) -> bool:
        return self.trigger is None or self.trigger.begun is not None

    def _said(self, *, last: bool) -> str:
        """The text before a call, which then has begun."""
        if self._over:
            said, self._held = self._held, ""
            return said
        at = 0
        while (found := self._find(at)) >= 0:
            after = self._held[found + len(self.form.marker) :]
            for frame in self.form.frames():
                if after.startswith(frame) and self._may_begin():
                    said = self._held[:found].rstrip()
                    self._held, self.begun = after[len(frame) :], 1
                    return said
                if frame.startswith(after) and not last:
                    return self._keep(found)
            at = found + 1
        if last:
            said, self._held = self._held, ""
            return said
        return self._keep(self._first_doubt(at))

    def _find(self, start: int) -> int:
        if not self.form.bare:
            return self._held.find(self.form.marker, start)
        begin = len(self._held) - len(self._held.lstrip())
        return begin if start <= begin and self._held.startswith(self.form.marker, begin) else -1

    def _first_doubt(self, start: int) -> int:
        """From where on the text might be the beginning of a call."""
        if self.form.bare:
            if self.form.marker.startswith(self._held.lstrip()):
                return 0
            self._over = True
            return len(self._held)
        for size in range(min(len(self.form.marker) - 1, len(self._held) - start), 0, -1):
            if self._held.endswith(self.form.marker[:size]):
                return len(self._held) - size
        return len(self._held)

    def _keep(self, at: int) -> str:
        """Hold back what is from here on, and the white space before it."""
        if not self._over:
            at = len(self._held[:at].rstrip())
        said, self._held = self._held[:at], self._held[at:]
        return said

    def _pieces(self) -> list[CallPiece]:
        """The pieces of calls; a grammar holds all of them to the form."""
        pieces = []
        while self._held:
            if self._expected:
                size = min(len(self._expected), len(self._held))
                self._expected, self._held = self._expected[size:], self._held[size:]
                if not self._expected and self._scan is None:
                    self.begun += self.begun == self.complete
            elif self._scan is None:
                name, found, rest = self._held.partition('"')
                if not found:
                    break
                self._expected, self._held = self.form.between, found + rest
                self._scan = _Scan()
                pieces.append(CallPiece(self.begun - 1, name))
            else:
                arguments = self._scan.take(self._held)
                self._held = self._held[len(arguments) :]
                pieces.append(CallPiece(self.begun - 1, None, arguments))
                if self._scan.over:
                    self.complete, self._scan = self.begun, None
                    again = (self.form.again or "") + self.form.marker + self.form.frame
                    self._expected = self.form.close + again
        return pieces


class _Scan:
    """Finds the end of a JSON object."""

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = self._escaped = False
        self.over = False

    def take(self, text: str) -> str:
        """As much of a text as belongs to the object."""
        for at, one in enumerate(text):
            if self._quoted:
                self._quoted = self._escaped or one != '"'
                self._escaped = one == "\\" and not self._escaped
            elif one == '"':
                self._quoted = True
            elif one in "{[":
                self._depth += 1
            elif one in "}]":
                self._depth -= 1
                if not self._depth:
                    self.over = True
                    return text[: at + 1]
        return text


class Trigger:
    """Sees an answer come to a call of one of these names; see :class:`CallForm`. ``begun`` is then
    what of the frame has to follow, and what is written of the name."""

    def __init__(self, form: CallForm, names: Sequence[str]) -> None:
        self.begun: tuple[str, str] | None = None
        self._form = form
        self._names = names
        self._marker = form.marker.encode()
        self._seen = b""
        self._over = False

    def push(self, piece: bytes) -> bool:
        """Take what was written; True where a call has begun with it."""
        if self._over:
            return False
        self._seen += piece
        if self._form.bare:
            self._seen = self._seen.lstrip()
            self._over = not self._marker.startswith(self._seen[: len(self._marker)])
        while (at := self._seen.find(self._marker)) >= 0 and not self._over:
            self.begun = self._opened(self._seen[at + len(self._marker) :])
            if self.begun is not None:
                self._over = True
                return True
            self._seen = self._seen[at + 1 :]
            self._over = self._form.bare
        if not self._form.bare:
            self._seen = self._seen[-len(self._marker) :]
        return False

    def _opened(self, after: bytes) -> tuple[str, str] | None:
        """What follows a marker at once, as part of a call."""
        text = after.decode("utf-8", "replace")
        for frame in self._form.frames():
            if frame.startswith(text):
                return frame[len(text) :], ""
            name = text.removeprefix(frame)
            if text.startswith(frame) and any(f'{one}"'.startswith(name) for one in self._names):
                return "", name
        return None
