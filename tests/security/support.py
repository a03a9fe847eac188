"""What the tests of an encrypted cluster need: one on this machine, and machines that are namespaces."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from miniray.cluster_utils import _end
from miniray.runtime import host, launch
from miniray.runtime.daemon import HeadOptions, NodeOptions
from miniray.runtime.join_string import JoinString

ROOT = Path(__file__).resolve().parents[2]


def own_address() -> str:
    """An address of this machine that is not loopback; skips where there is none."""
    address = host.address_towards("192.0.2.1")
    if address.startswith("127."):
        pytest.skip("this machine has no network")
    return address


class Encrypted:
    """A head and nodes on this machine's own address: what leaves a machine is encrypted."""

    def __init__(self, **head: Any) -> None:
        self.host = own_address()
        self.token = head.pop("token", "") or secrets.token_hex(32)
        head.setdefault("storage", ":memory:")
        options = HeadOptions(
            host=self.host, port=0, token=self.token, driver_pid=os.getpid(), **head)
        self.head = launch.start_daemon("head", options)
        self.address: str = self.head["address"]
        self.nodes: list[dict[str, Any]] = []

    @property
    def join_string(self) -> JoinString:
        return JoinString(self.address, self.token, bytes.fromhex(self.head["fingerprint"]))

    def add_node(self, **options: Any) -> dict[str, Any]:
        given: dict[str, Any] = {
            "host": self.host, "gcs_address": self.address, "token": self.token, "num_cpus": 1,
            "fingerprint": self.head["fingerprint"], "object_store_memory": 150 << 20,
            "driver_pid": os.getpid(), **options}
        self.nodes.append(launch.start_daemon("node", NodeOptions(**given)))
        return self.nodes[-1]

    def close(self) -> None:
        for node in self.nodes:
            _end(node["pid"], graceful=True)
        _end(self.head["pid"], graceful=True)


def until(condition: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """Poll until it holds; returns what it returned."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not so within {timeout_s} s"
        time.sleep(0.02)


class Sniffer:
    """Everything that passes an interface, as one heap of bytes; a process of its own in a namespace."""

    CODE = """
import socket, sys
tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
tap.setsockopt(socket.SOL_SOCKET, 33, 256 << 20)  # SO_RCVBUFFORCE: nothing is missed
tap.bind((sys.argv[1], 0))
print("ready", flush=True)
with open(sys.argv[2], "wb") as out:
    while True:
        out.write(tap.recv(1 << 17))
        out.flush()
"""

    def __init__(self, interface: str, path: Path, prefix: list[str]) -> None:
        self.path = path
        command = [*prefix, sys.executable, "-c", self.CODE, interface, str(path)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None and self._process.stdout.readline() == "ready\n"

    def heard(self) -> bytes:
        return self.path.read_bytes()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def two_machines() -> Iterator[tuple[list[str], list[str], str, str]]:
    """Two network namespaces with a cable: how to run a command in each, and their addresses.

    Skips where this user may not make them.
    """
    mark = os.getpid()
    names = [f"mr{mark}a", f"mr{mark}b"]
    addresses = ["10.203.7.1", "10.203.7.2"]
    if os.getuid() != 0:
        pytest.skip("network namespaces need root")
    try:
        for name in names:
            _run("ip", "netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {error}")
    try:
        inside = [["nsenter", f"--net=/run/netns/{name}"] for name in names]
        _run("ip", "link", "add", f"v{mark}a", "netns", names[0], "type", "veth",
             "peer", "name", f"v{mark}b", "netns", names[1])
        for index, side in enumerate("ab"):
            _run(*inside[index], "ip", "link", "set", "lo", "up")
            _run(*inside[index], "ip", "addr", "add", f"{addresses[index]}/24", "dev", f"v{mark}{side}")
            _run(*inside[index], "ip", "link", "set", f"v{mark}{side}", "up")
            _run(*inside[index], "ip", "route", "add", "default", "dev", f"v{mark}{side}")
        yield inside[0], inside[1], addresses[0], f"v{mark}a"
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
