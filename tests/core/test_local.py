"""The client of a running node: what it says when there is none."""

import socket
from pathlib import Path

import pytest

from kwaai_core.errors import NoNode
from kwaai_core.local import SOCKET, node_client, node_runs


def test_without_a_node(tmp_path: Path) -> None:
    assert not node_runs(tmp_path)
    with pytest.raises(NoNode, match="no node runs here .*: kwaai run"):
        node_client(tmp_path)


def test_a_socket_that_a_dead_node_left_is_no_node(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / SOCKET))
        listening.listen()
        assert node_runs(tmp_path)
        with node_client(tmp_path, timeout=3) as client:
            assert client.base_url == "http://localhost"
            assert client.timeout.read == 3
    assert (tmp_path / SOCKET).exists()
    assert not node_runs(tmp_path)


def test_a_path_too_long_for_a_socket_has_no_node(tmp_path: Path) -> None:
    assert not node_runs(tmp_path / ("x" * 200))
