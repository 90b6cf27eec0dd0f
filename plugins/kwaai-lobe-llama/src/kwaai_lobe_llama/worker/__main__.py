"""``python -m kwaai_lobe_llama.worker FD PLAN``: serve one model over an inherited socket."""

import os
import signal
import socket
import sys

from kwaai_lobe_llama.plan import Plan
from kwaai_lobe_llama.worker.whole import WholeServer


def main() -> None:
    """Serve until the node's end of the socket is closed."""
    # a terminal's Ctrl-C, and what ends a whole service, are for the node, which then ends us
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.setswitchinterval(0.0005)  # the computing thread waits no longer for the reading one
    connection = socket.socket(fileno=int(sys.argv[1]))
    try:
        WholeServer(connection).run(Plan.from_json(sys.argv[2]))
    except (BrokenPipeError, ConnectionResetError):
        pass  # the node is gone
    sys.stdout.flush()
    os._exit(0)  # no orderly teardown of native threads


main()
