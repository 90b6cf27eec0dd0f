"""A node of ours as it is by default: for members of its groups alone."""

import trio

from hostile.kwaai import SETTINGS, main

if __name__ == "__main__":
    trio.run(main, SETTINGS)
