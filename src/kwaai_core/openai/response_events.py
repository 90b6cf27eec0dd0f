"""A response as one document, and as the events of a stream, which repeat it at both ends."""

import json
import time
import uuid
from collections.abc import Mapping, Sequence

from kwaai_core.errors import KwaaiError
from kwaai_core.openai.answers import Choice, Head
from kwaai_core.openai.logprobs import Logprobs
from kwaai_core.openai.responses import ResponseCall
from kwaai_core.types import FinishReason, TokenLogprob, Usage

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_DELTA = "response.output_text.delta"


def response(
    call: ResponseCall, head: Head, choice: Choice, usage: Usage, kwaai: dict[str, object]
) -> dict[str, object]:
    """The answer to a call that does not stream."""
    item = _item(f"msg_{uuid.uuid4().hex}", choice)
    return _ended(call, head, choice.finish, item, usage) | {"kwaai": kwaai}


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
        "instructions": call.instructions,
        "max_output_tokens": request.max_tokens,
        "metadata": dict(call.metadata),
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
    }


def _ended(
    call: ResponseCall, head: Head, finish: FinishReason, item: dict[str, object], usage: Usage
) -> dict[str, object]:
    ended = _envelope(call, head, _status(finish)) | {"output": [item], "usage": _usage(usage)}
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
        self._name = f"msg_{uuid.uuid4().hex}"
        self._place = {"item_id": self._name, "output_index": 0, "content_index": 0}
        delta = _encode({"type": _DELTA} | self._place | {"logprobs": []})[:-1]
        self._before = f'event: {_DELTA}\ndata: {delta},"sequence_number":'

    def opening(self) -> bytes:
        """What precedes the first text."""
        begun = {"response": _envelope(self._call, self._head, "in_progress")}
        item = {"output_index": 0, "item": _message(self._name, "in_progress", [])}
        return (
            self._event("response.created", begun)
            + self._event("response.in_progress", begun)
            + self._event("response.output_item.added", item)
            + self._event("response.content_part.added", self._place | {"part": _part("", ())})
        )

    def text(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """A piece of text; whatever cannot be UTF-8 in it becomes a question mark."""
        self._texts.append(text)
        self._logprobs += logprobs
        if logprobs:
            told = {"delta": text, "logprobs": _told(logprobs)}
            return self._event(_DELTA, self._place | told)
        number, self._number = self._number, self._number + 1
        data = f'{self._before}{number},"delta":{_encode(text)}}}\n\n'
        return data.encode("utf-8", "replace")

    def finished(self, finish: FinishReason) -> bytes:
        """What ends the text, and the item that it is in."""
        choice = Choice("".join(self._texts), finish, self._logprobs)
        part = _part(choice.text, self._logprobs)
        done = {"text": part["text"], "logprobs": part["logprobs"]}
        item = {"output_index": 0, "item": _item(self._name, choice)}
        return (
            self._event("response.output_text.done", self._place | done)
            + self._event("response.content_part.done", self._place | {"part": part})
            + self._event("response.output_item.done", item)
        )

    def closing(self, finish: FinishReason, usage: Usage, facts: dict[str, object]) -> bytes:
        """All that follows the last text; nothing follows it."""
        ends = self.finished(finish)
        item = _item(self._name, Choice("".join(self._texts), finish, self._logprobs))
        whole = _ended(self._call, self._head, finish, item, usage) | {"kwaai": facts}
        return ends + self._event(f"response.{_status(finish)}", {"response": whole})

    def failed(self, error: KwaaiError) -> bytes:
        """What ends a response that cannot be finished; nothing follows it."""
        item = _message(self._name, "incomplete", [_part("".join(self._texts), self._logprobs)])
        told = {
            "code": error.code or "server_error",
            "message": error.message,
            "param": error.param,
        }
        whole = _envelope(self._call, self._head, "failed") | {"output": [item], "error": told}
        return self._event("response.failed", {"response": whole})

    def _event(self, kind: str, more: Mapping[str, object]) -> bytes:
        number, self._number = self._number, self._number + 1
        data = _encode({"type": kind, "sequence_number": number, **more})
        return f"event: {kind}\ndata: {data}\n\n".encode("utf-8", "replace")
