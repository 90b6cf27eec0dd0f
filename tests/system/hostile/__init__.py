"""A hostile peer, and what it does to a node through real sockets.

It speaks the wire protocols of libp2p by itself, in a few hundred lines and without the library
that the nodes use, so that it can break every one of them at every layer. ``python -m hostile
--help``, in this folder's parent, runs the whole campaign; ``test_hostile.py`` runs a short one.
"""
