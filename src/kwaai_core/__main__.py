"""``python -m kwaai_core``: the command `kwaai`."""

from kwaai_core.cli import main

main()
