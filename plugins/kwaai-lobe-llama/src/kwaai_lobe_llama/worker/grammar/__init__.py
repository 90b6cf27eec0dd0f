"""Grammars of llama.cpp for what an answer has to be: JSON that fits a schema, or calls of tools.

Nothing here touches llama.cpp. A schema is client's input, and a grammar of llama.cpp's that is
ambiguous takes time and memory without bounds; so only those are made whose derivations can be told
apart after a bounded number of characters: see :mod:`.checks`.
"""
