"""Answers that have to be of a form, over spans: the same as whole, whoever dies meanwhile."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import trio

from kwaai_core import Delta, GenerateRequest, RequestError, Sampling
from kwaai_core.span.hop import Place
from kwaai_core.span.roles import LOCAL

from .late import Late
from .test_forms import ADA, PERSON
from .test_spans import FIRST, REST, Routes, Swarm, gates, swarm
from .test_tools import FORCED, PARIS, check, tagged

__all__ = ["gates", "tagged"]

Given = tuple[str, list[tuple[str, str]], str | None]


async def read(deltas: trio.abc.ReceiveChannel[Delta]) -> Given:
    text, calls, finish = "", dict[int, tuple[str, str]](), None
    async for delta in deltas:
        text, finish = text + delta.text, delta.finish
        for piece in delta.calls:
            name, arguments = calls.get(piece.index, (piece.name or "", ""))
            calls[piece.index] = (name, arguments + piece.arguments)
    return text, list(calls.values()), finish


async def compared(nodes: Swarm, request: GenerateRequest, routes: Routes) -> Given:
    """An answer over a chain, which is that of the whole model."""
    async with nodes.head.generate(request, routes) as deltas:
        over_spans = await read(deltas)
    async with nodes.nodes[0].generate(replace(request, exact=True)) as deltas:
        assert await read(deltas) == over_spans
    return over_spans


async def test_json_by_a_schema_is_that_of_the_whole(qwen2: Path, gates: Path) -> None:
    async with swarm(qwen2, gates, [FIRST], [REST]) as nodes:
        way = [Place(LOCAL, FIRST), Place(nodes.links[1], REST)]
        for seed in range(3):
            request = GenerateRequest(
                await nodes.card(), ADA, Sampling(1.0, seed=seed), schema=json.dumps(PERSON)
            )
            text, _, finish = await compared(nodes, request, Routes([way]))
            assert finish == "stop"
            jsonschema.validate(json.loads(text), PERSON)


async def test_calls_are_those_of_the_whole_after_a_loss_too(tagged: Path, gates: Path) -> None:
    async with swarm(tagged, gates, [FIRST], [REST], [REST]) as nodes:
        victim = nodes.worker(1)
        struck = Late(lambda: os.kill(victim, signal.SIGKILL))
        link = await struck.link(nodes, nodes.hosts[1])
        ways = [[Place(LOCAL, FIRST), Place(link, REST)] for link in (link, nodes.links[2])]
        routes = Routes(ways)
        tools = replace(FORCED, parallel=False)
        request = GenerateRequest(await nodes.card(), PARIS, Sampling(1.0, seed=5), tools=tools)
        text, calls, finish = await compared(nodes, request, routes)
        assert (text, len(calls), finish) == ("", 1, "tool_calls")
        check(calls)
        assert [t.place for troubles in routes.asked for t in troubles] == [ways[0][1]]


async def test_a_refused_schema_leaves_the_head_serving(qwen2: Path, gates: Path) -> None:
    async with swarm(qwen2, gates, [FIRST, REST]) as nodes:
        way = [Place(LOCAL, FIRST), Place(LOCAL, REST)]
        request = GenerateRequest(await nodes.card(), ADA, Sampling(0), schema='{"not": {}}')
        with pytest.raises(RequestError) as caught:
            async with nodes.head.generate(request, Routes([way])):
                pass
        assert caught.value.param == "response_format.json_schema.schema.not"
        await compared(nodes, replace(request, schema='{"type": "boolean"}'), Routes([way]))
