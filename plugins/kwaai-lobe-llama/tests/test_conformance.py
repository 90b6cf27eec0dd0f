"""The lobe passes the checks that every executor has to pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from kwaai_core import ModelCard
from kwaai_core.testing import FakeCatalog, FakeHost, check_executor
from kwaai_lobe_llama.executor import open_executor
from kwaai_lobe_llama.settings import LlamaSettings


@pytest.mark.parametrize("exact", [False, True])
async def test_it_conforms(qwen2: Path, tmp_path: Path, exact: bool) -> None:
    catalog = FakeCatalog({ModelCard("qwen2", digest="01" * 32): qwen2})
    settings = LlamaSettings(threads=1, context=512)
    host = FakeHost(tmp_path, {LlamaSettings: settings}, catalogs=[catalog])
    async with open_executor(host) as llama:
        await check_executor(llama, repeatable=exact)
