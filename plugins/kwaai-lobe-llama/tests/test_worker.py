"""The worker process: what it answers, and what happens when it, or its caller, goes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from math import exp
from pathlib import Path

import pytest
import trio

from kwaai_core import (
    ContextLengthExceeded,
    Delta,
    Message,
    ModelFileError,
    ModelLoading,
    RequestError,
    RequestTooLarge,
    Sampling,
    TokenIds,
    TokenLogprob,
    WorkerLost,
)
from kwaai_lobe_llama.frames import MAX_PAYLOAD
from kwaai_lobe_llama.jobs import Job, Question
from kwaai_lobe_llama.plan import Plan
from kwaai_lobe_llama.process import Worker

from .conftest import OpenWorker, replace_worker

GREEDY = Sampling(temperature=0)
YES = "Yes. Yes. Yes. Yes."
SKY = (Message("user", "Why is the sky blue?"),)
BLUE = "The sky is blue because the light of the sun is scattered in the air, and"


def plan(path: Path, *, context: int = 512, streams: int = 4) -> Plan:
    return Plan(str(path), path.stem, context=context, streams=streams, threads=1)


async def ask(worker: Worker, job: Job) -> tuple[str, Delta]:
    text = ""
    async with worker.generate(job) as (answer, _):
        async for delta in answer:
            text += delta.text
    return text, delta


async def test_a_model_answers_in_its_own_template(smollm2: Path, open_worker: OpenWorker) -> None:
    async with open_worker(plan(smollm2)) as worker:
        text, last = await ask(worker, Job(SKY, GREEDY, max_tokens=24))
        assert "blue" in text
        assert last.finish == "length" and last.usage is not None
        assert last.usage.completion_tokens == 24
        again, _ = await ask(worker, Job(SKY, GREEDY, max_tokens=24))
        assert again == text


async def test_a_stop_string_ends_the_answer_before_itself(
    smollm2: Path, open_worker: OpenWorker
) -> None:
    async with open_worker(plan(smollm2)) as worker:
        text, _ = await ask(worker, Job(SKY, GREEDY, max_tokens=40))
        stop = text[15:22]
        cut, last = await ask(worker, Job(SKY, GREEDY, (stop,), 40))
        assert cut == text[: text.index(stop)] and last.finish == "stop"


async def test_a_seed_repeats_an_answer_and_another_gives_another(
    smollm2: Path, open_worker: OpenWorker
) -> None:
    async with open_worker(plan(smollm2)) as worker:
        answers = [
            (await ask(worker, Job(SKY, Sampling(1.0, 1.0, 0, seed), max_tokens=24)))[0]
            for seed in (1, 1, 2)
        ]
        assert answers[0] == answers[1] != answers[2]


async def test_a_seed_repeats_the_answer_to_a_long_prompt(
    smollm2: Path, open_worker: OpenWorker
) -> None:
    """Where a fast worker used what it knows of the prompt, other bits would come of the rest."""
    things = ("nails", "lamps", "ropes")
    boxes = " ".join(f"Box {n} holds {n * n} {things[n % 3]}." for n in range(12))
    async with open_worker(plan(smollm2)) as worker:
        for seed in range(2):
            asked = (Message("user", f"{boxes} What are those of box {seed} good for?"),)
            job = Job(asked, Sampling(1.0, 1.0, 0, seed), max_tokens=40, digest=True)
            digests = set()
            for _ in range(3):
                async with worker.generate(job) as (answer, request):
                    async for _delta in answer:
                        pass
                digests.add(request.digest)
            assert len(digests) == 1 and len(digests.pop()) == 32


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.5, 1.0, 1),
        Sampling(1.5, 0.0001, 0),
        Sampling(1e-40),
        Sampling(1e-20, 1.0, 0),
        Sampling(1.5, 1.0, 0, min_p=1.0),
    ],
)
async def test_one_candidate_is_the_greedy_one(
    smollm2: Path, open_worker: OpenWorker, sampling: Sampling
) -> None:
    async with open_worker(plan(smollm2)) as worker:
        greedy, _ = await ask(worker, Job(SKY, GREEDY, max_tokens=16))
        assert (await ask(worker, Job(SKY, sampling, max_tokens=16)))[0] == greedy


async def test_a_bias_bans_a_token_or_forces_it(smollm2: Path, open_worker: OpenWorker) -> None:
    async with open_worker(plan(smollm2)) as worker:
        greedy, _ = await ask(worker, Job(SKY, GREEDY, max_tokens=1))
        drawn = Sampling(1.0, 1.0, 0, 1)
        for one in (GREEDY, drawn):
            forced = replace(one, logit_bias=((28, 100.0),))
            text, _ = await ask(worker, Job(SKY, forced, max_tokens=3))
            assert len(set(text)) == 1 and len(text) == 3
        banned = replace(GREEDY, logit_bias=tuple((t, -100.0) for t in range(40_000)))
        assert (await ask(worker, Job(SKY, banned, max_tokens=1)))[0] != greedy
        with pytest.raises(RequestError, match=r"49152.*0 to 49151"):
            await ask(worker, Job(SKY, replace(GREEDY, logit_bias=((49152, 1.0),))))


@pytest.mark.parametrize(
    "penalised",
    [
        replace(GREEDY, repeat_penalty=1.8),
        replace(GREEDY, frequency_penalty=2.0),
        replace(GREEDY, presence_penalty=2.0),
    ],
    ids=["repeat", "frequency", "presence"],
)
async def test_penalties_make_an_answer_less_monotonous(
    smollm2: Path, open_worker: OpenWorker, penalised: Sampling
) -> None:
    async with open_worker(plan(smollm2)) as worker:
        plain, _ = await ask(worker, Job(YES, GREEDY, max_tokens=24))
        text, _ = await ask(worker, Job(YES, penalised, max_tokens=24))
        assert len(set(text.split())) > len(set(plain.split())) == 1
        assert (await ask(worker, Job(YES, penalised, max_tokens=24)))[0] == text


async def test_the_prompt_is_penalised_too(smollm2: Path, open_worker: OpenWorker) -> None:
    async with open_worker(plan(smollm2)) as worker:
        plain, _ = await ask(worker, Job(YES, GREEDY, max_tokens=1))
        assert plain == " Yes"
        penalised = replace(GREEDY, repeat_penalty=100.0)
        assert (await ask(worker, Job(YES, penalised, max_tokens=1)))[0] not in YES


async def test_tokens_are_a_prompt_as_their_text_is(smollm2: Path, open_worker: OpenWorker) -> None:
    async with open_worker(plan(smollm2)) as worker:
        text, last = await ask(worker, Job("Yes", GREEDY, max_tokens=8))
        again, same = await ask(worker, Job(TokenIds((10539,)), GREEDY, max_tokens=8))
        assert (again, same.usage) == (text, last.usage)
        with pytest.raises(RequestError, match=r"49152.*0 to 49151") as refused:
            await ask(worker, Job(TokenIds((1, 49152))))
        assert refused.value.param == "prompt"
        with pytest.raises(RequestError, match="no tokens"):
            await ask(worker, Job(TokenIds(())))


async def told(worker: Worker, job: Job) -> list[TokenLogprob]:
    found = list[TokenLogprob]()
    async with worker.generate(job) as (answer, _):
        async for delta in answer:
            found += delta.logprobs
    return found


async def test_probabilities_are_those_of_the_model(smollm2: Path, open_worker: OpenWorker) -> None:
    async with open_worker(plan(smollm2)) as worker:
        text, _ = await ask(worker, Job(SKY, GREEDY, max_tokens=24))
        tokens = await told(worker, Job(SKY, GREEDY, max_tokens=24, logprobs=5))
        assert b"".join(one.token for one in tokens).decode() == text
        for one in tokens:
            assert (one.token, one.logprob) == (one.top[0].token, one.top[0].logprob)
            assert len(one.top) == 5
            logs = [other.logprob for other in one.top]
            assert logs == sorted(logs, reverse=True) and 0 < sum(map(exp, logs)) <= 1 + 1e-9
        odd = replace(GREEDY, logit_bias=((28, 100.0),))  # changes the draw, and not the model
        (first,) = await told(worker, Job(SKY, odd, max_tokens=1, logprobs=1))
        assert first.top[0].logprob == tokens[0].logprob > first.logprob
        (bare,) = await told(worker, Job(SKY, GREEDY, max_tokens=1, logprobs=0))
        assert (bare.logprob, bare.top) == (tokens[0].logprob, ())
        everything = await told(worker, Job("Yes", GREEDY, max_tokens=1, logprobs=254))
        assert len(everything[0].top) == 254
        assert await told(worker, Job(SKY, GREEDY, max_tokens=4)) == []


async def test_what_a_stop_string_cuts_off_has_no_probabilities(
    smollm2: Path, open_worker: OpenWorker
) -> None:
    async with open_worker(plan(smollm2)) as worker:
        whole, _ = await ask(worker, Job(SKY, GREEDY, max_tokens=24))
        for begin in range(0, len(whole) - 4, 3):
            stop = whole[begin : begin + 4]
            job = Job(SKY, GREEDY, (stop,), 24, logprobs=0)
            cut, _ = await ask(worker, job)
            shown = b"".join(one.token for one in await told(worker, job))
            assert shown.startswith(cut.encode())
            assert len(shown) < len(cut) + 16 and whole.encode().startswith(shown)
            if not cut:
                assert shown == b""


async def test_the_tokens_of_a_prompt_have_the_probabilities_of_an_answers(
    smollm2: Path, open_worker: OpenWorker
) -> None:
    async with open_worker(plan(smollm2)) as worker:
        tokens = await told(worker, Job(BLUE, GREEDY, max_tokens=9, logprobs=2, echo=True))
        bare = await told(worker, Job(BLUE, GREEDY, max_tokens=0, logprobs=2, echo=True))
        assert bare == tokens[: len(bare)] and len(tokens) == len(bare) + 9
        assert (tokens[0].logprob, tokens[0].top) == (None, ())
        text, last = await ask(worker, Job(BLUE, GREEDY, max_tokens=9, echo=True))
        assert last.usage is not None and last.usage.prompt_tokens == len(bare)
        assert b"".join(one.token for one in tokens).decode() == text
        assert b"".join(one.token for one in bare).decode() == BLUE
        answer, _ = await ask(worker, Job(BLUE, GREEDY, max_tokens=9))
        assert text == BLUE + answer
        begin = BLUE[: BLUE.index(" because")]
        forced = await told(worker, Job(begin, GREEDY, max_tokens=1, logprobs=2))
        (same,) = [one for at, one in enumerate(bare) if len(joined(bare[:at])) == len(begin)]
        assert forced[0].top[0].token == same.top[0].token
        assert forced[0].top[0].logprob == pytest.approx(same.top[0].logprob, abs=0.3)


def joined(tokens: Sequence[TokenLogprob]) -> str:
    return b"".join(one.token for one in tokens).decode()


async def test_an_echo_tells_of_the_token_that_ends_it(
    smollm2: Path, open_worker: OpenWorker
) -> None:
    ending = replace(GREEDY, logit_bias=((2, 100.0),))  # <|im_end|>
    async with open_worker(plan(smollm2)) as worker:
        bare = await told(worker, Job(BLUE, GREEDY, max_tokens=0, logprobs=1, echo=True))
        job = Job(BLUE, ending, max_tokens=1, logprobs=1, echo=True)
        tokens = await told(worker, job)
        text, last = await ask(worker, job)
        assert (text, last.finish) == (BLUE, "stop")
        assert last.usage is not None and last.usage.completion_tokens == 1
        assert len(tokens) == len(bare) + 1 and tokens[-1].token == b""
        assert await told(worker, replace(job, echo=False)) == []


@pytest.mark.parametrize("model", ["smollm2", "gemma3", "qwen2"], indirect=True)
async def test_an_echo_is_the_text_that_was_sent(model: Path, open_worker: OpenWorker) -> None:
    async with open_worker(plan(model)) as worker:
        for prompt in ("Où", " two  spaces", "世界 🌍", "a\n\nb", "<|im_start|>user", "x"):
            for logprobs in (None, 0):
                job = Job(prompt, GREEDY, max_tokens=0, logprobs=logprobs, echo=True)
                text, _ = await ask(worker, job)
                assert text == prompt
        halves = "é🌍".encode()
        ids = TokenIds(tuple(halves[:4])) if model.stem == "qwen2" else None
        if ids is not None:  # its first tokens are the bytes: a prompt may end within a character
            forced = replace(GREEDY, logit_bias=tuple((byte, 60.0) for byte in halves[4:5]))
            text, _ = await ask(worker, Job(ids, forced, max_tokens=1, echo=True))
            assert text.startswith("é") and text.endswith("\ufffd")


async def test_a_prompt_in_the_cache_is_computed_anew_for_its_probabilities(
    smollm2: Path, open_worker: OpenWorker
) -> None:
    job = Job(BLUE * 9, GREEDY, max_tokens=1, logprobs=0, echo=True)
    async with open_worker(plan(smollm2)) as worker:
        first = await told(worker, job)
        await ask(worker, Job(BLUE * 9, GREEDY, max_tokens=1))
        assert await told(worker, job) == first
        _, last = await ask(worker, job)
        assert last.usage is not None and last.usage.cached_tokens == 0
        _, last = await ask(worker, Job(BLUE * 9, GREEDY, max_tokens=0))
        assert last.usage is not None and last.usage.completion_tokens == 0
        assert last.usage.cached_tokens == last.usage.prompt_tokens - 1


@pytest.mark.parametrize("model", ["smollm2", "gemma3", "qwen2"], indirect=True)
async def test_texts_and_tokens_are_told_without_an_answer(
    model: Path, open_worker: OpenWorker
) -> None:
    async with open_worker(plan(model, context=512)) as worker:
        facts = await worker.tokenise(Question())
        assert facts["eos"] and facts["context"] == 512
        (end,) = (await worker.tokenise(Question(facts["eos"], special=False)))["ids"]
        assert end < facts["tokens"]
        for text in ("Why is the sky blue?", " two  spaces\n", "世界 🌍", facts["eos"] + "x", ""):
            ids = (await worker.tokenise(Question(text, special=False)))["ids"]
            back = await worker.tokenise(Question(TokenIds(tuple(ids))))
            assert back["text"] == text
        # more than the context holds, as whole documents are
        many = (await worker.tokenise(Question("word " * 9000, special=False)))["ids"]
        assert len(many) > 8000
        if not facts["template"]:
            with pytest.raises(RequestError, match="no chat template"):
                await worker.tokenise(Question(SKY))
            return
        said = await worker.tokenise(Question(SKY, special=False))
        _, last = await ask(worker, Job(SKY, GREEDY, max_tokens=1))
        assert last.usage is not None and len(said["ids"]) == last.usage.prompt_tokens


async def test_questions_that_cannot_be_answered(qwen2: Path, open_worker: OpenWorker) -> None:
    async with open_worker(plan(qwen2)) as worker:
        special = (await worker.tokenise(Question()))["eos"]
        for question, param, says in (
            (Question(TokenIds((512,))), "tokens", "512"),
            (Question(special * 40_000), "prompt", "10000 special tokens"),
            (Question((Message("user", "x" * MAX_PAYLOAD),)), "messages", "limit"),
            (Question("€" * 1_600_000, shown=True), "prompt", "in parts"),
        ):
            with pytest.raises(RequestError, match=says) as refused:
                await worker.tokenise(question)
            assert refused.value.param == param
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(refuse_as_lost, worker)
                await trio.testing.wait_all_tasks_blocked()
                os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerLost):
            await worker.tokenise(Question())


async def test_questions_of_those_who_left_hold_up_nobody(
    qwen2: Path, open_worker: OpenWorker
) -> None:
    long = Question("x " * 1_000_000)

    async def leave_after_the_first(worker: Worker, left: trio.CancelScope) -> None:
        await worker.tokenise(long)
        left.cancel()

    async with open_worker(plan(qwen2)) as worker:
        began = trio.current_time()
        await worker.tokenise(long)
        each = trio.current_time() - began
        with trio.CancelScope() as left:
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(leave_after_the_first, worker, left)
        with trio.fail_after(8 * each):  # one may be under way
            await worker.tokenise(Question())


async def refuse_as_lost(worker: Worker) -> None:
    with pytest.raises(WorkerLost):
        await worker.tokenise(Question("x " * 2_000_000))


async def test_more_requests_than_streams_all_get_their_own_answer(
    qwen2: Path, open_worker: OpenWorker
) -> None:
    answers: dict[str, str] = {}

    async def one(worker: Worker, prompt: str) -> None:
        answers[prompt] = (await ask(worker, Job(prompt, GREEDY, max_tokens=30)))[0]

    prompts = [f"{number} bottles" for number in range(19)]
    async with open_worker(plan(qwen2)) as worker:
        async with trio.open_nursery() as nursery:
            for prompt in prompts:
                nursery.start_soon(one, worker, prompt)
        assert sorted(answers) == sorted(prompts)
        assert worker.requests == 0


async def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(
    qwen2: Path, open_worker: OpenWorker
) -> None:
    async with open_worker(plan(qwen2)) as worker:
        with pytest.raises(ContextLengthExceeded) as caught:
            await ask(worker, Job("x" * 600))
        assert (caught.value.prompt_tokens, caught.value.context_tokens) == (600, 512)
        _, last = await ask(worker, Job("x" * 511, GREEDY))
        assert last.finish == "length" and last.usage is not None
        assert last.usage.completion_tokens == 1


async def test_a_prompt_of_nothing_but_special_tokens_is_refused_soon(
    smollm2: Path, open_worker: OpenWorker
) -> None:
    async with open_worker(plan(smollm2)) as worker:
        with pytest.raises(ContextLengthExceeded) as caught, trio.fail_after(8):
            await ask(worker, Job("<|im_end|>" * 100_000))
        assert caught.value.prompt_tokens == pytest.approx(100_000, rel=0.01)


async def test_an_answer_may_fill_the_context(qwen2: Path, open_worker: OpenWorker) -> None:
    async with open_worker(plan(qwen2)) as worker:
        _, last = await ask(worker, Job("x" * 100, GREEDY))
        assert last.usage is not None and last.finish in ("stop", "length")
        assert last.usage.prompt_tokens + last.usage.completion_tokens <= 512


async def test_a_model_without_a_template_says_so_for_a_conversation(
    gemma3: Path, open_worker: OpenWorker
) -> None:
    async with open_worker(plan(gemma3)) as worker:
        with pytest.raises(RequestError, match="no chat template"):
            await ask(worker, Job(SKY))
        text, _ = await ask(worker, Job("The capital of France is", GREEDY, max_tokens=4))
        assert text


async def test_leaving_frees_the_stream_at_once(smollm2: Path, open_worker: OpenWorker) -> None:
    async with open_worker(plan(smollm2, context=4096, streams=1)) as worker:
        long = " river" * 3000  # many seconds of prefill
        with trio.move_on_after(0.3):
            async with worker.generate(Job(long, GREEDY)) as (answer, _):
                await answer.receive()
        with trio.fail_after(3):
            text, _ = await ask(worker, Job("One, two, three,", GREEDY, max_tokens=3))
        assert "four" in text


async def test_leaving_is_heard_while_a_long_prompt_is_taken_in(
    smollm2: Path, open_worker: OpenWorker
) -> None:
    async def hold(
        worker: Worker, scope: trio.CancelScope, task_status: trio.TaskStatus[None]
    ) -> None:
        with scope:
            async with worker.generate(Job(" river" * 3000, GREEDY)) as (answer, _):
                task_status.started()
                await answer.receive()

    async with (
        open_worker(plan(smollm2, context=4096, streams=1)) as worker,
        trio.open_nursery() as nursery,
    ):
        leaving = trio.CancelScope()
        await nursery.start(hold, worker, leaving)
        async with worker.generate(Job("One, two, three,", GREEDY, max_tokens=3)) as (next_one, _):
            nursery.start_soon(ask, worker, Job("a" * 20_000_000))  # seconds of tokenising
            with trio.move_on_after(0.3):
                await next_one.receive()
            leaving.cancel()
            with trio.fail_after(2):
                await next_one.receive()
        nursery.cancel_scope.cancel()


async def test_leaving_a_closed_answer_frees_its_stream_too(
    smollm2: Path, open_worker: OpenWorker
) -> None:
    async with open_worker(plan(smollm2, context=4096, streams=1)) as worker:
        async with worker.generate(Job(" river" * 3000, GREEDY)) as (answer, _):
            await answer.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await answer.receive()
        with trio.fail_after(3):
            await ask(worker, Job("One, two, three,", GREEDY, max_tokens=3))


async def test_a_killed_worker_ends_its_answers_with_an_error(
    smollm2: Path, open_worker: OpenWorker
) -> None:
    async with open_worker(plan(smollm2)) as worker:
        async with worker.generate(Job(SKY, GREEDY, max_tokens=400)) as (answer, _):
            await answer.receive()
            os.kill(worker.pid, signal.SIGKILL)
            with pytest.raises(WorkerLost, match="killed by SIGKILL"), trio.fail_after(5):
                while True:
                    await answer.receive()
        await worker.ended.wait()
        with pytest.raises(WorkerLost):
            await ask(worker, Job("x"))


async def test_a_file_that_llama_cpp_refuses_is_a_model_file_error(
    qwen2: Path, tmp_path: Path, open_worker: OpenWorker
) -> None:
    bad = tmp_path / "bad.gguf"
    # the tensor is there under another name: sound as a file, and no model
    bad.write_bytes(qwen2.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"))
    with pytest.raises(BaseExceptionGroup) as caught:
        async with open_worker(plan(bad)):
            pass
    error = caught.value.exceptions[0]
    assert isinstance(error, ModelFileError) and "ffn_up" in str(error)


async def test_a_prompt_that_no_frame_holds_is_refused_and_costs_nobody_else(
    qwen2: Path, open_worker: OpenWorker
) -> None:
    async with open_worker(plan(qwen2)) as worker:
        with pytest.raises(RequestTooLarge) as caught:
            await ask(worker, Job("x" * (MAX_PAYLOAD + 1)))
        assert caught.value.param == "prompt"
        await ask(worker, Job("x", GREEDY, max_tokens=3))


async def test_what_was_asked_by_those_who_left_is_never_sent(
    qwen2: Path, open_worker: OpenWorker
) -> None:
    async with open_worker(plan(qwen2)) as worker:
        os.kill(worker.pid, signal.SIGSTOP)  # as one that is busy with a long prompt
        for _ in range(40):
            with trio.move_on_after(0.001):
                await ask(worker, Job("x" * (MAX_PAYLOAD // 8)))
        os.kill(worker.pid, signal.SIGCONT)
        with trio.fail_after(15):
            await ask(worker, Job("x", GREEDY, max_tokens=3))


async def test_a_process_that_cannot_be_started_costs_only_its_own_requests(
    qwen2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    worker = Worker("test", plan(qwen2), spin=1000)
    await worker.run()
    assert isinstance(worker.error, ModelLoading) and "could not be started" in str(worker.error)
    with pytest.raises(ModelLoading):
        await ask(worker, Job("x"))


async def test_modules_where_the_node_was_started_are_not_pythons(
    qwen2: Path, open_worker: OpenWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    async with open_worker(plan(qwen2)) as worker:
        await ask(worker, Job("x", GREEDY, max_tokens=3))


def test_a_worker_whose_node_is_gone_ends_while_it_loads(tmp_path: Path) -> None:
    pipe = tmp_path / "model.gguf"
    os.mkfifo(pipe)  # opening it for reading takes for ever
    ours, theirs = socket.socketpair()
    with ours, theirs:
        module = ["-m", "kwaai_lobe_llama.worker", str(theirs.fileno()), plan(pipe).to_json()]
        child = subprocess.Popen([sys.executable, *module], pass_fds=[theirs.fileno()])
    try:
        child.wait(timeout=20)
    finally:
        child.kill()
        child.wait()


async def test_a_worker_that_is_killed_while_it_loads_says_so(tmp_path: Path) -> None:
    pipe = tmp_path / "model.gguf"
    os.mkfifo(pipe)
    worker = Worker("test", plan(pipe), spin=1000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)
        while not worker.pid:
            await trio.lowlevel.checkpoint()
        os.kill(worker.pid, signal.SIGKILL)
        with trio.fail_after(5):
            await worker.ended.wait()
    assert not worker.serving
    assert isinstance(worker.error, WorkerLost) and "while it loaded" in str(worker.error)


async def test_a_worker_that_is_killed_while_it_is_idle_says_so(
    qwen2: Path, open_worker: OpenWorker
) -> None:
    async with open_worker(plan(qwen2)) as worker:
        await ask(worker, Job("x", GREEDY, max_tokens=3))
        os.kill(worker.pid, signal.SIGKILL)
        with trio.fail_after(5):
            await worker.ended.wait()
    assert isinstance(worker.error, WorkerLost) and "while it was idle" in str(worker.error)


async def test_a_worker_that_says_ready_and_no_more_sense_is_lost(
    qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_worker(tmp_path, monkeypatch, "connection.sendall(frame(Kind.READY, 0, b'{'))")
    worker = Worker("test", plan(qwen2), spin=1000)
    with trio.fail_after(10):
        await worker.run()
    assert not worker.serving
    assert isinstance(worker.error, WorkerLost) and "sent a broken frame" in str(worker.error)


async def test_what_broke_a_worker_is_said_in_a_line(
    qwen2: Path, open_worker: OpenWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kwaai_lobe_llama.process.encode_job", lambda _: b"no job")
    async with open_worker(plan(qwen2)) as worker:
        with pytest.raises(WorkerLost, match="FrameError: a payload ends early") as caught:
            await ask(worker, Job("x"))
    assert "Traceback" not in str(caught.value) and "File" not in str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_what_asks_the_node_to_end_lets_the_answers_finish(
    smollm2: Path, open_worker: OpenWorker, number: signal.Signals
) -> None:
    async with open_worker(plan(smollm2)) as worker:
        job = Job(SKY, GREEDY, max_tokens=40)
        async with worker.generate(job) as (answer, _):
            await answer.receive()
            os.kill(worker.pid, number)
            assert [delta async for delta in answer][-1].finish == "length"


async def test_a_file_may_have_a_name_that_is_no_utf8(
    qwen2: Path, tmp_path: Path, open_worker: OpenWorker
) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.gguf"))
    odd.write_bytes(qwen2.read_bytes())
    async with open_worker(plan(odd)) as worker:
        await ask(worker, Job("x", GREEDY, max_tokens=3))
