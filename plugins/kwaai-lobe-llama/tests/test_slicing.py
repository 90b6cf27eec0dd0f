"""Slices of models: any cut, every logit equal to the whole model's, to the bit."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from kwaai_core import ModelFileError, Span
from kwaai_core.gguf import GgufFile, Value, read_gguf
from kwaai_core.testing.models import Architecture, Shape, write_random_model
from kwaai_lobe_llama import gguf_writer
from kwaai_lobe_llama.plan import Plan
from kwaai_lobe_llama.planning import row_limits
from kwaai_lobe_llama.sliceable import ARCHITECTURES, has_window, sliceable
from kwaai_lobe_llama.slicing import slice_head, slice_span, units_of
from kwaai_lobe_llama.worker.embedding import Embedding
from kwaai_lobe_llama.worker.engine import Engine
from kwaai_lobe_llama.worker.loaded import EngineError, Loaded
from kwaai_lobe_llama.worker.span_engine import HeadEngine, SpanEngine

DIGEST = "d1ce" * 16
BLOCKS = 7  # so that gemma3's period of six ends within

Logits = list[bytes]


def plan_for(path: Path, *, threads: int = 1, exact: bool = True) -> Plan:
    plan = Plan(str(path), DIGEST, context=1024, streams=2, threads=threads)
    types = [tensor.type for tensor in read_gguf(path).tensors if len(tensor.shape) > 1]
    return plan.as_exact(**row_limits(types)) if exact else replace(plan, chunk=128)


@contextmanager
def closing(engine: Loaded) -> Iterator[None]:
    try:
        yield
    finally:
        engine.close()


def prompt_of(length: int, vocabulary: int) -> list[int]:
    draw = Random(length)
    return [draw.randrange(vocabulary) for _ in range(length)]


def digest(engine: Loaded, row: int = 0) -> bytes:
    return hashlib.sha256(engine.logits(row)).digest()


def whole(plan: Plan, tokens: Sequence[int], prompt: int) -> Logits:
    """The logits after the prompt and after each further token, of the file in one context."""
    engine = Engine(plan)
    logits = []
    with closing(engine):
        for at in range(0, prompt, plan.chunk):
            chunk = tokens[at : min(at + plan.chunk, prompt)]
            engine.prefill(chunk, at, 0, output=at + len(chunk) == prompt)
        logits.append(digest(engine, len(chunk) - 1))
        for at in range(prompt, len(tokens)):
            engine.prefill(tokens[at : at + 1], at, 0, output=True)
            logits.append(digest(engine))
    return logits


class Chain:
    """The spans of a model one after the other in this process, and its head."""

    def __init__(self, plan: Plan, cuts: Sequence[int], folder: Path, stack: ExitStack) -> None:
        file = read_gguf(Path(plan.path))
        self._plan = plan
        self.spans = []
        for lo, hi in pairwise(cuts):
            path = slice_span(file, DIGEST, Span(lo, hi), folder)
            self.spans.append(SpanEngine(replace(plan, path=str(path))))
            stack.enter_context(closing(self.spans[-1]))
        self.head = HeadEngine(replace(plan, path=str(slice_head(file, DIGEST, folder))))
        stack.enter_context(closing(self.head))
        self._embedding = Embedding(plan.path)

    def run(self, tokens: Sequence[int], position: int, stream: int = 0) -> bytes:
        """The digest of the logits after the last of these tokens."""
        states = memoryview(self._embedding.rows(tokens))
        places = [(position + row, stream) for row in range(len(tokens))]
        for span in self.spans:
            states = span.run([states], places)
        self.head.run_head([bytes(states[-4 * self.head.width :])])
        return digest(self.head)

    def replay(self, index: int, tokens: Sequence[int], prompt: int, rows: int) -> bytes:
        """Lose a span but for the last token, replay what it was sent, and run that token."""
        shapes = [
            (at, min(self._plan.chunk, prompt - at)) for at in range(0, prompt, self._plan.chunk)
        ]
        end = len(tokens) - 1
        shapes += [(at, min(rows, end - at)) for at in range(prompt, end, rows)]
        inputs = []
        before = self.spans[:index]
        for span in before:
            span.truncate(0, 0)
        for at, count in shapes:
            states = memoryview(self._embedding.rows(tokens[at : at + count]))
            for span in before:
                states = span.run([states], [(at + row, 0) for row in range(count)])
            inputs.append(bytes(states))
        self.spans[index].truncate(0, 0)
        for (at, count), states_ in zip(shapes, inputs, strict=True):
            places = [(at + row, 0) for row in range(count)]
            self.spans[index].run([memoryview(states_)], places)
        for span in self.spans[index + 1 :]:
            assert span.truncate(0, end)
        return self.run(tokens[end:], end)

    def all(self, tokens: Sequence[int], prompt: int) -> Logits:
        logits = []
        for at in range(0, prompt, self._plan.chunk):
            last = self.run(tokens[at : min(at + self._plan.chunk, prompt)], at)
        logits.append(last)
        return logits + [self.run([tokens[at]], at) for at in range(prompt, len(tokens))]


@contextmanager
def chain(plan: Plan, cuts: Sequence[int], folder: Path) -> Iterator[Chain]:
    with ExitStack() as stack:
        yield Chain(plan, cuts, folder, stack)


@pytest.fixture(scope="session", params=sorted(ARCHITECTURES))
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model of each architecture that can be cut."""
    architecture: Architecture = request.param
    shape = Shape(architecture, blocks=BLOCKS, tied=architecture != "qwen2")
    folder = tmp_path_factory.mktemp("tiny")
    return write_random_model(folder / f"{architecture}.gguf", shape)


def test_every_cut_gives_every_logit_of_the_whole(tiny: Path, tmp_path: Path) -> None:
    plan = plan_for(tiny)
    tokens = prompt_of(52, 512)
    expected = whole(plan, tokens, 40)
    for cut in range(1, BLOCKS):
        with chain(plan, [0, cut, BLOCKS], tmp_path) as spans:
            assert spans.all(tokens, 40) == expected, f"cut at {cut}"
    with chain(plan, range(BLOCKS + 1), tmp_path) as spans:
        assert spans.all(tokens, 40) == expected


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("length", [300, 700])
def test_long_prompts_too_and_after_a_replay(
    tiny: Path, tmp_path: Path, length: int, threads: int
) -> None:
    plan = plan_for(tiny, threads=threads)
    tokens = prompt_of(length + 12, 512)
    expected = whole(plan, tokens, length)
    with chain(plan, [0, 2, 6, BLOCKS], tmp_path) as spans:
        assert spans.all(tokens, length) == expected
        # the one in the middle is lost, and brought back in calls of several rows
        assert spans.replay(1, tokens, length, rows=4) == expected[-1]


def test_other_streams_change_nothing(tiny: Path, tmp_path: Path) -> None:
    plan = plan_for(tiny)
    tokens, other = prompt_of(52, 512), prompt_of(300, 512)
    expected = whole(plan, tokens, 40)
    with chain(plan, [0, 3, BLOCKS], tmp_path) as spans:
        for at in (0, 128, 256):
            spans.run(other[at : at + 128], at, stream=1)
        assert spans.all(tokens, 40) == expected


def test_the_default_mode_is_that_of_the_whole_in_like_calls(tiny: Path, tmp_path: Path) -> None:
    plan = plan_for(tiny, exact=False)
    tokens = prompt_of(52, 512)
    with chain(plan, [0, 3, BLOCKS], tmp_path) as spans:
        assert spans.all(tokens, 40) == whole(plan, tokens, 40)


@pytest.mark.parametrize(
    ("model", "cuts"),
    [
        ("smollm2", [0, 7, 19, 30]),
        ("smollm2", [0, 29, 30]),
        ("gemma3", [0, 4, 11, 18]),
        ("gemma3", [0, 1, 18]),
    ],
    indirect=["model"],
)
def test_real_models_give_every_logit_of_the_whole(
    model: Path, tmp_path: Path, cuts: Sequence[int]
) -> None:
    plan = plan_for(model, threads=2)
    tokens = prompt_of(312, 20_000)
    with chain(plan, cuts, tmp_path) as spans:
        assert spans.all(tokens, 300) == whole(plan, tokens, 300)


def test_a_slice_has_its_blocks_and_no_vocabulary(smollm2: Path, tmp_path: Path) -> None:
    file = read_gguf(smollm2)
    path = slice_span(file, DIGEST, Span(10, 20), tmp_path)
    found = read_gguf(path)
    assert found.blocks == 10
    assert not any(key.startswith("tokenizer.ggml.tokens") for key in found.metadata)
    blocks = sum(t.nbytes for t in file.tensors if t.name.startswith("blk.1"))
    one = sum(t.nbytes for t in file.tensors if t.name.startswith("blk.1."))
    assert path.stat().st_size < (blocks - one) * 1.02
    head = read_gguf(slice_head(file, DIGEST, tmp_path))
    assert head.blocks == 1
    assert head.metadata["tokenizer.ggml.tokens"] == file.metadata["tokenizer.ggml.tokens"]


def test_a_slice_is_made_once_and_again_where_it_is_damaged(tiny: Path, tmp_path: Path) -> None:
    file = read_gguf(tiny)
    path = slice_span(file, DIGEST, Span(1, 3), tmp_path)
    made = path.stat().st_mtime_ns
    assert slice_span(file, DIGEST, Span(1, 3), tmp_path).stat().st_mtime_ns == made
    whole_size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1000])
    assert slice_span(file, DIGEST, Span(1, 3), tmp_path).stat().st_size == whole_size


def test_a_full_disk_leaves_nothing_behind(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf_writer.os, "fsync", full)
    with pytest.raises(ModelFileError, match=r"No space left.*needs \d+ MiB"):
        slice_span(read_gguf(tiny), DIGEST, Span(0, 2), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_changed_is_not_cut(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(tiny.read_bytes())
    file = read_gguf(copy)
    copy.write_bytes(copy.read_bytes())
    with pytest.raises(ModelFileError, match="has changed"):
        slice_span(file, DIGEST, Span(0, 2), tmp_path / "slices")


@pytest.mark.parametrize("span", [Span(0, BLOCKS + 1), Span(3, 3), Span(-1, 2), Span(4, 2)])
def test_what_is_no_span_is_refused(tiny: Path, tmp_path: Path, span: Span) -> None:
    with pytest.raises(ModelFileError, match="no span"):
        slice_span(read_gguf(tiny), DIGEST, span, tmp_path)


def with_metadata(file: GgufFile, **values: Value) -> GgufFile:
    more = {key.replace("__", "."): value for key, value in values.items()}
    return replace(file, metadata={**file.metadata, **more})


def test_other_architectures_and_mixtures_are_refused(smollm2: Path, tmp_path: Path) -> None:
    file = read_gguf(smollm2)
    mamba = with_metadata(file, general__architecture=gguf_writer.string("mamba"))
    with pytest.raises(ModelFileError, match="mamba.*those that can are llama, qwen2"):
        slice_head(mamba, DIGEST, tmp_path)
    mixture = with_metadata(file, llama__expert_count=gguf_writer.uint32(8))
    with pytest.raises(ModelFileError, match="mixture of experts"):
        slice_span(mixture, DIGEST, Span(0, 2), tmp_path)


def test_gemma3_of_62_blocks_is_another_model_to_llama_cpp(gemma3: Path) -> None:
    file = with_metadata(read_gguf(gemma3), gemma3__block_count=gguf_writer.uint32(62))
    with pytest.raises(ModelFileError, match="62 blocks"):
        sliceable(file)


def test_windows_follow_the_file_and_else_the_period_of_llama_cpp(gemma3: Path) -> None:
    file = read_gguf(gemma3)
    assert [block for block in range(18) if not has_window(file, block)] == [5, 11, 17]
    key = "gemma3__attention__sliding_window_pattern"
    by_period = with_metadata(file, **{key: gguf_writer.uint32(3)})
    assert [block for block in range(9) if not has_window(by_period, block)] == [2, 5, 8]
    flags = Value("bool", bytes([1, 0] * 9), array=True, count=18)
    by_block = with_metadata(file, **{key: flags})
    assert [block for block in range(6) if not has_window(by_block, block)] == [1, 3, 5]


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        (Span(0, 4), [(0, 4)]),
        (Span(0, 5), [(0, 2), (2, 5)]),
        (Span(3, 15), [(3, 7), (7, 11), (11, 15)]),
        (Span(2, 3), [(2, 3)]),
    ],
)
def test_units_are_of_about_equal_size(span: Span, expected: list[tuple[int, int]]) -> None:
    assert [(unit.lo, unit.hi) for unit in units_of(span)] == expected


def test_a_token_that_there_is_not_has_no_row(tiny: Path) -> None:
    with pytest.raises(EngineError, match="no token 512"):
        Embedding(str(tiny)).rows([512])
