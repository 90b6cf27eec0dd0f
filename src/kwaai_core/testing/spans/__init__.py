"""A real fake of an executor that runs spans: a toy model on :mod:`kwaai_core.span`.

Everything but the model is real: sockets, TLS, frames, heartbeats, sessions, fences, replays. Its
text depends on every row of every KV cache, so one that is wrong anywhere shows in it::

    executor = FakeSpanExecutor()
    async with executor.hold(TOY, [Span(0, 12)], exact=True) as host: ...

It runs in the loop of the test, on trio's clock, and can be told to be slow, to freeze, to die and
to refuse.
"""

from kwaai_core.testing.spans.executor import TOY, FakeSpanExecutor
from kwaai_core.testing.spans.heading import FakeSpanHead
from kwaai_core.testing.spans.hosting import FakeSpanHost

__all__ = ["TOY", "FakeSpanExecutor", "FakeSpanHead", "FakeSpanHost"]
