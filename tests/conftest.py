"""Fixtures for every test, and the watch that nothing is left behind.

All sessions of a test run live in one private directory (MINIRAY_TMPDIR), and every process that
a test starts inherits a mark in its environment. After each module no marked process, no session
directory and no name in /dev/shm may remain; whatever does fails the module by name.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MARK = f"MINIRAY_TEST_MARK={uuid.uuid4().hex}"
SESSIONS = {Path(__file__).parent / folder for folder in ("api", "system")}
"""Where tests leave stores empty."""
SETTLE_S = 5.0
"""How long processes and directories may take to vanish after a module's last test."""

for _stale in Path("/tmp").glob("mrt-*-*"):  # of test runs that were killed
    if not Path("/proc", _stale.name.split("-")[1]).exists():
        shutil.rmtree(_stale, ignore_errors=True)
# Short, as the path of a unix socket ends at 107 bytes.
TMPDIR = tempfile.mkdtemp(prefix=f"mrt-{os.getpid()}-", dir="/tmp")
os.environ["MINIRAY_TMPDIR"] = TMPDIR
os.environ["XDG_STATE_HOME"] = f"{TMPDIR}/state"
os.environ.update([MARK.split("=", 1)])
for _variable in ("MINIRAY_ADDRESS", "RAY_ADDRESS", "MINIRAY_AUTH_TOKEN", "RAY_AUTH_TOKEN"):
    os.environ.pop(_variable, None)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:   # a shell's job in the background: drivers inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionfinish() -> None:
    shutil.rmtree(TMPDIR, ignore_errors=True)


def marked_processes() -> dict[int, str]:
    """Living processes that this test run started, directly or not: pid -> command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if MARK.encode() not in entry.joinpath("environ").read_bytes():
                continue
            state = entry.joinpath("stat").read_text().rpartition(")")[2].split()[0]
            command = entry.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # ended while we looked, or not ours to read
        if state != "Z" and "multiprocessing.resource_tracker" not in command:
            found[int(entry.name)] = command.strip() or f"({entry.name})"
    return found


def left_names() -> set[str]:
    """Session directories of this test run, and miniray's names in shared memory."""
    names = {str(path) for path in Path(TMPDIR).glob("miniray-*")}
    shared = Path("/dev/shm")
    if shared.is_dir():
        names.update(str(path) for path in shared.iterdir() if "miniray" in path.name)
    return names


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail the module whose processes, session directories or shared memory outlive it."""
    processes, names = marked_processes(), left_names()
    yield
    deadline = time.monotonic() + SETTLE_S
    while True:
        new_processes = {pid: text for pid, text in marked_processes().items() if pid not in processes}
        new_names = left_names() - names
        if not (new_processes or new_names) or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    for pid in new_processes:  # the next module starts clean in any case
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    assert not new_processes, f"processes left behind: {new_processes}"
    assert not new_names, f"files left behind: {sorted(new_names)}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Tests of whole sessions leave no object behind (see `leftovers`)."""
    yield
    if SESSIONS.isdisjoint(item.path.parents) or item.get_closest_marker("holds_objects"):
        return
    from tests.leftovers import left

    found = left()
    if found:
        pytest.fail("objects are left in stores:\n  " + "\n  ".join(found), pytrace=False)


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """`wait_until(condition, timeout_s=10)`: poll a condition instead of sleeping."""

    def wait(condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not so within {timeout_s} s: {condition}"
            time.sleep(0.01)

    return wait


@pytest.fixture
def ray_start(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A local session with 2 CPUs, ended after the test; indirect parameters override `init`."""
    import miniray as ray

    ray.init(**{"num_cpus": 2, **getattr(request, "param", {})})
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def ray_shared() -> Iterator[Any]:
    """One local session with 2 CPUs for a module whose tests do not disturb one another."""
    import miniray as ray

    ray.init(num_cpus=2)
    yield ray
    ray.shutdown()


@pytest.fixture
def ray_start_cluster() -> Iterator[Any]:
    """An empty `cluster_utils.Cluster`; the test adds nodes and calls `ray.init(cluster.address)`."""
    import miniray as ray
    from miniray.cluster_utils import Cluster

    cluster = Cluster()
    yield cluster
    ray.shutdown()
    cluster.shutdown()
