"""What the tests with clients of others share: a node, and nothing of the world beyond loopback."""

import gc
import os
import sys
import warnings
from collections.abc import Callable, Iterator

import httpx
import pytest
from real_kwaai import Home, Running

SMOLLM2 = "smollm2-135m-instruct"
NOWHERE = "http://127.0.0.1:9"
"""Nobody listens on the port of “discard”, so a client that asks this proxy fails at once."""


def only_loopback(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook that lets this process connect to loopback and Unix sockets alone."""
    if event == "socket.connect":
        address = arguments[1]
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1"):
            raise PermissionError(f"these tests are offline, and somebody wants {address}")


def pytest_configure(config: pytest.Config) -> None:
    """Before any client is imported, since some of them ask the net for things when they are."""
    # connections that they leave to the garbage collector are their own affair
    config.addinivalue_line("filterwarnings", "ignore:unclosed:ResourceWarning")
    os.environ |= {
        "HTTP_PROXY": NOWHERE,
        "HTTPS_PROXY": NOWHERE,
        "NO_PROXY": "127.0.0.1,localhost",
    }
    sys.addaudithook(only_loopback)


@pytest.fixture(scope="session", autouse=True)
def tidy() -> Iterator[None]:
    """Collect what clients have left open, before pytest takes it for ours."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A node with the bundled model and every lobe of the environment."""
    with Home(tmp_path_factory.mktemp("node")).run() as running:
        yield running


@pytest.fixture(scope="session")
def node(running: Running) -> str:
    """The URL of that node."""
    return str(running.url)


@pytest.fixture(scope="session")
def at_work(running: Running) -> Callable[[bool], None]:
    """Waits until that node computes an answer, or computes none."""
    socket = str(running.log.parent / "state" / "node.sock")

    def computes() -> bool:
        with httpx.Client(transport=httpx.HTTPTransport(uds=socket)) as client:
            lobes = client.get("http://localhost/lobes").json()
        workers = [worker for lobe in lobes for worker in lobe["facts"].get("workers", [])]
        return any(worker["requests"] for worker in workers)

    return lambda wanted: running.wait_for(lambda: computes() is wanted)
