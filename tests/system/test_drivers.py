"""Several drivers of one session, handles that travel, and forks of a driver."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from miniray import exceptions
from tests.system.support import Effects, Script, alive, eventually, kill

ATTACH = """
ray.init({address!r}, namespace={namespace!r}, configure_logging=False)
"""


@pytest.fixture(scope="module")
def address(ray: Any) -> str:
    """Where other drivers attach to the module's session."""
    from miniray import api

    return str(api.connected_worker().session_dir)


def attached(address: str, code: str, namespace: str = "shared") -> Script:
    """Another driver of the session, in the namespace "shared"."""
    return Script(ATTACH.format(address=address, namespace=namespace) + code)


# ---- two drivers


def test_a_named_actor_is_found_by_another_driver_and_ends_with_its_creator(ray: Any, address: str) -> None:
    code = """
@ray.remote(num_cpus=0)
class Counter:
    def __init__(self):
        self.n = 0
    def add(self, n):
        self.n += n
        return self.n
    def pid(self):
        return os.getpid()

counter = Counter.options(name="counter").remote()
say(pid=ray.get(counter.pid.remote()))
input()
say(total=ray.get(counter.add.remote(0)))
input()
"""
    with attached(address, code) as first:
        pid = first.hear()["pid"]
        with attached(address, """
found = ray.get_actor("counter")
say(total=ray.get([found.add.remote(1) for _ in range(10)])[-1])
""") as second:
            assert second.hear() == {"total": 10} and second.wait() == 0
        with pytest.raises(ValueError):
            ray.get_actor("counter")
        mine = ray.get_actor("counter", namespace="shared")
        assert ray.get(mine.add.remote(5)) == 15
        first.go_on()
        assert first.hear() == {"total": 15}
        first.go_on()
        assert first.wait() == 0
    eventually(lambda: not alive(pid), "the actor ends with its driver")
    with pytest.raises(exceptions.RayActorError):
        ray.get(mine.add.remote(1), timeout=10)


def test_a_detached_actor_outlives_its_driver_whatever_its_end(ray: Any, address: str) -> None:
    code = """
@ray.remote(num_cpus=0)
class Keeper:
    def __init__(self):
        self.kept = []
    def keep(self, value):
        self.kept.append(value)
        return self.kept
    def slow(self):
        time.sleep(0.2)
        return "late"

keeper = Keeper.options(name="keeper", lifetime="detached").remote()
ray.get(keeper.keep.remote("from the first"))
in_flight = [keeper.slow.remote() for _ in range(3)]
say(ready=True)
input()
"""
    with attached(address, code) as first:
        first.hear()
        kill(first.process.pid)     # with calls in flight: their replies go nowhere
    with attached(address, """
keeper = ray.get_actor("keeper")
say(kept=ray.get(keeper.keep.remote("from the second")))
pending = keeper.slow.remote()
""") as second:
        assert second.hear() == {"kept": ["from the first", "from the second"]}
        assert second.wait() == 0   # it leaves in order, with a call in flight
    keeper = ray.get_actor("keeper", namespace="shared")
    assert ray.get(keeper.keep.remote("from the third"), timeout=20)[-1] == "from the third"
    ray.kill(keeper)
    with pytest.raises(ValueError):
        ray.get_actor("keeper", namespace="shared")


def test_what_a_driver_leaves_running_ends_with_it_and_others_go_on(ray: Any, address: str) -> None:
    code = """
@ray.remote(num_cpus=1)
def forever():
    say_pid = os.getpid()
    open(sys.argv[0] if False else PATH, "a").write(f"{say_pid}\\n")
    time.sleep(1000)

refs = [forever.remote() for _ in range(3)]
view = ray.get(ray.put(bytes(5_000_000)))
while not os.path.exists(PATH) or len(open(PATH).readlines()) < 2:
    time.sleep(0.01)
say(pids=[int(line) for line in open(PATH)])
input()
"""
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        with attached(address, f"PATH = {directory + '/pids'!r}\n" + code) as driver:
            pids = driver.hear()["pids"]
            assert all(alive(pid) for pid in pids)
            kill(driver.process.pid)
        eventually(lambda: not any(alive(pid) for pid in pids), "its tasks end")
    assert ray.get([ray.remote(lambda: 1).remote() for _ in range(4)], timeout=20) == [1] * 4
    from miniray import api

    store = api.connected_worker().store
    eventually(lambda: store.stats()["used"] == 0, "its objects are freed")


def test_objects_of_a_dead_owner_raise_owner_died(ray: Any, address: str) -> None:
    """A value that only its owner had, asked for by a borrower in another driver's actor."""

    @ray.remote(num_cpus=0)
    class Box:
        def put(self, refs: list[Any]) -> None:
            self.refs = refs

        def get(self) -> Any:
            return ray.get(self.refs[0], timeout=20)

    box = Box.options(name="box", namespace="shared").remote()
    ray.get(box.__ray_ready__.remote())
    code = """
box = ray.get_actor("box")
ray.get(box.put.remote([ray.remote(lambda: time.sleep(1000)).remote()]))
say(ready=True)
input()
"""
    with attached(address, code) as driver:
        driver.hear()
        kill(driver.process.pid)
    with pytest.raises(exceptions.OwnerDiedError):
        ray.get(box.get.remote(), timeout=20)


# ---- handles


@pytest.fixture
def probe(ray: Any) -> Iterator[Any]:
    @ray.remote(num_cpus=0)
    class Probe:
        def pid(self) -> int:
            return os.getpid()

    yield Probe


def test_an_actor_lives_as_long_as_any_process_has_a_handle(ray: Any, probe: Any) -> None:
    @ray.remote(num_cpus=0)
    class Holder:
        def __init__(self, handles: list[Any]) -> None:
            self.handles = handles

        def ask(self) -> int:
            return int(ray.get(self.handles[0].pid.remote()))

        def drop(self) -> None:
            self.handles.clear()

    actor = probe.remote()
    pid = ray.get(actor.pid.remote())
    holder = Holder.remote([actor])
    assert ray.get(holder.ask.remote()) == pid
    del actor
    time.sleep(0.3)
    assert alive(pid) and ray.get(holder.ask.remote()) == pid
    ray.get(holder.drop.remote())
    eventually(lambda: not alive(pid), "nobody has a handle any more")


def test_a_handle_passed_on_and_dropped_keeps_its_calls(ray: Any, effects: Effects) -> None:
    @ray.remote(num_cpus=0)
    class Worker:
        def work(self, seconds: float) -> int:
            time.sleep(seconds)
            return effects.happened("worked")

    @ray.remote
    def use(worker: Any) -> int:
        return int(ray.get(worker.work.remote(0.05)))

    refs = [use.remote(Worker.remote()) for _ in range(2)]     # the driver keeps no handle
    assert max(ray.get(refs)) == 2  # each counts after it has worked: both may count two
    last = Worker.remote().work.remote(0.1)
    assert ray.get(last) == 3, "a call outlives the handle it was made through"


def test_a_handle_returned_from_a_task_is_alive(ray: Any, probe: Any) -> None:
    @ray.remote
    def make() -> Any:
        return [probe.remote()]

    (actor,) = ray.get(make.remote())
    assert alive(ray.get(actor.pid.remote(), timeout=20))


# ---- forks


FORK = """
import threading
ray.init(num_cpus=2, object_store_memory=100 << 20, configure_logging=False)
square = ray.remote(lambda n: n * n)
value = ray.get(ray.put(bytearray(b"seen by the child") * 1000))
ref = ray.put(bytes(200_000))
stop = threading.Event()

def traffic():
    while not stop.is_set():
        assert ray.get(square.remote(3)) == 9

thread = threading.Thread(target=traffic)
thread.start()
statuses = []
for n in range(150):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            assert value[:17] == b"seen by the child"
            for call in (lambda: ray.get(ref), lambda: square.remote(1), lambda: ray.put(1)):
                try:
                    call()
                except ray.exceptions.RaySystemError as error:
                    assert "forked" in str(error), error
                else:
                    raise AssertionError("the child acted as its parent")
            ray.shutdown()      # does nothing here
            status = 0
        finally:
            if n % 10:
                os._exit(status)
            sys.exit(status)    # with atexit hooks and destructors
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
stop.set()
thread.join()
say(statuses=statuses, still=ray.get([square.remote(n) for n in range(4)]), size=len(ray.get(ref)))
"""


def test_forked_children_of_a_driver_cannot_act_for_it_and_do_it_no_harm() -> None:
    with Script(FORK) as driver:
        said = driver.hear()
        assert said["statuses"] == [0] * 150
        assert said["still"] == [0, 1, 4, 9] and said["size"] == 200_000
        assert driver.wait() == 0


def test_multiprocessing_in_tasks_works_and_ends_with_them(ray: Any) -> None:
    """Children of a worker (say, of a DataLoader) read its arrays and do not hold the session up."""

    @ray.remote
    def total(array: Any) -> int:
        import multiprocessing

        context = multiprocessing.get_context("fork")
        with context.Pool(2) as pool:
            return sum(pool.map(array.__getitem__, range(100)))

    import numpy

    assert ray.get([total.remote(ray.put(numpy.arange(50_000))) for _ in range(2)], timeout=60) == [4950] * 2
