"""The face of a node: its HTTP server, the door before it, and what is behind each path.

What a request and an answer are on the wire is in :mod:`kwaai_core.openai`; here they meet the
node.
"""
