"""Which model is shared out, and whether it can be asked a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kwaai_lobe_router.demo.nodes import DemoFailed

_ADD = "a GGUF file is added with: kwaai models add FILE"


def chosen(model: str, nodes: int, listed: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What is known of a model, of the ``data`` of ``/v1/models``. Errors: :class:`DemoFailed`
    where it is not there, or cannot be shared out among so many nodes."""
    able = {card["id"]: card["kwaai"] for card in listed if _has_blocks(card["kwaai"])}
    if model not in able:
        there = ", ".join(sorted(able)) or "none"
        raise DemoFailed(
            f"there is no model “{model}” here that can be shared out; those that can: {there}; "
            f"{_ADD}"
        )
    facts: Mapping[str, Any] = able[model]
    if facts["blocks"] < nodes:
        raise DemoFailed(f"{model} has {facts['blocks']} blocks: too few to share out")
    return facts


def check_template(model: str, tokenizer: Mapping[str, Any]) -> None:
    """Whether a model, of which ``/tokenizer_info`` says this, can be asked. Errors:
    :class:`DemoFailed`."""
    if not tokenizer["chat_template"]:
        raise DemoFailed(
            f"{model} has no chat template in its file, so it cannot be asked a question: choose "
            f"a model for chat with --model (often called “instruct”, “chat” or “it”); {_ADD}"
        )


def _has_blocks(facts: Mapping[str, Any]) -> bool:
    return bool(facts["blocks"]) and not facts["dimensions"]
