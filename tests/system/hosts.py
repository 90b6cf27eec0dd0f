"""Hosts with addresses of their own on one machine: network namespaces joined by virtual cables.

Everything that is made here is in namespaces of its own, without a way out of the machine, and goes
when the context ends. It takes root, iproute2, and nftables for the routers.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.system.real_kwaai import KWAAI, Home

START_S = 60.0
_ROUTER = """
table ip nat {
  chain out {
    type nat hook postrouting priority 100
    oifname "wan" RULE
  }
}
table ip filter {
  chain in {
    type filter hook input priority 0; policy drop
    iifname "lan" accept
    ct state established,related accept
  }
  chain through {
    type filter hook forward priority 0; policy drop
    iifname "lan" accept
    ct state established,related accept
  }
}
"""


def ip(*words: str) -> None:
    """Errors: ``OSError`` with what it said."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@functools.cache
def missing(*, routers: bool = False) -> str | None:
    """Why there can be no hosts here, None where there can."""
    for tool, package in {"ip": "iproute2", **({"nft": "nftables"} if routers else {})}.items():
        if shutil.which(tool) is None:
            return f"there is no {tool} here: install the package {package}"
    name = f"kwaai{os.getpid()}try"
    try:
        ip("netns", "add", name)
        ip("netns", "del", name)
    except OSError as error:
        return f"no network namespaces can be made here, which takes root: {error}"
    return None


@dataclass(frozen=True)
class Host:
    """A namespace, and a `kwaai` whose home is there; without a name it is this machine itself.

    ``address`` is the host's own, which others reach unless a router is in the way.
    """

    name: str
    address: str
    home: Home

    def command(self, *words: str | Path) -> list[str | Path]:
        return [*(["ip", "netns", "exec", self.name] if self.name else []), *words]

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of ``kwaai`` to its end."""
        return subprocess.run(
            self.command(KWAAI, *words),
            env=self.home.environment,
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )

    def kwaai(self, *words: str) -> str:
        """What a command of ``kwaai`` prints; it must succeed."""
        done = self.call(*words)
        assert done.returncode == 0, f"kwaai {' '.join(words)}: {done.stderr or done.stdout}"
        return done.stdout

    def peers(self) -> list[dict[str, Any]]:
        """What ``kwaai peers ls --json`` says."""
        found: list[dict[str, Any]] = json.loads(self.kwaai("peers", "ls", "--json"))
        return found

    def settings(self, **libp2p: object) -> None:
        """Write ``kwaai.toml``: the table of the transport."""
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in libp2p.items()]
        (self.home.folder / "kwaai.toml").write_text("".join(["[libp2p]\n", *lines]))

    @contextlib.contextmanager
    def run(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """``kwaai run`` on this host while the context is open."""
        log = self.home.folder / "run.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                self.command(KWAAI, "run", "--port", "0", *words),
                env=self.home.environment,
                stdout=out,
                stderr=out,
            )
        try:
            wait_for(lambda: "http://" in log.read_text(), process, log)
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


def this_machine(folder: Path) -> Host:
    """A host that is this machine itself, with a home in the folder."""
    folder.mkdir()
    return Host("", "127.0.0.1", Home(folder))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the condition holds; fails when the process ends or takes too long."""
    deadline = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < deadline, f"took too long:\n{log.read_text()}"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
            raise AssertionError(f"kwaai run ended:\n{log.read_text()}")


@dataclass
class Net:
    """A switch that hosts and routers hang on; all of it is gone when the context ends."""

    folder: Path
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _made: int = 0

    def __enter__(self) -> Self:
        self._switch = self._namespace("switch")
        ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self._switch, "link", "set", "bridge", "up")
        return self

    def __exit__(self, *args: object) -> None:
        self._stack.close()

    def host(self, name: str) -> Host:
        """A host on the switch."""
        inside = self._namespace(name)
        return self._home(inside, name, self._plug(inside, "wan"))

    def host_behind_router(self, name: str, rule: str = "masquerade") -> Host:
        """A host in a network of its own, whose router hides it so and lets nothing in."""
        router, inside = self._namespace(f"{name}r"), self._namespace(name)
        self._plug(router, "wan")
        lan = f"10.78.{self._made}"
        self._cable(router, "lan", inside, "wan")
        self._address(router, "lan", f"{lan}.1/24")
        self._address(inside, "wan", f"{lan}.2/24")
        ip("-n", inside, "route", "add", "default", "via", f"{lan}.1")
        exec_ = ["ip", "netns", "exec", router]
        subprocess.run([*exec_, "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True)
        rules = _ROUTER.replace("RULE", rule)
        subprocess.run([*exec_, "nft", "-f", "-"], input=rules, text=True, check=True)
        return self._home(inside, name, f"{lan}.2")

    def _home(self, inside: str, name: str, address: str) -> Host:
        folder = self.folder / name
        folder.mkdir()
        return Host(inside, address, Home(folder))

    def _namespace(self, name: str) -> str:
        full = f"kwaai{os.getpid()}{name}"
        ip("netns", "add", full)
        self._stack.callback(ip, "netns", "del", full)
        ip("-n", full, "link", "set", "lo", "up")
        return full

    def _plug(self, inside: str, device: str) -> str:
        """A cable to the switch; the address that the other end has then."""
        self._made += 1
        self._cable(inside, device, self._switch, f"port{self._made}")
        ip("-n", self._switch, "link", "set", f"port{self._made}", "master", "bridge")
        address = f"10.77.0.{self._made}"
        self._address(inside, device, f"{address}/24")
        return address

    def _cable(self, one: str, device: str, other: str, socket: str) -> None:
        ip("-n", one, "link", "add", device, "type", "veth", "peer", "name", socket, "netns", other)
        ip("-n", one, "link", "set", device, "up")
        ip("-n", other, "link", "set", socket, "up")

    def _address(self, inside: str, device: str, address: str) -> None:
        ip("-n", inside, "address", "add", address, "dev", device)
