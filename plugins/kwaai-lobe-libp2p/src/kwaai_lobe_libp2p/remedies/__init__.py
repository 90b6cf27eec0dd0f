"""What is wrong with Yamux in py-libp2p 0.8.1, mended. Importing this package mends it.

Each remedy replaces a private part of that very version, so any other is refused. The tests run
every case twice, with this package and without: what passes without it needs no remedy any more.
``docs/explanation/transport.md`` lists them, and what of the library is left unused instead.
"""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import Any

from libp2p.stream_muxer.yamux import yamux
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

from kwaai_core import ConfigError
from kwaai_lobe_libp2p.remedies import connections, streams, watching
from kwaai_lobe_libp2p.remedies.parts import abandon, hear
from kwaai_lobe_libp2p.remedies.streams import forget

__all__ = ["MENDS", "abandon", "check_version", "forget", "hear"]

MENDS = "0.8.1"

MAX_WINDOW = 4 << 20
"""How many bytes a stream's peer may send ahead of its reader."""


def check_version(found: str) -> None:
    """Errors: :class:`ConfigError` where it is not the version that is mended here."""
    if found != MENDS:
        raise ConfigError(
            f"libp2p {found} is installed, and what kwaai-lobe-libp2p mends is libp2p {MENDS}: "
            f"install that with: pip install libp2p=={MENDS}"
        )


def mend() -> None:
    """Put every remedy in its place."""
    check_version(version("libp2p"))
    # f-strings for every frame are built even so, but not written for every hostile byte
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    yamux.MAX_WINDOW_SIZE = MAX_WINDOW
    patches: dict[type, dict[str, Any]] = {
        Yamux: {
            "__init__": connections.init,
            "start": connections.start,
            "_cleanup_on_error": connections.cleanup,
            "_measure_rtt_loop": watching.watch,
            "_read_data_body": connections.read_data_body,
            "_write_frame": connections.write_frame,
        },
        YamuxStream: {
            "closed": streams.Flag("closed"),
            "read": streams.read,
            "send_closed": streams.Flag("send_closed"),
            "send_window": streams.SendWindow(),
            "write": streams.write,
        },
    }
    for kind, parts in patches.items():
        for name, part in parts.items():
            setattr(kind, name, part)


mend()
