"""From a model file and the settings to a plan: what fits, in which shape."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kwaai_core import ModelFileError, Span
from kwaai_core.gguf import GgufFile
from kwaai_lobe_llama.architectures import check_architecture
from kwaai_lobe_llama.plan import EXACT_CHUNK, PAD, Plan, padded
from kwaai_lobe_llama.settings import LlamaSettings

DEFAULT_CONTEXT = 8192
_SMALLEST_CONTEXT = 512
_WORKER_BYTES = 64 << 20  # an interpreter, the libraries, the buffers of a computation
_KV_BITS = {"f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5}
_LONE_ROW_DIFFERS = ("F32", "F16", "BF16", "IQ4_NL", "IQ4_XS")
_EVERY_ROW_EQUAL = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan and the memory it takes: weights, KV and the worker, in bytes."""

    plan: Plan
    memory: int


def make_plan(
    file: GgufFile, digest: str, settings: LlamaSettings, *, exact: bool, memory: int, gate: Path
) -> Planned:
    """The plan for a model within ``memory`` bytes.

    The context shrinks before the number of streams does. Errors: :class:`ModelFileError` where
    the architecture cannot be run, or not even the smallest context fits.
    """
    check_architecture(file)
    per_token = kv_bytes_per_token(file, "f16" if exact else settings.kv_type)
    weights = sum(tensor.nbytes for tensor in file.tensors) + _WORKER_BYTES
    if exact:
        weights += _scored_bytes(file)
    wanted = settings.context or min(file.context_length or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    context, streams = _fit(wanted, settings, per_token, memory - weights)
    if not streams:
        least = settings.context or _SMALLEST_CONTEXT
        need = weights + per_token * padded(least)
        raise ModelFileError(
            f"{file.path} needs at least {_mebibytes(need)} MiB of memory for a context of {least} "
            f"tokens, and there are {memory >> 20} MiB: set [llama] memory, or context, in "
            "kwaai.toml"
        )
    plan = _plan(file, digest, settings, gate, context=context, streams=streams, exact=exact)
    return Planned(plan, weights + per_token * plan.cells * streams)


def make_span_plan(
    file: GgufFile,
    digest: str,
    settings: LlamaSettings,
    units: Sequence[Span],
    *,
    exact: bool,
    memory: int,
    gate: Path,
) -> Planned:
    """The plan for units of a model, and for its head where there are none, within ``memory``.

    Errors: :class:`ModelFileError` where the architecture cannot be run, or not even the smallest
    context of the units fits.
    """
    check_architecture(file)
    blocks = sum(unit.hi - unit.lo for unit in units)
    weights = _WORKER_BYTES + sum(
        tensor.nbytes for tensor in file.tensors if _within(tensor.name, units)
    )
    share = blocks / max(file.blocks, 1)
    per_token = int(kv_bytes_per_token(file, "f16" if exact else settings.kv_type) * share)
    wanted = settings.context or min(file.context_length or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    context, streams = wanted, settings.streams
    if blocks:
        context, streams = _fit(wanted, settings, per_token, memory - weights)
    if not streams:
        need = weights + per_token * padded(settings.context or _SMALLEST_CONTEXT)
        raise ModelFileError(
            f"{blocks} blocks of {file.path} need at least {_mebibytes(need)} MiB of memory, and "
            f"there are {memory >> 20} MiB: set [llama] memory, or hold fewer blocks"
        )
    plan = replace(
        _plan(file, digest, settings, gate, context=context, streams=streams, exact=exact),
        chunk=EXACT_CHUNK,  # so that the chunks of a prompt pass through the hosts like a train
    )
    return Planned(plan, weights + per_token * plan.cells * streams)


def _scored_bytes(file: GgufFile) -> int:
    """What the logits of a whole chunk of a prompt take, computed and read, beyond what a worker
    has room for anyway."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    vocabulary = tokens.count if tokens is not None else 0
    return max(0, 2 * 4 * vocabulary * EXACT_CHUNK - _WORKER_BYTES // 2)


def _within(name: str, units: Sequence[Span]) -> bool:
    head, _, rest = name.partition(".")
    block = rest.partition(".")[0]
    if head != "blk" or not block.isdigit():
        return False
    return any(unit.lo <= int(block) < unit.hi for unit in units)


def _plan(
    file: GgufFile,
    digest: str,
    settings: LlamaSettings,
    gate: Path,
    *,
    context: int,
    streams: int,
    exact: bool,
) -> Plan:
    plan = Plan(
        path=str(file.path),
        digest=digest,
        context=context,
        streams=streams,
        threads=settings.threads or default_threads(),
        gpu_layers=settings.gpu_layers,
        k_type=settings.kv_type,
        v_type=settings.kv_type,
        max_rows=streams,
        gate_folder=str(gate),
    )
    if exact:
        return plan.as_exact(**row_limits([t.type for t in file.tensors if len(t.shape) > 1]))
    return plan


def _fit(wanted: int, settings: LlamaSettings, per_token: int, room: int) -> tuple[int, int]:
    """(context, streams); no streams where nothing fits."""
    cells = padded(wanted)
    if settings.context:  # a number that the user chose is kept, with as many streams as fit
        return wanted, max(0, min(settings.streams, room // (per_token * cells)))
    for streams in (settings.streams, max(1, settings.streams // 2), 1):
        fitting = room // (per_token * streams) // PAD * PAD
        if fitting >= min(cells, _SMALLEST_CONTEXT * 4):
            return min(wanted, fitting), streams
    fitting = room // per_token // PAD * PAD
    return (min(wanted, fitting), 1) if fitting >= _SMALLEST_CONTEXT else (0, 0)


def _mebibytes(size: int) -> int:
    return -(-size >> 20)  # rounded up, so that what is asked for is enough


def row_limits(types: Sequence[str]) -> dict[str, int]:
    """The rows of a call that can be exact for weights of these types, before the gate.

    K-quants have a product of their own from 8 rows on, and llamafile's kernels treat a lone row
    of the unquantised types apart (measured, see `docs/explanation/exact.md`).
    """
    apart = any(kind in _LONE_ROW_DIFFERS for kind in types)
    simple = all(kind in (*_EVERY_ROW_EQUAL, *_LONE_ROW_DIFFERS) for kind in types)
    return {"min_rows": 2 if apart else 1, "max_rows": 8 if simple else 7}


def kv_bytes_per_token(file: GgufFile, kv_type: str) -> int:
    """Bytes of KV cache that one token takes over all blocks of a model."""
    prefix = file.architecture
    heads = file.integers(f"{prefix}.attention.head_count", file.blocks)
    kv_heads = file.integers(f"{prefix}.attention.head_count_kv", file.blocks) or heads
    width = file.embedding_length // max(heads[0], 1) if heads else file.embedding_length
    key = file.integer(f"{prefix}.attention.key_length", width)
    value = file.integer(f"{prefix}.attention.value_length", width)
    return max(1, int(sum(kv_heads or [1]) * (key + value) * _KV_BITS[kv_type] / 8))


def default_threads() -> int:
    """One for each physical core that this process may use; hyper-threads slow a product down."""
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))


def machine_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
