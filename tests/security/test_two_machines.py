"""Two machines and a cable with somebody on it: one command on each, and nothing to be read."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.security.support import ROOT, Sniffer, free_port, two_machines, until

PROGRAM = """
import sys
import numpy as np
import miniray as ray
ray.init(sys.argv[1])
marker = bytes.fromhex(sys.argv[2])

@ray.remote(resources={"far": 1})
class Far:
    def take(self, value): return bytes(value[:16])
    def connected(self):
        from miniray import api
        worker = api.current_worker()
        return [type(c._encryption).__name__ for c in worker.connections._by_number.values()]

far = Far.remote()
assert ray.get(far.take.remote(marker * 4)) == marker                      # inside the call
assert ray.get(far.take.remote(np.frombuffer(marker * 200_000, np.uint8))) == marker   # an object
for _ in range(200):
    kinds = ray.get(far.connected.remote())
    if kinds:
        break
assert ray.get(far.take.remote(marker * 4)) == marker                      # over the workers' own connection
print("kinds", kinds)
"""


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with two_machines() as (near, far, address, cable):
        folder = tmp_path_factory.mktemp("cable")
        sniffer = Sniffer(cable, folder / "heard", near)
        base = Path(os.environ["MINIRAY_TMPDIR"])
        environments = []
        for side in "ab":
            (base / side).mkdir(exist_ok=True)
            environments.append(
                os.environ | {"MINIRAY_TMPDIR": str(base / side), "MINIRAY_STORE_MAX_BYTES": "157286400"})
        made = {"near": near, "far": far, "address": address, "sniffer": sniffer,
                "environments": environments}
        try:
            yield made
        finally:
            for prefix, environment in ((far, environments[1]), (near, environments[0])):
                miniray(prefix, environment, "stop")
            sniffer.close()
            for side in "ab":
                (base / side).rmdir()


def miniray(
    prefix: list[str], environment: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-m", "miniray", *arguments]
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


def test_one_command_on_each_machine_and_nobody_can_read_what_passes(machines: dict[str, Any]) -> None:
    here, there = machines["environments"]
    started = miniray(
        machines["near"], here, "start", "--head", "--host", "0.0.0.0", "--port", "6379", "--num-cpus", "1")
    assert started.returncode == 0, started.stderr
    found = re.search(r"--join (mr1_\w+)", started.stdout)
    assert found and f"at {machines['address']}:6379" in started.stdout, started.stdout
    joined = miniray(
        machines["far"], there, "start", "--join", found[1], "--num-cpus", "1", "--resources", "far=1")
    assert joined.returncode == 0, joined.stderr

    marker = os.urandom(16)
    program = subprocess.run(
        [*machines["near"], sys.executable, "-c", PROGRAM, found[1], marker.hex()],
        env=here, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert program.returncode == 0, program.stderr
    assert "kinds ['Encryption'" in program.stdout, "the workers' own connection was used"

    heard = machines["sniffer"].heard()
    assert len(heard) > len(marker) * 200_000, "all of it was heard"
    token = Path(here["MINIRAY_TMPDIR"]).glob("miniray-*/token").__next__().read_text()
    assert marker not in heard
    for secret in (token, bytes.fromhex(token), found[1]):
        assert (secret.encode() if isinstance(secret, str) else secret) not in heard


def test_the_sniffer_would_have_noticed(machines: dict[str, Any]) -> None:
    marker = os.urandom(16)
    port = free_port()
    code = """
import socket, sys
marker, host, port = sys.argv[1:]
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(bytes.fromhex(marker), (host, int(port)))
"""
    command = [sys.executable, "-c", code, marker.hex(), machines["address"], str(port)]
    subprocess.run([*machines["far"], *command], check=True)
    until(lambda: marker in machines["sniffer"].heard())


@pytest.mark.slow
def test_a_port_scan_finds_three_ports_and_none_answers_a_stranger(machines: dict[str, Any]) -> None:
    """The head's, and the two of the node beside it; each closes on whoever does not speak TLS."""
    scan = """
import socket, sys
found = []
for port in range(1, 65536):
    with socket.socket() as sock:
        sock.settimeout(10)
        if sock.connect_ex((sys.argv[1], port)) == 0:
            sock.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n" + bytes(64))
            try:
                said = sock.recv(1000)
            except OSError:
                said = b""
            found.append((port, said[:1]))
print(found)
"""
    done = subprocess.run(
        [*machines["far"], sys.executable, "-c", scan, machines["address"]],
        capture_output=True, text=True, timeout=100, check=True)
    found = ast.literal_eval(done.stdout)
    assert len(found) == 3 and 6379 in dict(found), found
    assert all(said in (b"", b"\x15") for _, said in found), "nothing, or a TLS alert"
