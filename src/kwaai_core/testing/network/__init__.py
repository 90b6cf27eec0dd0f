"""The role transport in memory: a simulated network, on trio's clock, from a seed.

It passes the same checks as a transport over sockets, and runs an hour of hundreds of nodes'
troubles in a second::

    network = Network(seed, Line(latency=0.02, jitter=0.01, bandwidth=10e6))
    async with network.node(identity) as transport: ...
    network.freeze(identity.peer_id)
"""

from kwaai_core.testing.network.lines import SILENCE, Line
from kwaai_core.testing.network.network import Network
from kwaai_core.testing.network.streams import WINDOW, MemoryStream
from kwaai_core.testing.network.transport import STREAMS, MemoryTransport

__all__ = ["SILENCE", "STREAMS", "WINDOW", "Line", "MemoryStream", "MemoryTransport", "Network"]
