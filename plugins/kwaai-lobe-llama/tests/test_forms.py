"""Answers that have to be of a form, of real workers: JSON by a schema, whole and over spans."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kwaai_core import Delta, Message, RequestError, Sampling, UnsupportedParameter
from kwaai_core.testing.models import TINY, write_random_model
from kwaai_lobe_llama.jobs import Job
from kwaai_lobe_llama.process import Worker
from kwaai_lobe_llama.worker.constraint import Constraint
from kwaai_lobe_llama.worker.engine import Engine
from kwaai_lobe_llama.worker.sampler import Sampler

from .conftest import OpenWorker
from .test_worker import plan

ADA = (Message("user", "Describe a woman called Ada, as JSON."),)
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 1, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 3},
        "born": {"type": "string", "format": "date"},
    },
    "required": ["name", "age", "tags"],
}


def job(schema: object, *, seed: int = 0, tokens: int = 400, temperature: float = 1.0) -> Job:
    sampling = Sampling(temperature, seed=seed)
    return Job(ADA, sampling, max_tokens=tokens, schema=json.dumps(schema))


async def ask(worker: Worker, job: Job) -> tuple[str, Delta]:
    text = ""
    async with worker.generate(job) as (answer, _):
        async for delta in answer:
            text += delta.text
    return text, delta


@pytest.mark.parametrize("model", ["smollm2", "qwen2"], indirect=True)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_an_answer_fits_its_schema(
    model: Path, open_worker: OpenWorker, temperature: float
) -> None:
    async with open_worker(plan(model)) as worker:
        for seed in range(3):
            text, last = await ask(worker, job(PERSON, seed=seed, temperature=temperature))
            assert last.finish == "stop"
            jsonschema.validate(json.loads(text), PERSON)


async def test_any_object_of_a_real_model(smollm2: Path, open_worker: OpenWorker) -> None:
    async with open_worker(plan(smollm2)) as worker:
        text, _ = await ask(worker, job({"type": "object"}, temperature=0, tokens=40))
        assert text.startswith("{") and '"Ada' in text


async def test_the_same_seed_gives_the_same_json(qwen2: Path, open_worker: OpenWorker) -> None:
    async with open_worker(plan(qwen2)) as worker:
        texts = [(await ask(worker, job(PERSON, seed=seed)))[0] for seed in (1, 1, 2)]
        assert texts[0] == texts[1] != texts[2]


def test_a_grammar_draws_what_would_be_drawn_without_where_that_fits(qwen2: Path) -> None:
    prompt = [*range(300, 340)]
    likelier = tuple((token, 4.0) for token in range(280, 500))  # words, all of them in ASCII
    with closing(Engine(plan(qwen2))) as engine:
        engine.prefill(prompt, 0, 0, output=True)
        place, ascii_ones = len(prompt) - 1, 0
        for seed in range(60):
            sampling = Sampling(1.0, seed=seed, repeat_penalty=1.3, logit_bias=likelier)
            drawn = []
            for constraint in None, Constraint(engine, "root ::= [\\x01-\\x7F]*"):
                sampler = Sampler(sampling, engine.n_vocab, prompt, constraint)
                drawn.append(sampler.sample(engine, place))
                sampler.close()
            free, fitting = drawn
            assert engine.piece(fitting).isascii()
            if engine.piece(free).isascii() and engine.piece(free):
                ascii_ones += 1
                assert fitting == free
        assert 20 < ascii_ones < 60  # and some had to be drawn again


@pytest.mark.parametrize("kind", [2, 3], ids=["unknown", "control"])
async def test_a_token_without_a_text_does_not_stand_for_the_text_of_its_name(
    qwen2: Path, tmp_path: Path, open_worker: OpenWorker, kind: int
) -> None:
    """llama.cpp's grammar takes a control token for its name, which an answer does not show."""
    path = tmp_path / "kind.gguf"
    before, types, after = qwen2.read_bytes().partition(3 * b"\x03\0\0\0")
    path.write_bytes(before + types[:4] + bytes([kind]) + types[5:] + after)
    async with open_worker(plan(path)) as worker:
        value = "a<|im_start|>b"
        likely = Sampling(0, logit_bias=((510, 99.0),))
        text, _ = await ask(worker, replace(job({"const": value}), sampling=likely))
        assert json.loads(text) == value


async def test_json_may_be_cut_by_its_length_or_a_stop_string(
    qwen2: Path, open_worker: OpenWorker
) -> None:
    async with open_worker(plan(qwen2)) as worker:
        text, last = await ask(worker, job(PERSON, tokens=5))
        assert last.finish == "length"
        with pytest.raises(ValueError, match="Unterminated|Expecting|delimiter"):
            json.loads(text)
        cut, last = await ask(worker, replace(job(PERSON), stop=('"tags"',)))
        assert last.finish == "stop" and cut.startswith("{") and "tags" not in cut


async def test_a_schema_that_is_refused_costs_nobody_anything(
    qwen2: Path, open_worker: OpenWorker
) -> None:
    hostile: list[tuple[object, str]] = [
        ({"type": "string", "pattern": "a"}, ".pattern"),
        ({"type": "array", "minItems": 10**12}, ".minItems"),
        ({"type": "array", "minItems": 10**400}, ".minItems"),
        ({"const": 1e999, "enum": [1]}, ""),
        ({"$ref": "#"}, ""),
        ({"$ref": "http://127.0.0.1:9/"}, ".$ref"),
    ]
    async with open_worker(plan(qwen2)) as worker:
        pid = worker.pid
        for schema, at in hostile:
            with pytest.raises(RequestError) as caught:
                await ask(worker, job(schema))
            assert caught.value.param == f"response_format.json_schema.schema{at}"
            assert isinstance(caught.value, UnsupportedParameter) == (at == ".pattern")
        await ask(worker, job(PERSON))
        assert worker.pid == pid and worker.serving


async def test_an_answer_that_cannot_go_on_is_an_error_of_its_own(
    tmp_path: Path, open_worker: OpenWorker
) -> None:
    """A vocabulary without a token for a character cannot write it; the others are served."""
    path = write_random_model(tmp_path / "bare.gguf", TINY)
    data = path.read_bytes()
    brace = data.index(b"\x01\0\0\0\0\0\0\0{")  # the token «{», which now stands for no byte
    path.write_bytes(data[: brace + 8] + b"\x01" + data[brace + 9 :])
    async with open_worker(plan(path)) as worker:
        with pytest.raises(RequestError, match="no token") as caught:
            await ask(worker, job({"type": "object"}))
        assert caught.value.param == "response_format"
        text, _ = await ask(worker, job({"type": "boolean"}))
        assert text in ("true", "false")
