"""util: pools, queues, helpers, placement groups, state."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import threading
import time

import pytest

import miniray as ray
from miniray.util import state
from miniray.util.queue import Empty, Full, Queue

pytestmark = pytest.mark.usefixtures("ray_shared")


@ray.remote(num_cpus=0)
class Doubler:
    def double(self, x):
        return 2 * x

    def slow(self, seconds):
        time.sleep(seconds)
        return seconds

    def die(self):
        ray.actor.exit_actor()


@ray.remote
def square(x):
    return x * x


def pool_of(n):
    return ray.util.ActorPool([Doubler.remote() for _ in range(n)])


def call(actor, value):
    return actor.double.remote(value)


def test_pool_maps_in_order():
    pool = pool_of(2)
    assert list(pool.map(call, range(7))) == [2 * i for i in range(7)]
    assert sorted(pool.map_unordered(call, range(7))) == [2 * i for i in range(7)]


def test_pool_step_by_step():
    pool = pool_of(1)
    pool.submit(call, 1)
    pool.submit(call, 2)
    assert pool.has_next()
    assert not pool.has_free()
    assert pool.pop_idle() is None
    assert pool.get_next() == 2
    assert pool.get_next_unordered() == 4
    assert not pool.has_next()
    with pytest.raises(StopIteration):
        pool.get_next()
    actor = pool.pop_idle()
    assert not pool.has_free()
    pool.push(actor)
    with pytest.raises(ValueError, match="already belongs"):
        pool.push(actor)


def test_pool_times_out():
    pool = pool_of(1)
    pool.submit(lambda actor, seconds: actor.slow.remote(seconds), 1)
    with pytest.raises(TimeoutError):
        pool.get_next(timeout=0.05)
    assert pool.get_next(timeout=10) == 1


def test_pool_goes_on_after_an_error():
    pool = pool_of(1)
    pool.submit(lambda actor, _: actor.double.remote(None), 0)
    pool.submit(call, 1)
    with pytest.raises(TypeError):
        pool.get_next()
    assert pool.get_next() == 2


def test_queue():
    queue = Queue(maxsize=2)
    queue.put(1)
    queue.put(2)
    assert queue.full()
    with pytest.raises(Full):
        queue.put_nowait(3)
    with pytest.raises(Full):
        queue.put(3, timeout=0.05)
    assert [queue.get(), queue.get()] == [1, 2]
    assert queue.empty()
    with pytest.raises(Empty):
        queue.get_nowait()
    with pytest.raises(Empty):
        queue.get(timeout=0.05)
    with pytest.raises(ValueError):
        queue.get(timeout=-1)
    queue.shutdown()


def test_queue_batches():
    queue = Queue(maxsize=3)
    queue.put_nowait_batch([1, 2, 3])
    with pytest.raises(Full):
        queue.put_nowait_batch([4])
    assert queue.get_nowait_batch(2) == [1, 2]
    with pytest.raises(Empty):
        queue.get_nowait_batch(2)
    assert len(queue) == 1
    queue.shutdown(force=True)


def test_queue_between_processes():
    queue = Queue()

    @ray.remote
    def produce(queue):
        for i in range(5):
            queue.put(i)

    produce.remote(queue)
    assert [queue.get(timeout=10) for _ in range(5)] == list(range(5))

    async def consume():
        await queue.put_async("x")
        return await queue.get_async()

    assert asyncio.run(consume()) == "x"


def test_as_completed_and_map_unordered():
    assert sorted(ray.util.as_completed([square.remote(i) for i in range(25)])) == [i * i for i in range(25)]
    assert sorted(ray.util.map_unordered(square, range(25), backpressure_size=4, chunk_size=2)) == [
        i * i for i in range(25)
    ]
    with pytest.raises(ValueError):
        next(ray.util.as_completed([], chunk_size=0))
    with pytest.raises(ValueError):
        next(ray.util.map_unordered(square, [1], backpressure_size=0))


def test_inspect_serializability():
    class Holder:
        def __init__(self):
            self.lock = threading.Lock()

    text = io.StringIO()
    fine, failures = ray.util.inspect_serializability(Holder(), name="holder", print_file=text)
    assert not fine
    assert {failure.name for failure in failures} == {"lock"}
    assert "holder.lock (attribute)" in text.getvalue()
    assert ray.util.inspect_serializability(5, print_file=text) == (True, set())


def test_placement_group(wait_until):
    group = ray.util.placement_group([{"CPU": 1}, {"CPU": 1}], strategy="PACK", name="pair")
    assert group.wait(10)
    assert ray.get(group.ready(), timeout=10) == group
    assert group.bundle_count == 2
    assert ray.util.get_placement_group("pair") == group
    table = ray.util.placement_group_table(group)
    assert table["state"] == "CREATED"
    assert table["bundles"] == {0: {"CPU": 1.0}, 1: {"CPU": 1.0}}
    wait_until(lambda: "CPU" not in ray.available_resources())
    ray.util.remove_placement_group(group)
    wait_until(lambda: ray.available_resources().get("CPU") == 2)
    assert ray.util.placement_group_table(group)["state"] == "REMOVED"
    with pytest.raises(ValueError):
        ray.util.get_placement_group("nobody")


def test_infeasible_placement_group_stays_pending():
    group = ray.util.placement_group([{"CPU": 100}])
    assert not group.wait(0.2)
    assert ray.util.placement_group_table(group)["state"] == "PENDING"
    ray.util.remove_placement_group(group)


def test_state_of_actors(wait_until):
    actor = Doubler.options(name="visible").remote()
    ray.get(actor.double.remote(1))
    [row] = state.list_actors(filters=[("NAME", "=", "visible")])
    assert (row.class_name, row["state"]) == ("Doubler", "ALIVE")
    assert state.get_actor(row.actor_id).pid == row.pid
    ray.kill(actor)
    wait_until(lambda: state.get_actor(row.actor_id).state == "DEAD")
    assert state.summarize_actors()["cluster"]["summary"]["Doubler"]["state_counts"]["DEAD"] >= 1
    with pytest.raises(ValueError, match="Invalid filter key"):
        state.list_actors(filters=[("nope", "=", 1)])
    with pytest.raises(ValueError, match="Unsupported filter predicate"):
        state.list_actors(filters=[("name", "<", 1)])


def test_state_of_tasks(wait_until):
    ref = square.options(name="a name of its own").remote(3)
    ray.get(ref)
    [row] = state.list_tasks(filters=[("name", "=", "a name of its own")])
    assert row.state == "FINISHED"
    assert row.task_id == ref.task_id().hex()
    assert row.node_id == ray.get_runtime_context().get_node_id()
    assert row.start_time_ms >= row.creation_time_ms
    assert state.summarize_tasks()["cluster"]["total_tasks"] >= 1


def states(name):
    return sorted((row.state, row.worker_pid or 0) for row in state.list_tasks(filters=[("name", "=", name)]))


def test_state_of_tasks_that_run_and_wait(wait_until, tmp_path):
    done = tmp_path / "done"

    @ray.remote(num_cpus=0)
    def hold():
        while not done.exists():
            time.sleep(0.01)
        return os.getpid()

    @ray.remote(num_cpus=0)
    class Server:
        async def serve(self):
            while not done.exists():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            return os.getpid()

    server = Server.remote()
    try:
        held, served = hold.remote(), server.serve.remote()
        behind = square.options(name="behind").remote(hold.options(name="before").remote())
        both = ["RUNNING", "RUNNING"]
        wait_until(lambda: [one for one, _ in states("hold") + states("Server.serve")] == both)
        assert states("behind") == [("PENDING_ARGS_AVAIL", 0)]
        assert [one for one, _ in states("Server.__init__")] == ["FINISHED"]
        running = {pid for _, pid in states("hold") + states("Server.serve")}
        assert [row.state for row in state.get_objects(held.hex())] == ["PENDING"]
    finally:
        done.touch()
    assert running == {ray.get(held), ray.get(served)}
    ray.get(behind)
    assert [one for one, _ in states("hold")] == ["FINISHED"]


def test_state_of_objects_names_each_process_that_holds_one():
    @ray.remote
    def pids(refs):
        rows = state.get_objects(refs[0].hex())
        return os.getpid(), sorted(row.pid for row in rows), {row.type for row in rows}

    ref = ray.put(b"x" * 200_000)
    there, holders, kinds = ray.get(pids.remote([ref]))
    assert holders == sorted([os.getpid(), there]) and kinds == {"DRIVER", "WORKER"}
    [row] = [row for row in state.get_objects(ref.hex()) if row.type == "DRIVER"]
    assert row.object_size >= 200_000 and row.reference_type == "LOCAL_REFERENCE"
    assert state.summarize_objects()["cluster"]["total_size_mb"] > 0.19


def test_state_of_workers_knows_those_that_ended(wait_until):
    @ray.remote(max_retries=0)
    def die():
        os._exit(3)

    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(die.remote())
    assert any(row.is_alive and row.pid == os.getpid() for row in state.list_workers(limit=1000))
    dead = [("is_alive", "=", False), ("exit_type", "=", "SYSTEM_ERROR")]
    wait_until(lambda: any("exit status 3" in row.exit_detail for row in state.list_workers(filters=dead)))


def test_state_of_nodes_jobs_and_workers():
    [node] = state.list_nodes()
    assert (node.state, node.is_head_node) == ("ALIVE", True)
    assert state.get_node(node.node_id) == node
    jobs = state.list_jobs()
    assert ray.get_runtime_context().get_job_id() in [job.job_id for job in jobs]
    assert any(worker.worker_type == "DRIVER" for worker in state.list_workers())


def test_timeline(tmp_path, wait_until):
    ray.get(square.options(name="on the timeline").remote(1))
    wait_until(lambda: any(event["name"] == "task::on the timeline" for event in ray.timeline()))
    assert ray.timeline(str(tmp_path / "trace.json")) is None
    assert (tmp_path / "trace.json").stat().st_size > 10


def test_state_of_tasks_of_a_process_that_left_by_sys_exit():
    @ray.remote(num_cpus=0, max_retries=0)
    def leaver():
        ray.get(square.options(name="child of a leaver").remote(2))
        sys.exit(1)

    with pytest.raises(ray.exceptions.RayError):
        ray.get(leaver.remote())
    assert [one for one, _ in states("child of a leaver")] == ["FINISHED"]
