"""The lobe passes the checks that every executor has to pass."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kwaai_core import ModelCard
from kwaai_core.span.roles import SpanExecutor
from kwaai_core.testing import FakeCatalog, FakeHost, check_executor
from kwaai_core.testing.conformance import SpanSubject, check_spans
from kwaai_core.testing.models import TINY_QWEN2
from kwaai_lobe_llama.executor import open_executor
from kwaai_lobe_llama.settings import LlamaSettings


@pytest.mark.parametrize("exact", [False, True])
async def test_it_conforms(qwen2: Path, tmp_path: Path, exact: bool) -> None:
    catalog = FakeCatalog({ModelCard("qwen2", digest="01" * 32): qwen2})
    settings = LlamaSettings(threads=1, context=512)
    host = FakeHost(tmp_path, {LlamaSettings: settings}, catalogs=[catalog])
    async with open_executor(host) as llama:
        await check_executor(llama, repeatable=exact)


async def test_it_conforms_as_one_that_runs_spans(qwen2: Path, tmp_path: Path) -> None:
    card = ModelCard("qwen2", digest="01" * 32, blocks=TINY_QWEN2.blocks)
    settings = LlamaSettings(threads=1, context=512, streams=4, load="none")

    @asynccontextmanager
    async def opened() -> AsyncIterator[SpanExecutor]:
        # one folder for all: slices are made once, and the gate passes once
        host = FakeHost(tmp_path, {LlamaSettings: settings}, catalogs=[FakeCatalog({card: qwen2})])
        async with open_executor(host) as llama:
            assert isinstance(llama, SpanExecutor)
            yield llama

    # long enough for links to be lost in mid-answer: a token takes a millisecond
    await check_spans(SpanSubject(opened, card, "Once upon a time", tokens=450), seconds=60)
