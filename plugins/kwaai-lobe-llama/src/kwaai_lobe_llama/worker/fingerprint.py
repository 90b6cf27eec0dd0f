"""The engine fingerprint: everything besides the model that decides the bits of its logits."""

from __future__ import annotations

import hashlib
import os
import platform

from kwaai_lobe_llama.plan import Plan
from kwaai_lobe_llama.worker.bindings import C


def describe(plan: Plan) -> str:
    """One line a fact; two workers with equal lines compute equal bits, if exact."""
    backend = "cpu" if plan.gpu_layers == 0 else f"offload of {plan.gpu_layers} blocks"
    return "\n".join(
        [
            f"llama.cpp {C.llama_version().decode()} by llama-cpp-python {_package_version()}",
            f"features {C.llama_print_system_info().decode().strip()}",
            f"machine {platform.machine()}",
            f"backend {backend}",
            f"kv {plan.k_type}/{plan.v_type}",
            f"flash_attention {plan.flash_attention}",
            f"unified {plan.unified}",
            f"repack {plan.repack}",
            f"tiled_product {os.environ.get('GGML_CPU_TILED_MM', '1')}",
            f"rows {plan.min_rows}",
            f"chunk {plan.chunk}",
            f"threads {plan.threads}",
        ]
    )


def fingerprint(description: str) -> str:
    """A short name of a description, in hex.

    The row limit that the gate found is no part of it: within its own limit each worker computes
    the bits of a lone row.
    """
    return hashlib.sha256(description.encode()).hexdigest()[:16]


def _package_version() -> str:
    from importlib.metadata import version

    return version("llama-cpp-python")
