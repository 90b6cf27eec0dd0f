"""What spans rely on in llama.cpp, fact by fact, so that a new version that differs is noticed."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import gguf
import numpy as np
import pytest

from kwaai_core import ModelFileError, Span
from kwaai_core.gguf import GgufFile, Value, read_gguf
from kwaai_core.testing.models import Quantisation, Shape, write_random_model
from kwaai_lobe_llama import gguf_writer, slicing
from kwaai_lobe_llama.gguf_writer import Source, uint32, write_gguf
from kwaai_lobe_llama.slice_digest import digest_file
from kwaai_lobe_llama.slicing import slice_head, slice_span
from kwaai_lobe_llama.worker import span_engine
from kwaai_lobe_llama.worker.bindings import C
from kwaai_lobe_llama.worker.embedding import Embedding
from kwaai_lobe_llama.worker.engine import Engine
from kwaai_lobe_llama.worker.loaded import EngineError
from kwaai_lobe_llama.worker.span_engine import SpanEngine

from .chains import DIGEST, answer, chain, closing, plan_for, tokens_of, whole

SMALL = Shape("llama", blocks=3)


def uint32s(*numbers: int) -> Value:
    return Value("uint32", struct.pack(f"<{len(numbers)}I", *numbers), True, len(numbers))


def variant(
    file: GgufFile,
    path: Path,
    metadata: Mapping[str, Value],
    vectors: Mapping[str, Sequence[float]] | None = None,
) -> Path:
    """A copy of a model with other metadata, and with more vectors."""
    data = bytearray(file.path.read_bytes())
    sources = [Source(t.name, t.type, t.shape, t.nbytes, t.offset) for t in file.tensors]
    for name, values in (vectors or {}).items():
        size = 4 * len(values)
        sources.append(Source(name, "F32", (len(values),), size, len(data)))
        data += struct.pack(f"<{len(values)}f", *values)
    material = path.with_suffix(".material")
    material.write_bytes(data)
    with material.open("rb") as opened:
        write_gguf(path, {**file.metadata, **metadata}, sources, opened)
    return path


def loaded_elsewhere(path: Path) -> subprocess.CompletedProcess[str]:
    """What becomes of a process that loads a file without our checks, and opens a context."""
    program = (
        "import sys\n"
        "from kwaai_lobe_llama.plan import Plan\n"
        "from kwaai_lobe_llama.worker.engine import Engine\n"
        "Engine(Plan(sys.argv[1], '', context=256, streams=1, threads=1)).prefill("
        "[1, 2], 0, 0, output=True)\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    return read_gguf(write_random_model(tmp_path_factory.mktemp("small") / "llama.gguf", SMALL))


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    path = tmp_path_factory.mktemp("windowed") / "gemma3.gguf"
    return read_gguf(write_random_model(path, Shape("gemma3", blocks=7)))


def parity(path: Path, cuts: Sequence[int], folder: Path) -> None:
    plan, tokens = plan_for(path), tokens_of(84, 512)
    with chain(plan, cuts, folder) as spans:
        assert answer(spans, tokens, 80) == whole(plan, tokens, 80)


# -- facts about llama.cpp


def test_the_output_of_a_block_is_named_l_out(
    small: GgufFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = slice_span(small, DIGEST, Span(0, 2), tmp_path)
    plan = replace(plan_for(small.path), path=str(path))
    states = memoryview(Embedding(str(small.path)).rows([5]))
    engine = SpanEngine(plan)
    with closing(engine):
        assert any(bytes(engine.run([states], [(0, 0)])))
    monkeypatch.setattr(span_engine, "OUTPUT", b"renamed-%d")
    engine = SpanEngine(plan)
    with closing(engine), pytest.raises(EngineError, match="0 of 1 rows"):
        engine.run([states], [(0, 0)])


def test_a_call_that_llama_cpp_splits_is_an_error_and_no_wrong_state(
    small: GgufFile, tmp_path: Path
) -> None:
    path = slice_span(small, DIGEST, Span(0, 2), tmp_path)
    engine = SpanEngine(replace(plan_for(small.path), path=str(path), streams=4))
    rows = memoryview(Embedding(str(small.path)).rows([5, 6]))
    with closing(engine):
        engine.run([rows], [(0, 0), (0, 1)])
        with pytest.raises(EngineError, match="of 2 rows"):
            engine.run([rows], [(1, 0), (0, 2)])


def test_zero_blocks_end_the_process_so_the_reader_refuses_them(
    small: GgufFile, tmp_path: Path
) -> None:
    path = variant(small, tmp_path / "none.gguf", {"llama.block_count": uint32(0)})
    with pytest.raises(ModelFileError, match="block_count is 0"):
        read_gguf(path)
    assert loaded_elsewhere(path).returncode == -signal.SIGABRT


def test_a_window_that_no_block_has_ends_the_process(windowed: GgufFile, tmp_path: Path) -> None:
    key = "gemma3.attention.sliding_window_pattern"
    flags = Value("bool", bytes(7), array=True, count=7)
    path = variant(windowed, tmp_path / "no-window.gguf", {key: flags})
    assert loaded_elsewhere(path).returncode == -signal.SIGABRT
    lone = read_gguf(slice_span(windowed, DIGEST, Span(5, 6), tmp_path))
    assert "gemma3.attention.sliding_window" not in lone.metadata
    assert loaded_elsewhere(lone.path).returncode == 0


def test_a_small_cache_of_a_window_forgets_and_truncation_says_so(
    windowed: GgufFile, tmp_path: Path
) -> None:
    class Forgetful(SpanEngine):
        def _arrange(self, params: C.llama_context_params) -> None:
            super()._arrange(params)
            params.swa_full = False

    path = slice_span(windowed, DIGEST, Span(0, 3), tmp_path)
    plan = replace(plan_for(windowed.path), path=str(path))
    embedding = Embedding(str(windowed.path))
    kept = {}
    for kind in (SpanEngine, Forgetful):
        engine = kind(plan)
        with closing(engine):
            for at in range(0, 896, 128):
                rows = memoryview(embedding.rows(tokens_of(128, 512)))
                engine.run([rows], [(at + row, 0) for row in range(128)])
            kept[kind] = engine.truncate(0, 100)
    assert kept == {SpanEngine: True, Forgetful: False}


def test_sixty_two_blocks_of_gemma3_are_taken_for_its_27b(tmp_path: Path) -> None:
    shape = Shape("gemma3", blocks=63, embedding=64, heads=2, kv_heads=1, feed_forward=64)
    file = read_gguf(write_random_model(tmp_path / "63.gguf", shape))
    with pytest.raises(ModelFileError, match="take one more or less"):
        slice_span(file, DIGEST, Span(0, 62), tmp_path)
    names = {}
    for blocks in (61, 62):
        metadata, tensors = slicing._span(file, Span(0, blocks))
        path = tmp_path / f"{blocks}.gguf"
        with file.path.open("rb") as model:
            write_gguf(path, metadata, tensors, model)
        engine = Engine(plan_for(path))
        with closing(engine):
            text = bytearray(128)
            buffer = (ctypes.c_char * 128).from_buffer(text)
            C.llama_model_desc(engine.model, buffer, 128)
            names[blocks] = text.split(b"\0")[0]
    assert b"27B" not in names[61]
    assert b"27B" in names[62]


def test_float16_cannot_hold_what_goes_between_blocks_of_gemma3(
    gemma3: Path, tmp_path: Path
) -> None:
    path = slice_span(read_gguf(gemma3), DIGEST, Span(0, 12), tmp_path)
    states = memoryview(Embedding(str(gemma3)).rows([2, *tokens_of(39, 20_000)]))
    engine = SpanEngine(replace(plan_for(gemma3), path=str(path)))
    with closing(engine):
        out = np.frombuffer(engine.run([states], [(row, 0) for row in range(40)]), np.float32)
        assert np.isfinite(out).all()
        assert np.abs(out).max() > np.finfo(np.float16).max


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q6_K"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_rows_of_the_embedding_are_those_of_the_gguf_package(
    tmp_path: Path, architecture: str, kind: Quantisation
) -> None:
    shape = Shape("gemma3" if architecture == "gemma3" else "llama", blocks=1)
    path = write_random_model(tmp_path / "model.gguf", shape, quantisation=kind)
    tokens = [0, 17, 511, 17]
    table = next(t for t in gguf.GGUFReader(path).tensors if t.name == "token_embd.weight")
    expected = gguf.dequantize(table.data, table.tensor_type)[tokens].astype(np.float32)
    if architecture == "gemma3":
        expected *= np.sqrt(np.float32(shape.embedding))
    assert Embedding(str(path)).rows(tokens) == expected.tobytes()


# -- what is in a model besides blocks of weights


def test_frequency_factors_go_with_every_slice(small: GgufFile, tmp_path: Path) -> None:
    draw = Random(1)
    factors = [draw.uniform(1, 8) for _ in range(SMALL.head // 2)]
    path = variant(small, tmp_path / "freqs.gguf", {}, {"rope_freqs.weight": factors})
    assert whole(plan_for(path), tokens_of(40, 512), 40) != whole(
        plan_for(small.path), tokens_of(40, 512), 40
    )
    parity(path, [0, 1, 3], tmp_path)


def test_biases_go_with_their_blocks_and_the_head_has_room_for_them(
    small: GgufFile, tmp_path: Path
) -> None:
    draw = Random(2)
    sizes = {
        "attn_q": SMALL.embedding, "attn_k": SMALL.head * SMALL.kv_heads,
        "attn_v": SMALL.head * SMALL.kv_heads, "attn_output": SMALL.embedding,
        "ffn_gate": SMALL.feed_forward, "ffn_up": SMALL.feed_forward, "ffn_down": SMALL.embedding,
    }  # fmt: skip
    biases = {
        f"blk.{block}.{name}.bias": [draw.uniform(-1, 1) for _ in range(size)]
        for block in range(SMALL.blocks)
        for name, size in sizes.items()
    }
    path = variant(small, tmp_path / "biases.gguf", {}, biases)
    parity(path, [0, 2, 3], tmp_path)


def test_values_of_each_block_are_cut_with_the_blocks(small: GgufFile, tmp_path: Path) -> None:
    arrays = {
        "llama.attention.head_count": uint32s(4, 4, 4),
        "llama.attention.head_count_kv": uint32s(2, 2, 2),
        "llama.feed_forward_length": uint32s(512, 512, 512),
    }
    path = variant(small, tmp_path / "arrays.gguf", arrays)
    parity(path, [0, 1, 3], tmp_path)
    part = read_gguf(slice_span(read_gguf(path), DIGEST, Span(1, 3), tmp_path / "more"))
    assert part.integers("llama.attention.head_count_kv") == [2, 2]


@pytest.mark.parametrize("pattern", [uint32(0), uint32(2), uint32(3)])
def test_a_period_of_windows_means_what_it_means_to_llama_cpp(
    windowed: GgufFile, tmp_path: Path, pattern: Value
) -> None:
    key = "gemma3.attention.sliding_window_pattern"
    parity(variant(windowed, tmp_path / "period.gguf", {key: pattern}), [0, 2, 6, 7], tmp_path)


def test_a_larger_alignment_of_the_model_is_none_of_its_slices(
    small: GgufFile, tmp_path: Path
) -> None:
    writer = gguf.GGUFWriter(tmp_path / "aligned.gguf", "llama")
    writer.add_custom_alignment(128)
    reader = gguf.GGUFReader(small.path)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind = field.types[0]
            sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, sub_type=sub)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_gguf(tmp_path / "aligned.gguf").alignment == 128
    parity(tmp_path / "aligned.gguf", [0, 1, 3], tmp_path)


# -- files that mislead


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"gemma3.attention.sliding_window_pattern": uint32s(1, 1)}, "2 elements.*7 blocks"),
        ({"gemma3.attention.head_count_kv": uint32s(2, 2, 2)}, "3 elements.*7 blocks"),
        ({"gemma3.nextn_predict_layers": uint32(1)}, "predict further tokens"),
    ],
)
def test_metadata_that_do_not_fit_the_blocks_are_refused(
    windowed: GgufFile, tmp_path: Path, metadata: Mapping[str, Value], reason: str
) -> None:
    file = replace(windowed, metadata={**windowed.metadata, **metadata})
    makers: list[Callable[[], Path]] = [
        lambda: slice_span(file, DIGEST, Span(0, 3), tmp_path),
        lambda: slice_head(file, DIGEST, tmp_path),
    ]
    for make in makers:
        with pytest.raises(ModelFileError, match=reason):
            make()


def test_a_model_without_an_embedding_has_no_rows(small: GgufFile, tmp_path: Path) -> None:
    bare = replace(small, tensors=tuple(t for t in small.tensors if t.name != "token_embd.weight"))
    path = variant(bare, tmp_path / "bare.gguf", {})
    with pytest.raises(ModelFileError, match="no table of token embeddings"):
        Embedding(str(path))


# -- on disk


def test_a_model_that_changes_while_it_is_cut_leaves_no_slice(
    small: GgufFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(small.path.read_bytes())
    file = read_gguf(copy)
    whole_copy = gguf_writer._copy

    def meddle(*args: object) -> None:
        os.utime(copy, ns=(1, 1))
        whole_copy(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(gguf_writer, "_copy", meddle)
    with pytest.raises(ModelFileError, match="has changed"):
        slice_span(file, DIGEST, Span(0, 2), tmp_path / "slices")
    assert list((tmp_path / "slices").iterdir()) == []


def test_threads_that_make_one_slice_do_not_meet(
    small: GgufFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = threading.Barrier(2)
    whole_head = gguf_writer._head

    def both(*args: object) -> bytes:
        meeting.wait(10)  # both have opened their files
        return whole_head(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(gguf_writer, "_head", both)
    made: list[Path | Exception] = []

    def make() -> None:
        try:
            made.append(slice_span(small, DIGEST, Span(0, 2), tmp_path))
        except (ModelFileError, OSError) as error:
            made.append(error)

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (path,) = tmp_path.glob("*.gguf")
    assert set(tmp_path.iterdir()) == {path, digest_file(path)}
    assert made == [path, path]
    assert read_gguf(path).blocks == 2


def test_what_a_killed_process_left_is_cleaned_and_what_another_writes_is_not(
    small: GgufFile, tmp_path: Path
) -> None:
    path = slice_span(small, DIGEST, Span(0, 2), tmp_path)
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from kwaai_core import Span\n"
        "from kwaai_core.gguf import read_gguf\n"
        "from kwaai_lobe_llama import gguf_writer, slicing\n"
        "def die(*_): os.kill(os.getpid(), 9)\n"
        "gguf_writer.os.fsync = die\n"
        "slicing.slice_span(read_gguf(Path(sys.argv[1])), sys.argv[2], Span(1, 3), "
        "Path(sys.argv[3]))\n"
    )
    command = [sys.executable, "-c", program, str(small.path), DIGEST, str(tmp_path)]
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL
    (left,) = set(tmp_path.iterdir()) - {path, digest_file(path)}
    assert left.name.endswith(".part")
    long_ago = time.time() - 3600
    os.utime(left, (long_ago, long_ago))
    busy = tmp_path / ".other.gguf.1-1.part"
    with gguf_writer.opened_part(busy):
        os.utime(busy, (long_ago, long_ago))
        other = slice_span(small, DIGEST, Span(2, 3), tmp_path)
        there = {path, digest_file(path), other, digest_file(other), busy}
        assert set(tmp_path.iterdir()) == there
