"""The span protocol ``/kwaai/span/1``, sans-I/O: one session of a model over spans of its blocks.

The node that answers a request is the *owner* of its session: it keeps the tokens, the head and
the sampler. *Hosts* run spans of blocks and keep the KV cache. The owner sends hidden states to
the host of the first span, gets its output back, sends that to the host of the next, and so on;
what it sent it remembers, so that another host can be brought to the same state, bit for bit,
when one is lost.

Nothing in this package reads a clock, a socket or a model. :class:`~kwaai_core.span.host.Host` and
:class:`~kwaai_core.span.chain.Chain` take frames and times and return frames and calls to compute,
so that the executor's worker, the simulation and the fuzzer all run this same code.

=============  ==================================================================================
`frames`       what travels on a link, and a reader that believes nothing
`tags`         proofs that two positions stand for the same tokens
`host`         the host's side: sessions, positions, epochs, calls
`journal`      what was sent over a boundary, kept for who must be brought to the same state
`chain`        the owner's side: steps through the hops of a route, fences, replays
`hosted`       one session at its host
`recording`    the tokens and shapes from which any lost state is computed again
`hop`          one host of a route, as the owner sees it
`roles`        what an executor that runs spans offers a router
`watch`        when a link is silent and when a step is slow
=============  ==================================================================================
"""
