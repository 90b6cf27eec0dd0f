"""A short storm over real nodes; ``tox -e storm`` has twenty chats for two minutes."""

from __future__ import annotations

from pathlib import Path
from random import Random

from tests.storm.storm import Storm, Weather


async def test_chats_end_with_their_texts_whoever_dies(tmp_path: Path) -> None:
    said: list[str] = []
    weather = Weather(chats=6, seconds=10.0, least=1.0, most=2.0)
    storm = Storm(tmp_path, weather, Random(3), said.append)
    async with storm.opened():
        await storm.blow()
        left = await storm.leaked()
    assert all(chat.equal for chat in storm.chats), said
    assert any(chat.struck and chat.equal for chat in storm.chats), said
    assert left == {}
