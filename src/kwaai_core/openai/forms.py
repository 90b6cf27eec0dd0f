"""The form of an answer: completions of text or chat, or a response."""

from collections.abc import Sequence

from kwaai_core.openai.answers import Choice, Head, completion
from kwaai_core.openai.chunks import Chunks
from kwaai_core.openai.requests import Call
from kwaai_core.openai.response_events import ResponseEvents, response
from kwaai_core.openai.responses import ResponseCall
from kwaai_core.types import Usage


def document(
    call: Call, head: Head, choices: Sequence[Choice], usage: Usage, kwaai: dict[str, object]
) -> dict[str, object]:
    """The answer to a call that does not stream."""
    if isinstance(call, ResponseCall):
        return response(call, head, choices[0], usage, kwaai)
    return completion(head, choices, usage, kwaai)


def events(call: Call, head: Head, index: int) -> Chunks | ResponseEvents:
    """What renders one choice of an answer that is streamed."""
    if isinstance(call, ResponseCall):
        return ResponseEvents(call, head)
    calling = call.request.tools is not None
    return Chunks(head, index=index, include_usage=call.include_usage, calling=calling)
