"""A response as one document, and as the events of a stream, which repeat it at both ends."""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kwaai_core.errors import KwaaiError
from kwaai_core.openai.answers import Choice, Head
from kwaai_core.openai.calls import deltas, whole
from kwaai_core.openai.logprobs import Logprobs
from kwaai_core.openai.responses import ResponseCall
from kwaai_core.types import CallPiece, FinishReason, TokenLogprob, Usage

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_DELTA = "response.output_text.delta"


def response(
    call: ResponseCall, head: Head, choice: Choice, usage: Usage, kwaai: dict[str, object]
) -> dict[str, object]:
    """The answer to a call that does not stream."""
    calls = whole(choice.calls)
    spoken = replace(choice, finish="stop")
    output = [_item(f"msg_{uuid.uuid4().hex}", spoken)] if choice.text or not calls else []
    output += [_called(_call_of(entry), "stop") for entry in calls]
    output[-1]["status"] = _status(choice.finish)  # no other can be cut
    return _ended(call, head, choice.finish, output, usage) | {"kwaai": kwaai}


def _envelope(call: ResponseCall, head: Head, status: str) -> dict[str, object]:
    """What a response has from the beginning, with nothing in it yet."""
    request = call.request
    return {
        "id": head.id,
        "object": "response",
        "created_at": head.created,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": request.max_tokens,
        "metadata": {},
        "model": head.model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": request.sampling.temperature,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": request.logprobs or 0,
        "top_p": request.sampling.top_p,
        "truncation": "disabled",
        "usage": None,
        **call.repeated,
    }


def _ended(
    call: ResponseCall, head: Head, finish: FinishReason, output: Sequence[object], usage: Usage
) -> dict[str, object]:
    ended = _envelope(call, head, _status(finish)) | {"output": output, "usage": _usage(usage)}
    if finish == "length":
        return ended | {"incomplete_details": {"reason": "max_output_tokens"}}
    return ended | {"completed_at": int(time.time())}


def _status(finish: FinishReason) -> str:
    return "incomplete" if finish == "length" else "completed"


def _usage(usage: Usage) -> dict[str, object]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _item(name: str, choice: Choice) -> dict[str, object]:
    part = _part(choice.text, choice.logprobs or ())
    return _message(name, _status(choice.finish), [part])


def _message(name: str, status: str, content: Sequence[object]) -> dict[str, object]:
    return {
        "id": name,
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def _call_of(entry: Mapping[str, Any]) -> dict[str, object]:
    """An item of a call, from how a chat writes it."""
    return {
        "id": f"fc_{uuid.uuid4().hex}",
        "type": "function_call",
        "call_id": entry["id"],
        "name": entry["function"]["name"],
        "arguments": entry["function"]["arguments"],
        "status": "in_progress",
    }


def _called(item: dict[str, object], finish: FinishReason) -> dict[str, object]:
    return item | {"status": _status(finish)}


def _part(text: str, logprobs: Sequence[TokenLogprob]) -> dict[str, object]:
    return {
        "type": "output_text",
        "text": text,
        "annotations": [],
        "logprobs": _told(logprobs),
    }


def _told(logprobs: Sequence[TokenLogprob]) -> object:
    return Logprobs("chat").of(logprobs)["content"]


class ResponseEvents:
    """Renders a streamed response, in the order in which OpenAI's clients build it up."""

    def __init__(self, call: ResponseCall, head: Head) -> None:
        self._call = call
        self._head = head
        self._number = 0
        self._texts = list[str]()
        self._logprobs = list[TokenLogprob]()
        self._output = list[dict[str, object]]()
        self._spoken = False
        self._calling: dict[str, object] | None = None
        self._name = f"msg_{uuid.uuid4().hex}"
        self._place = {"item_id": self._name, "output_index": 0, "content_index": 0}
        delta = _encode({"type": _DELTA} | self._place | {"logprobs": []})[:-1]
        self._before = f'event: {_DELTA}\ndata: {delta},"sequence_number":'

    def opening(self) -> bytes:
        """What precedes the first text."""
        begun = {"response": _envelope(self._call, self._head, "in_progress")}
        events = self._event("response.created", begun) + self._event("response.in_progress", begun)
        # with tools it may be of calls alone
        return events if self._call.request.tools is not None else events + self._speak()

    def _speak(self) -> bytes:
        """The message begins, which comes before all calls."""
        if self._spoken:
            return b""
        self._spoken = True
        item = {"output_index": 0, "item": _message(self._name, "in_progress", [])}
        return self._event("response.output_item.added", item) + self._event(
            "response.content_part.added", self._place | {"part": _part("", ())}
        )

    def text(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """A piece of text; whatever cannot be UTF-8 in it becomes a question mark."""
        begun = self._speak()
        self._texts.append(text)
        self._logprobs += logprobs
        if logprobs:
            told = {"delta": text, "logprobs": _told(logprobs)}
            return begun + self._event(_DELTA, self._place | told)
        number, self._number = self._number, self._number + 1
        data = f'{self._before}{number},"delta":{_encode(text)}}}\n\n'
        return begun + data.encode("utf-8", "replace")

    def calls(self, pieces: Sequence[CallPiece]) -> bytes:
        """Pieces of calls of tools."""
        return b"".join(map(self._piece, deltas(pieces)))

    def _piece(self, entry: Mapping[str, Any]) -> bytes:
        if "id" in entry:  # the first of a call, with no arguments yet
            before = self._close("stop")
            self._calling = _call_of(entry)
            item = {"output_index": len(self._output), "item": self._calling}
            return before + self._event("response.output_item.added", item)
        if self._calling is None:
            return b""
        said = entry["function"]["arguments"]
        self._calling = self._calling | {"arguments": f"{self._calling['arguments']}{said}"}
        return self._event("response.function_call_arguments.delta", self._at() | {"delta": said})

    def _at(self) -> dict[str, object]:
        name = self._calling["id"] if self._calling is not None else self._name
        return {"item_id": name, "output_index": len(self._output)}

    def _close(self, finish: FinishReason) -> bytes:
        """What ends the call, or the text, that is being written, if any is."""
        if self._calling is not None:
            item = _called(self._calling, finish)
            done = {"name": item["name"], "arguments": item["arguments"]}
            events = self._event("response.function_call_arguments.done", self._at() | done)
            added = {"output_index": len(self._output), "item": item}
            self._output.append(item)
            self._calling = None
            return events + self._event("response.output_item.done", added)
        return self._end_text(finish) if self._spoken and not self._output else b""

    def finished(self, finish: FinishReason) -> bytes:
        """What ends the last item; there is a message where there is nothing else."""
        begun = b"" if self._output or self._calling is not None else self._speak()
        return begun + self._close(finish)

    def _end_text(self, finish: FinishReason) -> bytes:
        choice = Choice("".join(self._texts), finish, self._logprobs)
        part = _part(choice.text, self._logprobs)
        done = {"text": part["text"], "logprobs": part["logprobs"]}
        self._output.append(_item(self._name, choice))
        item = {"output_index": 0, "item": self._output[0]}
        return (
            self._event("response.output_text.done", self._place | done)
            + self._event("response.content_part.done", self._place | {"part": part})
            + self._event("response.output_item.done", item)
        )

    def closing(self, finish: FinishReason, usage: Usage, facts: dict[str, object]) -> bytes:
        """All that follows the last text; nothing follows it."""
        ends = self.finished(finish)
        ended = _ended(self._call, self._head, finish, self._output, usage) | {"kwaai": facts}
        return ends + self._event(f"response.{_status(finish)}", {"response": ended})

    def failed(self, error: KwaaiError) -> bytes:
        """What ends a response that cannot be finished; nothing follows it."""
        number = self._number
        self._close("length")  # for what there is of the output: its events are not sent
        self._number = number
        told = {
            "code": error.code or "server_error",
            "message": error.message,
            "param": error.param,
        }
        ended = _envelope(self._call, self._head, "failed")
        return self._event(
            "response.failed", {"response": ended | {"output": self._output, "error": told}}
        )

    def _event(self, kind: str, more: Mapping[str, object]) -> bytes:
        number, self._number = self._number, self._number + 1
        data = _encode({"type": kind, "sequence_number": number, **more})
        return f"event: {kind}\ndata: {data}\n\n".encode("utf-8", "replace")
