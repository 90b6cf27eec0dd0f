"""An exact worker: the same logits, to the bit, whoever else is served.

Each answer is compared by its text and by a digest of the logits of all its tokens.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from kwaai_core import Sampling
from kwaai_core.testing.models import TINY_QWEN2, Quantisation, write_random_model
from kwaai_lobe_llama.jobs import Job
from kwaai_lobe_llama.plan import Plan
from kwaai_lobe_llama.process import Worker
from kwaai_lobe_llama.worker.engine import Engine
from kwaai_lobe_llama.worker.exact import NotExact, check, pass_gate
from kwaai_lobe_llama.worker.fingerprint import describe

from .conftest import OpenWorker, exact_plan

LENGTHS = (40, 300, 700)
WORDS = (" river", " house", " water", " light")
MODELS = ["smollm2", "gemma3", "qwen2"]
Answer = tuple[str, bytes]


class Asker:
    """Asks a worker for greedy answers to prompts of known lengths in tokens."""

    def __init__(self, worker: Worker, tokeniser: Engine) -> None:
        self._worker = worker
        self._tokeniser = tokeniser
        self.cached = 0

    def prompt(self, length: int, seed: int) -> str:
        """A text of exactly so many tokens."""
        draw = random.Random(seed)
        text = ""
        while (size := len(self._tokeniser.tokenise(text))) < length:
            text += draw.choice("abcdefghij" if size > length - 9 else WORDS)
        assert len(self._tokeniser.tokenise(text)) == length
        return text

    async def ask(self, prompt: str, tokens: int = 20) -> Answer:
        job = Job(prompt, Sampling(temperature=0), max_tokens=tokens, digest=True)
        text = ""
        async with self._worker.generate(job) as (answer, request):
            async for delta in answer:
                text += delta.text
            assert delta.usage is not None
            self.cached = delta.usage.cached_tokens
        assert len(request.digest) == 32
        return text, request.digest


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> int:
    assert isinstance(request.param, int)
    return request.param


@pytest.fixture(scope="session")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gate")


@asynccontextmanager
async def asking(open_worker: OpenWorker, plan: Plan) -> AsyncIterator[Asker]:
    tokeniser = Engine(replace(plan, streams=1, context=256, exact=False))
    try:
        async with open_worker(plan) as worker:
            yield Asker(worker, tokeniser)
    finally:
        tokeniser.close()


@pytest.mark.parametrize("model", MODELS, indirect=True)
async def test_logits_are_the_same_to_the_bit(
    model: Path, threads: int, gate: Path, open_worker: OpenWorker
) -> None:
    plan = exact_plan(model, threads, gate)
    async with asking(open_worker, plan) as asker:
        prompts = [asker.prompt(length, seed=length) for length in LENGTHS]
        alone = [await asker.ask(prompt) for prompt in prompts]
        assert len({digest for _, digest in alone}) == len(LENGTHS)

        again = [await asker.ask(prompt) for prompt in prompts]
        assert again == alone

        assert await among_others(asker, prompts) == alone

        second = [
            prompt + text + " Go on." for prompt, (text, _) in zip(prompts, alone, strict=True)
        ]
        turns = [await asker.ask(prompt) for prompt in second]
        # asked once more, now with the chunks of the second turn itself in the cache
        assert await asker.ask(second[-1]) == turns[-1] and asker.cached >= 640
    async with asking(open_worker, plan) as fresh:
        assert [await fresh.ask(prompt) for prompt in prompts] == alone
        # in company, and so also in other streams, the second turns are what they are alone
        assert await among_others(fresh, second) == turns


async def among_others(asker: Asker, prompts: list[str]) -> list[Answer]:
    """The answers to prompts while others of other lengths come and go."""
    answers: dict[str, Answer] = {}

    async def keep(prompt: str) -> None:
        answers[prompt] = await asker.ask(prompt)

    async def come_and_go(seed: int) -> None:
        lengths = random.Random(seed)
        while len(answers) < len(prompts):
            await asker.ask(asker.prompt(lengths.randrange(5, 120), seed), lengths.randrange(1, 9))

    async with trio.open_nursery() as nursery:
        for seed in range(5):
            nursery.start_soon(come_and_go, seed)
        for prompt in prompts:
            nursery.start_soon(keep, prompt)
    return [answers[prompt] for prompt in prompts]


@pytest.mark.parametrize("model", ["smollm2", "gemma3"], indirect=True)
def test_the_gate_catches_a_unified_cache(model: Path, tmp_path: Path) -> None:
    engine = Engine(replace(exact_plan(model, 2, tmp_path), unified=True))
    differences = check(engine)
    engine.close()
    assert differences and "other logits" in differences[0]


@pytest.mark.parametrize("streams", [2, 8])
@pytest.mark.parametrize("model", ["smollm2", "gemma3"], indirect=True)
def test_the_gate_catches_equal_types_of_k_and_v_with_two_threads(
    model: Path, streams: int, tmp_path: Path
) -> None:
    engine = Engine(replace(exact_plan(model, 2, tmp_path), k_type="f16", streams=streams))
    differences = check(engine)
    engine.close()
    assert differences and "replay" in differences[0]


def test_the_gate_catches_calls_of_eight_rows_on_k_quants(gemma3: Path, tmp_path: Path) -> None:
    plan = replace(exact_plan(gemma3, 2, tmp_path), max_rows=8)
    engine = pass_gate(plan, "x", Engine, lambda _: None)
    engine.close()
    assert engine.plan.max_rows < 8


def test_what_the_gate_found_is_kept_and_a_damaged_note_is_not_believed(
    qwen2: Path, tmp_path: Path
) -> None:
    plan = exact_plan(qwen2, 1, tmp_path)
    lines: list[str] = []
    pass_gate(plan, describe(plan), Engine, lines.append).close()
    assert "before the first exact answer" in lines[0] and "passed in" in lines[-1]
    (note,) = tmp_path.iterdir()
    lines.clear()
    pass_gate(plan, describe(plan), Engine, lines.append).close()
    assert not lines
    pass_gate(replace(plan, streams=2), describe(plan), Engine, lines.append).close()
    assert lines  # two sessions were not what eight were
    lines.clear()
    note.write_text('{"max_rows": 99}')
    pass_gate(plan, describe(plan), Engine, lines.append).close()
    assert lines


def test_a_note_that_cannot_be_kept_costs_no_worker(qwen2: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gate"
    folder.write_text("a file, and no folder")
    pass_gate(exact_plan(qwen2, 1, folder), "x", Engine, lambda _: None).close()


def test_a_model_that_is_exact_at_no_row_limit_is_refused(qwen2: Path) -> None:
    class Drifting(Engine):
        """Logits that depend on how many calls there were before."""

        calls = 0

        def logits(self, row: int) -> bytes:
            Drifting.calls += 1
            return Drifting.calls.to_bytes(8, "little")

    plan = replace(exact_plan(qwen2, 1, Path()), gate_folder="")
    with pytest.raises(NotExact, match="replay of"):
        pass_gate(plan, "x", Drifting, lambda _: None)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_weights_whose_lone_rows_differ_pass_the_gate(tmp_path: Path, kind: Quantisation) -> None:
    path = write_random_model(tmp_path / "model.gguf", TINY_QWEN2, quantisation=kind)
    plan = exact_plan(path, 1, tmp_path)
    assert plan.min_rows == 2
    engine = pass_gate(plan, "key", Engine, lambda _: None)
    assert engine.plan.max_rows >= 2
    engine.close()
