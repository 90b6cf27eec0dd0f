"""``python -m kwaai_lobe_llama.worker FD PLAN [SOCKETS]``: serve a model over an inherited socket.

With a second one, over which sockets are handed over, the plan is one of spans.
"""

import os
import signal
import socket
import sys

import kwaai_lobe_llama.worker.cores  # noqa: F401  before OpenMP is loaded
from kwaai_lobe_llama.plan import Plan


def main() -> None:
    """Serve until the node's end of the socket is closed."""
    # a terminal's Ctrl-C, and what ends a whole service, are for the node, which then ends us
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.setswitchinterval(0.0005)  # the computing thread waits no longer for the reading one
    connection = socket.socket(fileno=int(sys.argv[1]))
    try:
        if len(sys.argv) > 3:  # each imports only what it needs
            from kwaai_lobe_llama.span_plan import SpanPlan
            from kwaai_lobe_llama.worker.span_server import SpanServer

            sockets = socket.socket(fileno=int(sys.argv[3]))
            SpanServer(connection, sockets).run(SpanPlan.from_json(sys.argv[2]))
        else:
            from kwaai_lobe_llama.worker.whole import WholeServer

            WholeServer(connection).run(Plan.from_json(sys.argv[2]))
    except (BrokenPipeError, ConnectionResetError):
        pass  # the node is gone
    sys.stdout.flush()
    os._exit(0)  # no orderly teardown of native threads


main()
