"""``kwaai demo``: one model over several nodes of this machine, of which one is killed."""
