"""A node that other machines reach: two hosts with addresses of their own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.hosts import Host, Net, missing

ASK = """
import httpx, json, sys
url, name, key = sys.argv[1:]
headers = {"host": name} | ({"authorization": f"Bearer {key}"} if key else {})
answer = httpx.get(f"{url}/v1/models", headers=headers)
print(json.dumps([answer.status_code, answer.json()]))
"""


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    if why := missing():
        pytest.skip(why)
    with Net(tmp_path) as made:
        yield made


def ask(host: Host, url: str, name: str, key: str = "") -> int:
    """The status that a client on this host is answered with, who calls the node by that name."""
    command = host.command(sys.executable, "-c", ASK, url, name, key)
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    status, document = json.loads(done.stdout)
    assert ("error" in document) == (status != 200)
    return int(status)


def test_another_machine_comes_in_with_a_key_and_by_a_name_of_the_node(net: Net) -> None:
    node, other = net.host("one"), net.host("two")
    (node.home.folder / "kwaai.toml").write_text('[server]\nhosts = ["node.example"]\n')
    without = node.call("run", "--lobes", "", "--host", "0.0.0.0")
    assert without.returncode == 2
    assert "there is no API key yet: make one first, kwaai keys create NAME" in without.stderr
    key = node.kwaai("keys", "create", "other").strip()
    with node.run("--lobes", "", "--host", "0.0.0.0"):
        log = (node.home.folder / "run.log").read_text()
        assert "other machines reach this node without TLS" in log
        (port,) = re.findall(r"http://0\.0\.0\.0:(\d+)/v1", log)
        url = f"http://{node.address}:{port}"
        for name in (f"{node.address}:{port}", "node.example"):
            assert ask(other, url, name, key) == 200
            assert ask(other, url, name) == 401
        for name in ("evil.example", other.address, "0.0.0.0"):
            assert ask(other, url, name, key) == 403
        node.kwaai("keys", "revoke", "other")
        assert ask(other, url, "node.example", key) == 401
