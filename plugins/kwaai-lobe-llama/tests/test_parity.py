"""Cuts of models against the whole of them: every logit is equal, to the bit.

A case is a model, a cut, the length of a prompt and a number of threads. In each the answer is
computed alone and among other sessions, and units are lost and replayed in the middle of it. By
default a part of the cases runs, with ``--full`` (``tox -e parity``) all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple, get_args

import pytest

from kwaai_core.gguf import read_gguf
from kwaai_core.testing.models import Architecture, Shape, write_random_model
from kwaai_lobe_llama.sliceable import ARCHITECTURES

from .chains import Chain, Logits, Session, advance, chain, plan_for, tokens_of, whole

BLOCKS = 7  # so that gemma3's period of six ends within
ANSWER = 12
PROMPTS = (40, 300, 700)
THREADS = (1, 2)
EVERY_CUT = [
    *([0, cut, BLOCKS] for cut in range(1, BLOCKS)),
    [0, 2, 6, BLOCKS],
    list(range(BLOCKS + 1)),
]
SMOLLM2_CUTS = ([0, 7, 19, 30], [0, 29, 30], [0, 1, 30], [0, 4, 8, 12, 16, 20, 24, 27, 30])
GEMMA3_CUTS = ([0, 4, 11, 18], [0, 1, 18], [0, 17, 18], [0, 4, 8, 12, 15, 18])


class Case(NamedTuple):
    model: str
    cuts: Sequence[int]
    prompt: int
    threads: int


def every_case() -> Iterator[Case]:
    for model, all_cuts in (
        *((architecture, EVERY_CUT) for architecture in sorted(ARCHITECTURES)),
        ("smollm2", SMOLLM2_CUTS),
        ("gemma3-270m", GEMMA3_CUTS),
    ):
        for prompt, threads, cuts in product(PROMPTS, THREADS, all_cuts):
            yield Case(model, cuts, prompt, threads)


def some_cases() -> Iterator[Case]:
    """Every cut of each small model, each length and number of threads; of the real ones a few."""
    for architecture in sorted(ARCHITECTURES):
        for number, cuts in enumerate(EVERY_CUT):
            yield Case(architecture, cuts, 40, THREADS[number % 2])
        for prompt, threads in product((300, 700), THREADS):
            yield Case(architecture, [0, 2, 6, BLOCKS], prompt, threads)
    one, two, three, four = SMOLLM2_CUTS
    yield Case("smollm2", one, 300, 2)
    yield Case("smollm2", two, 700, 1)
    yield Case("smollm2", three, 40, 1)
    yield Case("smollm2", four, 40, 2)
    one, two, three, four = GEMMA3_CUTS
    yield Case("gemma3-270m", one, 300, 1)
    yield Case("gemma3-270m", two, 40, 2)
    yield Case("gemma3-270m", three, 40, 1)
    yield Case("gemma3-270m", four, 40, 2)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        full = metafunc.config.getoption("--full", default=False)
        cases = list(every_case() if full else some_cases())
        metafunc.parametrize("case", cases, ids=map(_name, cases))


def _name(case: Case) -> str:
    parts = "-".join(map(str, case.cuts))
    return f"{case.model} {parts}, prompt of {case.prompt}, threads {case.threads}"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random model of each architecture that can be cut."""
    folder = tmp_path_factory.mktemp("tiny")
    for architecture in get_args(Architecture):
        if architecture in ARCHITECTURES:
            shape = Shape(architecture, blocks=BLOCKS, tied=architecture != "qwen2")
            write_random_model(folder / f"{architecture}.gguf", shape)
    return folder


@pytest.fixture(scope="session")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slices")


@pytest.fixture
def path(case: Case, tiny: Path, smollm2: Path, gemma3: Path) -> Path:
    real = {"smollm2": smollm2, "gemma3-270m": gemma3}
    return real.get(case.model, tiny / f"{case.model}.gguf")


@cache
def tokens_for(path: Path, length: int) -> list[int]:
    return tokens_of(length, min(_vocabulary(path), 20_000))


@cache
def _vocabulary(path: Path) -> int:
    return read_gguf(path).metadata["tokenizer.ggml.tokens"].count


@cache
def expected(path: Path, prompt: int, threads: int) -> Logits:
    return whole(plan_for(path, threads=threads), tokens_for(path, prompt + ANSWER), prompt)


def test_the_logits_are_those_of_the_whole(case: Case, path: Path, slices: Path) -> None:
    _, cuts, prompt, threads = case
    tokens = tokens_for(path, prompt + ANSWER)
    with chain(plan_for(path, threads=threads), cuts, slices / case.model) as spans:
        for how, logits in (
            ("alone", alone(spans, tokens, prompt)),
            ("among others", among(spans, path, tokens, prompt)),
        ):
            pairs = zip(logits, expected(path, prompt, threads), strict=True)
            assert not [at for at, (ours, whole_) in enumerate(pairs) if ours != whole_], how


def alone(spans: Chain, tokens: Sequence[int], prompt: int) -> Logits:
    """The logits of a session that has the units for itself, each of which is lost once."""
    session = Session(0, tokens, prompt)
    units = len(spans.units)
    while session.position < len(tokens):
        advance(spans, [session])
        done = len(session.logits) - 3
        if 0 <= done < units:
            spans.replay(session.stream, done, done + 1)
    assert done >= units, "a unit was not lost"
    spans.forget(session.stream)
    return session.logits


def among(spans: Chain, path: Path, tokens: Sequence[int], prompt: int) -> Logits:
    """The logits of a session between two others, in whose calls its tokens are computed; all that
    the units hold of it is lost once."""
    session = Session(1, tokens, prompt)
    others = [Session(0, tokens_for(path, 60), 30), Session(2, tokens_for(path, 170), 140)]
    while session.position < len(tokens):
        advance(spans, [session, *others])
        if len(session.logits) == 6:
            spans.replay(session.stream, 0, len(spans.units))
    assert all(other.decoding for other in others), "nobody was beside it"
    return session.logits
