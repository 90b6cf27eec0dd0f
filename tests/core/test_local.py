"""The client of a running node: what it says when there is none."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kwaai_core import local
from kwaai_core.errors import NoNode
from kwaai_core.local import SOCKET, listener_on, node_client, node_runs


def test_without_a_node(tmp_path: Path) -> None:
    assert not node_runs(tmp_path)
    none = pytest.raises(NoNode, match="no node runs here .*: kwaai run")
    with none, node_client(tmp_path):
        pass


def test_a_socket_that_a_dead_node_left_is_no_node(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / SOCKET))
        listening.listen()
        assert node_runs(tmp_path)
    assert (tmp_path / SOCKET).exists()
    assert not node_runs(tmp_path)


def test_a_path_too_long_for_a_socket_has_no_node(tmp_path: Path) -> None:
    assert not node_runs(tmp_path / ("x" * 200))


def test_a_node_that_does_not_answer_is_said(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / SOCKET))
        listening.listen()
        silent = pytest.raises(NoNode, match="has not answered for 0.01 s")
        with silent, node_client(tmp_path, timeout=0.01):
            pytest.fail("it answered")


@pytest.mark.parametrize("timeout", [120.0, None])
def test_a_node_that_is_stopped_is_not_waited_for_as_long_as_what_it_does(
    tmp_path: Path, timeout: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "ANSWER_SECONDS", 0.01)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / SOCKET))
        listening.listen()
        silent = pytest.raises(NoNode, match="has not answered for 0.01 s: it is stopped")
        with silent, node_client(tmp_path, timeout=timeout):
            pytest.fail("it answered")


@contextmanager
def answering(state: Path, *answers: bytes) -> Iterator[None]:
    """Something on the socket of a node that answers the requests of one connection in turn."""

    def answer() -> None:
        listening.accept()[0].close()  # of who asks whether there is a node
        connection, _ = listening.accept()
        with connection:
            for body in answers:
                connection.recv(4096)
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                connection.sendall(head + body)
            connection.recv(4096)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(state / SOCKET))
        listening.listen()
        thread = threading.Thread(target=answer)
        thread.start()
        yield
        thread.join()


def test_a_node_that_answers_has_the_time_that_is_asked_for(tmp_path: Path) -> None:
    with answering(tmp_path, b"", b"found"), node_client(tmp_path, timeout=3) as client:
        assert client.timeout.read == 3
        assert client.get("/peers").text == "found"


def test_an_error_of_the_block_is_its_own(tmp_path: Path) -> None:
    with answering(tmp_path, b""), pytest.raises(ZeroDivisionError), node_client(tmp_path):
        raise ZeroDivisionError


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc")
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_who_has_a_port_is_known(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listening:
        listening.bind((address, 0))
        port = listening.getsockname()[1]
        assert listener_on(port) == ""
        listening.listen()
        assert listener_on(port).endswith(f"(process {os.getpid()})")
    assert listener_on(port) == ""
