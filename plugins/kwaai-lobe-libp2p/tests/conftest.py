"""Nodes of the lobe, each on a loopback address."""
