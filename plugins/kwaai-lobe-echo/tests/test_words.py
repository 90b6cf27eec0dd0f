"""What it says: the last message, word by word, up to a stop string or the limit."""

import pytest

from kwaai_core import Delta, GenerateRequest, Message, Usage
from kwaai_core.types import FinishReason
from kwaai_lobe_echo import CARD, Echo


async def answer(request: GenerateRequest) -> list[Delta]:
    async with Echo().generate(request) as stream:
        return [delta async for delta in stream]


async def test_the_last_message_counts() -> None:
    said = await answer(GenerateRequest(CARD, (Message("user", "no"), Message("user", "a  b\n"))))
    assert said == [Delta("a ", 1), Delta("b", 1), Delta("", 0, "stop", Usage(2, 2))]


@pytest.mark.parametrize(
    ("stop", "limit", "text", "finish"),
    [
        ((), 2, "one two", "length"),
        ((), 3, "one two three", "stop"),
        (("e", "w"), None, "on", "stop"),
        (("two",), None, "one ", "stop"),
        (("three",), 2, "one two", "length"),
        (("one",), 1, "", "stop"),
        (("none",), None, "one two three", "stop"),
    ],
)
async def test_stops_and_limits(
    stop: tuple[str, ...], limit: int | None, text: str, finish: FinishReason
) -> None:
    *pieces, last = await answer(
        GenerateRequest(CARD, "one two three", stop=stop, max_tokens=limit)
    )
    assert "".join(piece.text for piece in pieces) == text
    assert last == Delta("", finish=finish, usage=Usage(3, len(pieces)))


async def test_nothing_said_is_an_empty_answer() -> None:
    assert await answer(GenerateRequest(CARD, " ")) == [Delta("", 0, "stop", Usage(0, 0))]
