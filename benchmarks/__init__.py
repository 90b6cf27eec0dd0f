"""Measures kwaai against plain llama.cpp, and what starting it takes: ``tox -e bench``.

*Plain* is a bare loop around ``llama_decode`` with llama.cpp's own greedy sampler, in a process of
its own (:mod:`benchmarks.engine`). Every cell is measured in turn with its counterpart (A B A B),
so that a slow minute of the machine slows both, and counts only if both gave the same greedy text.
"""
