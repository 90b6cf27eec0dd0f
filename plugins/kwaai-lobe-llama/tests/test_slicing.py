"""Slices of models: what is in them, how they are kept, what cannot be cut."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from kwaai_core import ModelFileError, Span
from kwaai_core.gguf import GgufFile, Value, read_gguf
from kwaai_core.testing.models import Architecture, Shape, write_random_model
from kwaai_lobe_llama import gguf_writer
from kwaai_lobe_llama.sliceable import ARCHITECTURES, has_window, sliceable
from kwaai_lobe_llama.slicing import slice_head, slice_span, units_of
from kwaai_lobe_llama.worker.embedding import Embedding
from kwaai_lobe_llama.worker.loaded import EngineError

from .chains import DIGEST, answer, chain, plan_for, tokens_of, whole

BLOCKS = 7  # so that gemma3's period of six ends within


@pytest.fixture(scope="session", params=sorted(ARCHITECTURES))
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model of each architecture that can be cut."""
    architecture: Architecture = request.param
    shape = Shape(architecture, blocks=BLOCKS, tied=architecture != "qwen2")
    folder = tmp_path_factory.mktemp("tiny")
    return write_random_model(folder / f"{architecture}.gguf", shape)


def test_the_default_mode_is_that_of_the_whole_in_like_calls(tiny: Path, tmp_path: Path) -> None:
    plan = plan_for(tiny, exact=False)
    tokens = tokens_of(52, 512)
    with chain(plan, [0, 3, BLOCKS], tmp_path) as spans:
        assert answer(spans, tokens, 40) == whole(plan, tokens, 40)


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
