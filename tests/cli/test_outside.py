"""A driver outside the cluster: the whole API through the head's port alone, and nothing left of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.cli.test_cluster import ROOT, start_head
from tests.system.support import Script, eventually, kill

Run = Callable[..., subprocess.CompletedProcess[str]]

PROGRAM = """
import sys
import numpy
import miniray as ray
from miniray.util.placement_group import placement_group

ray.init(sys.argv[1])
here = ray.get_runtime_context().get_node_id()

@ray.remote
def add(a, b): return a + b

@ray.remote(num_cpus=0)
def where(): return ray.get_runtime_context().get_node_id()

@ray.remote
class Counter:
    def __init__(self): self.n = 0
    def add(self, k): self.n += k; return self.n
    def callback(self, refs): return ray.get(refs[0])

@ray.remote(num_returns="streaming")
def count(n):
    yield from range(n)

assert ray.get(add.remote(add.remote(1, 2), 3)) == 6
assert ray.get(where.remote()) != here, "nothing is placed on the driver's machine"
counter = Counter.remote()
assert ray.get([counter.add.remote(1) for _ in range(50)]) == list(range(1, 51))
large = numpy.arange(SIZE, dtype=numpy.float64)
reference = ray.put(large)

@ray.remote
def total(array): return float(array.sum())

@ray.remote
def ones(n): return numpy.ones(n)

assert ray.get(total.remote(reference)) == large.sum()
assert (ray.get(counter.callback.remote([reference])) == large).all()
assert ray.get(ones.remote(SIZE)).sum() == SIZE
assert [ray.get(item) for item in count.remote(5)] == [0, 1, 2, 3, 4]
group = placement_group([{"CPU": 1}])
ray.get(group.ready())
try:
    ray.get(add.remote(1, "x"))
except TypeError:
    pass
print("all well", flush=True)
END
"""


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a machine without a node: other session directories, and the token."""
    directory = Path(os.environ["MINIRAY_TMPDIR"], f"out{os.urandom(2).hex()}")
    directory.mkdir()
    yield dict(os.environ, MINIRAY_TMPDIR=str(directory))
    eventually(lambda: not list(directory.iterdir()), "the client's session directory goes")
    directory.rmdir()


def token_of(environment: dict[str, str]) -> str:
    return next(Path(environment["MINIRAY_TMPDIR"]).glob("*/token")).read_text()


def processes_of(directory: str) -> list[psutil.Process]:
    """All whose sessions are in this directory."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MINIRAY_TMPDIR") == directory and process.pid != os.getpid():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_the_whole_api_works_through_the_heads_port(
    miniray: Run, environment: dict[str, str], outside: dict[str, str]
) -> None:
    address = start_head(miniray, "--num-cpus", "2")
    code = PROGRAM.replace("SIZE", str(100 << 17)).replace("END", "ray.shutdown()")
    done = subprocess.run(
        [sys.executable, "-c", code, f"miniray://{address}"], cwd=ROOT, capture_output=True, text=True,
        env=outside | {"MINIRAY_AUTH_TOKEN": token_of(environment)}, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "all well" in done.stdout, done.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_client_that_is_killed_leaves_nothing_and_speaks_to_one_port_only(
    miniray: Run, environment: dict[str, str], outside: dict[str, str], number: int
) -> None:
    address = start_head(miniray, "--num-cpus", "2")
    code = PROGRAM.replace("SIZE", "100000").replace("END", "ray.get(counter.add.remote(1)); input()")
    client = subprocess.Popen(
        [sys.executable, "-c", code, f"ray://{address}"], cwd=ROOT, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, start_new_session=True,
        env=outside | {"MINIRAY_AUTH_TOKEN": token_of(environment)},
    )  # fmt: skip
    assert client.stdout is not None and client.stdin is not None
    assert client.stdout.readline() == "all well\n"
    running = processes_of(outside["MINIRAY_TMPDIR"])
    ours = {connection.laddr.port for process in running for connection in process.net_connections("tcp")}
    remote = {
        connection.raddr.port for process in running for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_ESTABLISHED and connection.raddr.port not in ours
    }  # fmt: skip
    assert remote == {int(address.rpartition(":")[2])}
    client.send_signal(number)
    client.wait(60)
    client.stdin.close()
    client.stdout.close()
    eventually(lambda: not processes_of(outside["MINIRAY_TMPDIR"]), "its processes end")
    deadline = time.monotonic() + 60
    while "dead" not in miniray("list", "nodes").stdout:
        assert time.monotonic() < deadline
    assert "alive" in miniray("list", "nodes").stdout and "running" not in miniray("list", "jobs").stdout


def tried(outside: dict[str, str], call: str, **more: str) -> subprocess.CompletedProcess[str]:
    """`miniray.init` outside, with what it is called with."""
    return subprocess.run(
        [sys.executable, "-c", f"import miniray; miniray.init({call})"],
        cwd=outside["MINIRAY_TMPDIR"], env=outside | {"PYTHONPATH": str(ROOT)} | more,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_who_cannot_come_in_is_told_why(
    miniray: Run, environment: dict[str, str], outside: dict[str, str], tmp_path: Path
) -> None:
    where = f"miniray://{start_head(miniray)}"
    refused = tried(outside, repr(where), MINIRAY_AUTH_TOKEN="wrong")
    assert refused.returncode == 1 and re.search("ConnectionError: .*token", refused.stderr)
    token = {"MINIRAY_AUTH_TOKEN": token_of(environment)}
    refused = tried(outside, f"{where!r}, num_cpus=2", **token)
    assert re.search("ValueError: .*offers it nothing: num_cpus", refused.stderr)
    refused = tried(outside, repr(where), PYTHONPATH=of_protocol(99, tmp_path), **token)
    assert refused.returncode == 1
    assert re.search("ConnectionError: .*speaks protocol 99: install the same miniray", refused.stderr)


def of_protocol(number: int, directory: Path) -> str:
    """The same miniray, but that it speaks another protocol; for PYTHONPATH."""
    shutil.copytree(ROOT / "miniray", directory / "miniray", copy_function=os.symlink)
    versions = directory / "miniray" / "runtime" / "versions.py"
    versions.unlink()
    text = (ROOT / "miniray" / "runtime" / "versions.py").read_text()
    versions.write_text(re.sub("^DAEMONS = .*", f"DAEMONS = {number}", text, flags=re.MULTILINE))
    return str(directory)


OWN_NODE = """
ray.init(os.environ["JOIN"], object_store_memory=100 << 20, configure_logging=False)
context = ray.get_runtime_context()

@ray.remote
def where(): return ray.get_runtime_context().get_node_id()

say(node=context.get_node_id(), far=ray.get(where.remote()))
input()
say(far=ray.get(where.remote()))
"""


@pytest.mark.slow
def test_drivers_outside_come_by_a_join_string_and_each_has_its_own_node(
    miniray: Run, outside: dict[str, str]
) -> None:
    start_head(miniray)
    environment = {**outside, "JOIN": miniray("token", "show").stdout.strip()}
    with Script(OWN_NODE, **environment) as first, Script(OWN_NODE, **environment) as second:
        one, two = first.hear(), second.hear()
        assert one["far"] == two["far"] and len({one["node"], two["node"], one["far"]}) == 3
        auto = tried(outside, "'auto'")
        assert "ConnectionError: Could not find any running" in auto.stderr, "their nodes are nobody else's"
        kill(first.process.pid)
        second.go_on()
        assert second.hear() == {"far": one["far"]}
        second.wait()
