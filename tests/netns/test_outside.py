"""A driver, and jobs, from a host that reaches one port of the cluster; the head is killed meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.cluster import PORT, ROOT, NetCluster
from tests.netns.conftest import directory
from tests.netns.network import Host, Network, missing
from tests.system.support import Script, alive, eventually, kill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Outside:
    """Two hosts with a cluster, and one that reaches its head's port."""

    def __init__(self, network: Network) -> None:
        *inside, self.host = network.hosts
        self.cluster = NetCluster(inside, [1, 1], directory(), store_bytes=450 << 20, keeps_tables=True)
        for host in inside:
            host.admit_to(PORT if host is inside[0] else 1, self.host)
        self._home = directory()
        os.makedirs(self._home)

    @property
    def environment(self) -> dict[str, str]:
        return {"MINIRAY_TMPDIR": self._home, "XDG_STATE_HOME": f"{self._home}/state",
                "PYTHONPATH": str(ROOT), "MINIRAY_ADDRESS": self.cluster.join_string}  # fmt: skip

    def driver(self, code: str) -> Script:
        return Script(PROGRAM + code, enter=self.host.enter, **self.environment)

    def command(self, *arguments: str) -> list[str]:
        return [*self.host.enter, sys.executable, "-m", "miniray", *arguments]

    def run(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            self.command(*arguments), env=os.environ | self.environment, capture_output=True, text=True,
            timeout=120, check=False)  # fmt: skip
        assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def is_clean(self) -> bool:
        return not self.host.processes() and not list(Path(self._home).glob("miniray-*"))


PROGRAM = """
import numpy
from miniray.util.placement_group import placement_group, remove_placement_group
from miniray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as In

def connect(**options):
    ray.init(configure_logging=False, **options)

def on(name):
    return {"resources": {name: 0.1}, "num_cpus": 0}

@ray.remote(num_cpus=0, max_retries=0)
def where(): return ray.util.get_node_ip_address()

@ray.remote(num_cpus=0, max_retries=0)
def total(array): return int(array.sum())

@ray.remote(num_cpus=0, max_retries=0)
def ones(n): return numpy.ones(n, numpy.uint8)

@ray.remote(num_cpus=0, max_retries=0)
def slow(n): time.sleep(0.05); return n

@ray.remote(num_cpus=0, num_returns="streaming", max_retries=0)
def count(n):
    for i in range(n):
        time.sleep(0.02)
        yield i

@ray.remote(num_cpus=0)
class Counter:
    def __init__(self): self.n = 0
    def add(self): self.n += 1; return self.n
    def pid(self): return os.getpid()

NAMES = ["h0", "h1"]
"""


@pytest.fixture(scope="module")
def outside() -> Iterator[Outside]:
    if missing():
        pytest.skip(missing())
    with Network(3) as network:
        made = Outside(network)
        try:
            yield made
        finally:
            made.cluster.close()


@pytest.fixture(autouse=True)
def nothing_stays(outside: Outside) -> Iterator[None]:
    yield
    eventually(outside.is_clean, "the host outside is as it was")


def addresses(hosts: list[Host]) -> list[str]:
    return [host.address for host in hosts]


def test_everything_passes_the_heads_port(outside: Outside, tmp_path: Path) -> None:
    (tmp_path / "its_own.py").write_text("WORD = open('word').read()")
    (tmp_path / "word").write_text("carried along")
    inside = addresses(outside.cluster.hosts)
    with outside.driver(f"connect(runtime_env={{'working_dir': {str(tmp_path)!r}}})" """
say(tasks=ray.get([where.options(**on(name)).remote() for name in NAMES]))
counters = [Counter.options(**on(name)).remote() for name in NAMES]
say(actors=[ray.get([counter.add.remote() for _ in range(300)])[-1] for counter in counters])
say(items=[[ray.get(item) for item in count.options(**on(name)).remote(20)] for name in NAMES])
group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
ray.get(group.ready(), timeout=60)
inside = [where.options(num_cpus=1, scheduling_strategy=In(group, i)).remote() for i in range(2)]
say(group=sorted(ray.get(inside)))
remove_placement_group(group)

@ray.remote(num_cpus=0)
def word():
    import its_own
    return its_own.WORD

say(words=ray.get([word.options(**on(name)).remote() for name in NAMES]))
large = ray.put(numpy.ones(200_000_000, numpy.uint8))
say(there=ray.get([total.options(**on(name)).remote(large) for name in NAMES], timeout=200))
del large
say(here=[int(ray.get(ones.options(**on(name)).remote(200_000_000), timeout=200).sum()) for name in NAMES])
""") as driver:
        assert driver.hear() == {"tasks": inside}
        assert driver.hear() == {"actors": [300, 300]}
        assert driver.hear() == {"items": [list(range(20))] * 2}
        assert driver.hear() == {"group": inside}
        assert driver.hear() == {"words": ["carried along"] * 2}
        assert driver.hear() == {"there": [200_000_000] * 2}
        assert driver.hear() == {"here": [200_000_000] * 2}
        assert driver.wait() == 0


def test_a_killed_driver_takes_all_that_is_its_own_along(outside: Outside) -> None:
    with outside.driver("""connect()
counters = [Counter.options(**on(name)).remote() for name in NAMES]
group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
ray.get(group.ready(), timeout=60)

@ray.remote(num_cpus=0)
def forever(teller): ray.get(teller.tell.remote(os.getpid())); time.sleep(1000)

@ray.remote(num_cpus=0)
class Teller:
    def __init__(self): self.told = []
    def tell(self, pid): self.told.append(pid)
    def all(self): return self.told

teller = Teller.remote()
running = [forever.options(**on(name)).remote(teller) for name in NAMES]
while len(told := ray.get(teller.all.remote())) < 2: time.sleep(0.02)
large = [ray.get([ones.options(**on(name)).remote(20_000_000)]) for name in NAMES]
say(job=ray.get_runtime_context().get_job_id(),
    pids=told + ray.get([counter.pid.remote() for counter in counters]))
input()
""") as driver:
        heard = driver.hear()
        assert all(alive(pid) for pid in heard["pids"])
        kill(driver.process.pid)
    eventually(lambda: not any(alive(pid) for pid in heard["pids"]), "its tasks and actors end")
    head = outside.cluster.hosts[0]
    jobs = json.loads(outside.cluster.run(head, "list", "jobs", "--json"))
    assert next(job for job in jobs if job["job"] == heard["job"])["state"] == "failed"
    eventually(lambda: "0 of 2 CPU" in outside.cluster.run(head, "status"), "its placement group is gone")


def test_work_goes_on_over_a_restart_of_the_head(outside: Outside) -> None:
    with outside.driver("""connect()
counter = Counter.options(**on("h1")).remote()
items = count.options(**on("h1")).remote(100)
mine = ray.put(numpy.ones(50_000_000, numpy.uint8))
ray.get([counter.add.remote(), next(items)])
tasks = [slow.options(**on(NAMES[n % 2])).remote(n) for n in range(200)]
calls = [counter.add.remote() for _ in range(200)]
copies = [total.options(**on(name)).remote(mine) for name in NAMES]
say(ready=True)
input()
say(tasks=ray.get(tasks, timeout=100) == list(range(200)),
    calls=ray.get(calls, timeout=100) == list(range(2, 202)),
    copies=ray.get(copies, timeout=100),
    items=[ray.get(item, timeout=100) for item in items] == list(range(1, 100)))
say(actor=ray.get(Counter.remote().add.remote(), timeout=100),
    here=len(ray.get(ones.options(**on("h1")).remote(20_000_000), timeout=100)))
""") as driver:
        assert driver.hear()["ready"]
        outside.cluster.kill_head()
        outside.cluster.start_head_again()
        driver.go_on()
        assert driver.hear() == {"tasks": True, "calls": True, "copies": [50_000_000] * 2, "items": True}
        assert driver.hear() == {"actor": 1, "here": 20_000_000}
        assert driver.wait() == 0


def test_jobs_go_on_and_are_followed_and_stopped_over_a_restart_of_the_head(
    outside: Outside, tmp_path: Path
) -> None:
    pids, enough = tmp_path / "pids", tmp_path / "enough"
    counting = f"n=0; until test -e {enough}; do n=$((n+1)); echo line $n; sleep 0.2; done; exit 3"
    child = f"setsid sleep 1001 & echo $! >> {pids}; sleep 1002"
    family = f"trap '' TERM; setsid sh -c '{child}' & echo $! >> {pids}; wait"

    def job(*arguments: str, code: int = 0) -> str:
        return outside.cluster.run(outside.cluster.hosts[0], "job", *arguments, code=code)

    outside.run("job", "submit", "--no-wait", "--submission-id=counts", "--", "sh", "-c", counting)
    job("submit", "--no-wait", "--submission-id=family", "--", "sh", "-c", family)
    assert "'counts' exists already" in job("submit", "--submission-id=counts", "--", "true", code=1)
    eventually(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    followed = subprocess.Popen(
        outside.command("job", "logs", "counts", "--follow"), env=os.environ | outside.environment,
        stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert followed.stdout is not None
    lines = [followed.stdout.readline()]
    outside.cluster.kill_head()
    outside.cluster.start_head_again()
    assert "was stopped" in job("stop", "family")
    assert not any(alive(int(pid)) for pid in pids.read_text().split())
    assert "counts': RUNNING" in job("status", "counts")
    enough.touch()
    lines += list(followed.stdout)
    end = lines.index("Job 'counts' failed\n")
    assert end > 1 and lines[:end] == [f"line {n}\n" for n in range(1, end + 1)]
    assert followed.wait(60) == 1
    followed.stdout.close()
    assert "Exit code: 3" in job("status", "counts")
    assert job("logs", "counts").splitlines(keepends=True) == lines[:end]
