"""A node for a test, over a folder of the test's own, with exactly the lobes that it names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kwaai_core.config import Config
from kwaai_core.errors import KwaaiError
from kwaai_core.lobes import Lobe, find_lobes, offers_of, select
from kwaai_core.node import Node, open_node


def load_lobe(name: str, plugin: Any = None) -> Lobe:
    """A lobe, vetted as core does it: the installed one of this name, or what ``plugin`` offers.

    ``plugin`` is a module, or any object with hooks. Errors: :class:`KwaaiError` with the cause
    that ``kwaai lobes`` would show; without one, what the hooks of ``plugin`` raise.
    """
    if plugin is not None:
        return Lobe(name, "", plugin, offers_of(plugin, name))
    (lobe,) = select(find_lobes(), [name])
    if lobe.error:
        raise KwaaiError(f"the lobe “{name}” cannot be used: {lobe.error}")
    return lobe


@asynccontextmanager
async def open_test_node(
    folder: Path, lobes: Sequence[Lobe], settings: Mapping[str, Any] | None = None
) -> AsyncIterator[Node]:
    """A node with its state in ``folder``; ``settings`` is what ``kwaai.toml`` would say.

    A lobe that cannot be opened is a :class:`KwaaiError` here, with its cause.
    """
    config = Config(folder / "kwaai.toml", folder / "state", settings or {})
    async with open_node(config, lobes) as node:
        for status in node.statuses():
            if status.state not in ("ready", "idle"):
                raise KwaaiError(f"the lobe “{status.lobe}” is {status.state}: {status.cause}")
        yield node
