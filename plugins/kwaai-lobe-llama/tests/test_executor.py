"""The executor: models of the catalogs, in workers that are started, shared, and make room."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from kwaai_core import (
    Busy,
    ContextLengthExceeded,
    GenerateRequest,
    ModelCard,
    ModelFileError,
    ModelLoading,
    ModelNotFound,
    RequestError,
    Sampling,
    Span,
    WorkerLost,
)
from kwaai_core.gguf import read_gguf
from kwaai_lobe_llama.executor import LlamaExecutor, open_executor
from kwaai_lobe_llama.planning import make_plan
from kwaai_lobe_llama.settings import LlamaSettings

from .conftest import replace_worker

GREEDY = Sampling(temperature=0)
SMALL = LlamaSettings(threads=1, context=512, streams=2, queue=1, load="none")


@dataclass
class Files:
    """A catalog of files, by id."""

    paths: dict[str, Path]
    fetched: list[str] = field(default_factory=list)

    async def cards(self) -> Sequence[ModelCard]:
        return [ModelCard(id_, digest=str(path)) for id_, path in self.paths.items()]

    async def fetch(
        self, card: ModelCard, *, span: Span | None = None, into: Path | None = None
    ) -> Path:
        self.fetched.append(card.id)
        return self.paths[card.id]


class Broken(Files):
    """A catalog that is no lobe of ours: its own errors escape it."""

    async def fetch(
        self, card: ModelCard, *, span: Span | None = None, into: Path | None = None
    ) -> Path:
        raise ExceptionGroup("of a nursery", [LookupError("no mirror")])


class Unlisted(Files):
    async def cards(self) -> Sequence[ModelCard]:
        raise LookupError("no index")


@dataclass
class Host:
    """As much of a host as the executor uses."""

    catalogs: Sequence[Files]
    state: Path
    configured: LlamaSettings

    def settings(self, kind: type[Any]) -> Any:
        assert isinstance(self.configured, kind)
        return self.configured


@pytest.fixture
def clock() -> MockClock:
    """The clock of the tests that ask for it, which can be put forward."""
    return MockClock(rate=1.0)


@asynccontextmanager
async def executor(
    state: Path, paths: dict[str, Path], settings: LlamaSettings = SMALL
) -> AsyncIterator[LlamaExecutor]:
    async with open_executor(Host([Files(paths)], state, settings)) as opened:  # type: ignore[arg-type]
        assert isinstance(opened, LlamaExecutor)
        yield opened


async def ask(
    executor: LlamaExecutor, id_: str, *, prompt: str = "abc", tokens: int = 6, exact: bool = False
) -> str:
    card = next(card for card in await executor.models() if card.id == id_)
    request = GenerateRequest(card, prompt, GREEDY, (), tokens, exact or None)
    async with executor.generate(request) as deltas:
        return "".join([delta.text async for delta in deltas])


def pids(executor: LlamaExecutor) -> list[int]:
    return [worker["pid"] for worker in executor.describe()["workers"]]


async def test_a_model_is_loaded_once_for_all_who_ask_at_once(tmp_path: Path, qwen2: Path) -> None:
    settings = replace(SMALL, queue=9)
    async with executor(tmp_path, {"q": qwen2}, settings) as llama:
        assert not pids(llama)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask, llama, "q")
        (pid,) = pids(llama)
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("exact", [True, False])
async def test_an_answer_of_a_whole_model_tells_how_it_came_about(
    tmp_path: Path, qwen2: Path, exact: bool
) -> None:
    async with executor(tmp_path, {"q": qwen2}) as llama:
        (card,) = await llama.models()
        for _ in range(2):
            request = GenerateRequest(card, "abcdefg", GREEDY, (), 5, exact)
            async with llama.generate(request) as deltas:
                *_, last = [delta async for delta in deltas]
            assert last.report is not None and last.usage is not None
            (took,) = last.report.timings
            assert (took.hop.peer, took.hop.span) == ("local", Span(0, card.blocks))
            assert last.report.exact == last.report.same_text_guaranteed == exact
            assert took.rows == last.usage.prompt_tokens - last.usage.cached_tokens + 4
            assert took.compute_ms > 0 and took.queue_ms >= 0


async def test_the_first_model_is_loaded_before_anybody_asks(tmp_path: Path, qwen2: Path) -> None:
    async with executor(tmp_path, {"q": qwen2}, replace(SMALL, load="")) as llama:
        with trio.fail_after(20):
            while not llama.ready():
                await trio.lowlevel.checkpoint()
        assert len(pids(llama)) == 1


async def test_a_model_to_load_that_is_not_there_is_answered_with_those_that_are(
    tmp_path: Path, qwen2: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with executor(tmp_path, {"b": qwen2, "a": qwen2}, replace(SMALL, load="no")) as llama:
        with trio.fail_after(5):
            while not llama.ready():
                await trio.lowlevel.checkpoint()
    assert "load = 'no': there is no such model; available: a, b" in caplog.text


async def test_a_killed_worker_fails_its_answers_and_the_next_request_has_a_new_one(
    tmp_path: Path, smollm2: Path
) -> None:
    async with executor(tmp_path, {"s": smollm2}) as llama:
        text = await ask(llama, "s")
        (first,) = pids(llama)
        card = (await llama.models())[0]
        with pytest.raises(WorkerLost):
            async with llama.generate(GenerateRequest(card, "Once", GREEDY)) as deltas:
                await deltas.receive()
                os.kill(first, signal.SIGKILL)
                while True:
                    await deltas.receive()
        assert await ask(llama, "s") == text
        assert pids(llama) != [first]


async def test_a_worker_that_loads_slowly_and_dies_at_once_is_not_started_again(
    tmp_path: Path, qwen2: Path, monkeypatch: pytest.MonkeyPatch, clock: MockClock
) -> None:
    starts, loaded = tmp_path / "starts", tmp_path / "loaded"
    os.mkfifo(loaded)
    replace_worker(
        tmp_path,
        monkeypatch,
        f"open({str(starts)!r}, 'a').write('started ')\n"
        f"open({str(loaded)!r}).read()\n"
        'connection.sendall(frame(Kind.READY, 0, b\'{"fingerprint": ""}\'))\n',
    )

    async def load() -> None:
        with pytest.raises(WorkerLost):
            await ask(llama, "q")

    async with executor(tmp_path, {"q": qwen2}) as llama, trio.open_nursery() as nursery:
        nursery.start_soon(load)
        # returns once the process has opened it, too
        pipe = await trio.to_thread.run_sync(loaded.open, "w")
        (place,) = llama._pool._places
        clock.jump(3600)  # a large model on a slow disk
        pipe.close()
        with trio.fail_after(10):
            await place.gone.wait()
    assert starts.read_text() == "started "


async def test_a_queue_that_is_full_refuses(tmp_path: Path, smollm2: Path) -> None:
    async with executor(tmp_path, {"s": smollm2}) as llama:
        await ask(llama, "s")
        card = (await llama.models())[0]
        request = GenerateRequest(card, "Once upon a time", GREEDY)
        async with llama.generate(request), llama.generate(request), llama.generate(request):
            with pytest.raises(Busy) as caught:
                async with llama.generate(request):
                    pass
            assert caught.value.retry_after
        assert await ask(llama, "s")


async def test_an_idle_model_makes_room_for_another_and_a_busy_one_does_not(
    tmp_path: Path, smollm2: Path, qwen2: Path
) -> None:
    needed = make_plan(
        read_gguf(smollm2), "", SMALL, exact=False, memory=1 << 40, gate=tmp_path
    ).memory
    settings = replace(SMALL, memory=needed + (8 << 20))
    async with executor(tmp_path, {"s": smollm2, "q": qwen2}, settings) as llama:
        await ask(llama, "s")
        card = (await llama.models())[0]
        async with llama.generate(GenerateRequest(card, "Once", GREEDY)) as deltas:
            await deltas.receive()
            with pytest.raises(ModelLoading, match="does not fit beside"):
                await ask(llama, "q")
        await ask(llama, "q")
        assert [w["model"] for w in llama.describe()["workers"]] == ["q"]


def memory_for(path: Path, models: float) -> LlamaSettings:
    """Settings with memory for so many models of this size."""
    needed = make_plan(read_gguf(path), "", SMALL, exact=False, memory=1 << 40, gate=path).memory
    return replace(SMALL, memory=int(needed * models))


def copies(path: Path, folder: Path, names: str) -> dict[str, Path]:
    """Models of one size."""
    for name in names:
        (folder / name).write_bytes(path.read_bytes())
    return {name: folder / name for name in names}


async def test_two_models_that_ask_for_the_same_memory_do_not_both_get_it(
    tmp_path: Path, qwen2: Path
) -> None:
    async def try_to(id_: str) -> None:
        with suppress(ModelLoading):
            await ask(llama, id_)

    async with executor(tmp_path, copies(qwen2, tmp_path, "abc"), memory_for(qwen2, 1.5)) as llama:
        await ask(llama, "a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(try_to, "b")
            nursery.start_soon(try_to, "c")
        assert len(pids(llama)) == 1


async def test_a_model_that_is_asked_about_a_text_stays_until_it_has_answered(
    tmp_path: Path, qwen2: Path
) -> None:
    async with executor(tmp_path, copies(qwen2, tmp_path, "ab"), memory_for(qwen2, 1.5)) as llama:
        await ask(llama, "a")
        card = (await llama.models())[0]
        answers = []

        async def count() -> None:
            answers.append(await llama.tokenize(card, "x " * 1_000_000, special=False))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(ModelLoading, match="does not fit beside"):
                await ask(llama, "b")
        assert len(answers[0].ids) > 1_000_000
        await ask(llama, "b")


async def test_no_model_leaves_where_that_would_not_make_enough_room(
    tmp_path: Path, qwen2: Path, smollm2: Path
) -> None:
    paths = copies(qwen2, tmp_path, "ab") | {"large": smollm2}
    async with executor(tmp_path, paths, memory_for(smollm2, 1.1)) as llama:
        await ask(llama, "a")
        await ask(llama, "b")
        before = pids(llama)
        card = (await llama.models())[1]
        async with llama.generate(GenerateRequest(card, "Once", GREEDY)):
            with pytest.raises(ModelLoading, match="does not fit beside"):
                await ask(llama, "large")
        assert pids(llama) == before


async def test_who_asks_for_a_model_that_is_leaving_does_not_get_its_last_process(
    tmp_path: Path, qwen2: Path
) -> None:
    async with executor(tmp_path, copies(qwen2, tmp_path, "ab"), memory_for(qwen2, 1.5)) as llama:
        await ask(llama, "a")
        (place,) = llama._pool._places
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, llama, "b")
            while not place.scope.cancel_called:
                await trio.lowlevel.checkpoint()
            with suppress(ModelLoading):
                await ask(llama, "a")
        assert len(pids(llama)) == 1


async def test_exact_has_a_worker_of_its_own_beside_a_fast_one(tmp_path: Path, qwen2: Path) -> None:
    async with executor(tmp_path, {"q": qwen2}) as llama:
        await ask(llama, "q")
        await ask(llama, "q", exact=True)
        assert [w["exact"] for w in llama.describe()["workers"]] == [False, True]
        await ask(llama, "q", exact=True)
        assert len(pids(llama)) == 2


async def test_who_waits_for_an_exact_worker_only_by_chance_does_without_it(
    tmp_path: Path, qwen2: Path
) -> None:
    async def fail_exactly() -> None:
        with pytest.raises(ModelFileError, match="exactness needs two"):
            await ask(llama, "q", exact=True)

    async with executor(tmp_path, {"q": qwen2}, replace(SMALL, streams=1, queue=9)) as llama:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_exactly)
            while not llama._pool._places:
                await trio.lowlevel.checkpoint()
            async with trio.open_nursery() as others:
                for _ in range(2):
                    others.start_soon(ask, llama, "q")
        (worker,) = llama.describe()["workers"]
        assert not worker["exact"]


async def test_exact_without_room_for_a_second_worker_names_the_setting(
    tmp_path: Path, smollm2: Path
) -> None:
    needed = make_plan(
        read_gguf(smollm2), "", SMALL, exact=False, memory=1 << 40, gate=tmp_path
    ).memory
    async with executor(tmp_path, {"s": smollm2}, replace(SMALL, memory=needed * 3 // 2)) as llama:
        await ask(llama, "s")
        with pytest.raises(RequestError, match="set .llama. exact = true") as caught:
            await ask(llama, "s", exact=True)
        assert caught.value.param == "kwaai.exact"
        assert await ask(llama, "s")


async def test_an_exact_worker_serves_everybody(tmp_path: Path, qwen2: Path) -> None:
    async with executor(tmp_path, {"q": qwen2}, replace(SMALL, exact=True)) as llama:
        await ask(llama, "q")
        await ask(llama, "q", exact=True)
        assert len(pids(llama)) == 1


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"qwen2", b"qwenX", "architecture"),
        (b"GGUF", b"GGML", "does not begin with GGUF"),
        (b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight", "ffn_up"),
    ],
)
async def test_a_bad_file_is_refused_and_costs_nobody_else(
    tmp_path: Path, qwen2: Path, old: bytes, new: bytes, words: str
) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(qwen2.read_bytes().replace(old, new))
    async with executor(tmp_path, {"bad": bad, "q": qwen2}) as llama:
        with pytest.raises(ModelFileError, match=words):
            await ask(llama, "bad")
        assert await ask(llama, "q")
        with pytest.raises(ModelFileError, match=words):
            await ask(llama, "bad")


async def test_a_model_that_does_not_fit_is_refused_with_the_setting(
    tmp_path: Path, qwen2: Path
) -> None:
    async with executor(tmp_path, {"q": qwen2}, replace(SMALL, memory=1 << 20)) as llama:
        with pytest.raises(ModelFileError, match=r"set \[llama\] memory"):
            await ask(llama, "q")


def test_a_context_beyond_the_memory_is_refused_with_what_it_needs(qwen2: Path) -> None:
    settings = replace(SMALL, context=10_000_000)
    file, memory = read_gguf(qwen2), 1 << 28
    with pytest.raises(ModelFileError, match="a context of 10000000 tokens") as caught:
        make_plan(file, "", settings, exact=False, memory=memory, gate=qwen2)
    needed = re.search(r"at least (\d+) MiB .* there are 256 MiB", str(caught.value))
    assert needed is not None
    enough = int(needed[1]) << 20
    assert make_plan(file, "", settings, exact=False, memory=enough, gate=qwen2).plan.streams == 1
    with pytest.raises(ModelFileError):
        make_plan(file, "", settings, exact=False, memory=enough - (1 << 20), gate=qwen2)


@pytest.mark.parametrize("exact", [False, True])
async def test_a_context_is_what_the_user_set_and_not_what_llama_cpp_makes_of_it(
    tmp_path: Path, qwen2: Path, exact: bool
) -> None:
    async with executor(tmp_path, {"q": qwen2}, replace(SMALL, context=10)) as llama:
        with pytest.raises(ContextLengthExceeded) as caught:
            await ask(llama, "q", prompt="x" * 31, exact=exact)
        assert (caught.value.prompt_tokens, caught.value.context_tokens) == (31, 10)
        assert await ask(llama, "q", prompt="x" * 9, exact=exact)


async def test_a_card_that_no_catalog_has_is_not_found(tmp_path: Path, qwen2: Path) -> None:
    async with executor(tmp_path, {"q": qwen2}) as llama:
        with pytest.raises(ModelNotFound):
            async with llama.generate(GenerateRequest(ModelCard("other", "d"), "x")):
                pass


async def test_a_crash_of_a_catalog_costs_its_own_models_only(tmp_path: Path, qwen2: Path) -> None:
    catalogs = [Unlisted({"lost": qwen2}), Broken({"broken": tmp_path}), Files({"q": qwen2})]
    async with open_executor(Host(catalogs, tmp_path, SMALL)) as llama:  # type: ignore[arg-type]
        assert isinstance(llama, LlamaExecutor)
        assert [card.id for card in await llama.models()] == ["broken", "q"]
        with pytest.raises(ModelLoading, match="of broken failed .* no mirror"):
            await ask(llama, "broken")
        assert await ask(llama, "q")


async def test_a_caller_that_leaves_while_a_model_loads_disturbs_nobody(
    tmp_path: Path, qwen2: Path
) -> None:
    async with executor(tmp_path, {"q": qwen2}) as llama:
        with trio.move_on_after(0.05):
            await ask(llama, "q")
        assert await ask(llama, "q")
        assert len(pids(llama)) == 1


async def test_a_worker_tells_its_engine_fingerprint(tmp_path: Path, qwen2: Path) -> None:
    async with executor(tmp_path, {"q": qwen2}) as llama:
        await ask(llama, "q")
        await ask(llama, "q", exact=True)
        fast, exact = llama.describe()["workers"]
        assert len(fast["fingerprint"]) == 16 and fast["fingerprint"] != exact["fingerprint"]
        assert "kv bf16/f16" in exact["engine"]
