"""Who and where am I: the runtime context in drivers, tasks and actors."""

from __future__ import annotations

import os

import psutil
import pytest

import miniray as ray
from miniray.util.placement_group import get_current_placement_group
from miniray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

pytestmark = pytest.mark.usefixtures("ray_shared")


def facts():
    context = ray.get_runtime_context()
    return {
        "job": context.get_job_id(),
        "node": context.get_node_id(),
        "worker": context.get_worker_id(),
        "task": context.get_task_id(),
        "name": context.get_task_name(),
        "actor": context.get_actor_id(),
        "actor_name": context.get_actor_name(),
        "resources": context.get_assigned_resources(),
        "namespace": context.namespace,
        "attempt": context.get_attempt_number(),
        "gpus": ray.get_gpu_ids(),
    }


@ray.remote
class Asker:
    def ask(self):
        return facts()

    async def never(self):
        pass

    def me(self):
        return ray.get_runtime_context().current_actor

    def restarted(self):
        return ray.get_runtime_context().was_current_actor_reconstructed


@ray.remote
class Plain:
    def ask(self):
        return facts()


def test_driver():
    context = ray.get_runtime_context()
    assert ray.JobID.from_hex(context.get_job_id()).int() >= 1
    assert context.get_node_id() == ray.nodes()[0]["NodeID"]
    assert context.get_task_id() is None
    assert context.get_actor_id() is None
    assert context.get_placement_group_id() is None
    with pytest.raises(AssertionError):
        context.get_assigned_resources()
    with pytest.raises(RuntimeError):
        _ = context.current_actor
    assert ray.get_gpu_ids() == []


def test_task():
    ref = ray.remote(num_cpus=0.5)(facts).remote()
    found = ray.get(ref)
    assert found["task"] == ref.task_id().hex()
    assert found["name"] == "facts"
    assert found["actor"] is None
    assert found["resources"] == {"CPU": 0.5}
    assert found["job"] == ray.get_runtime_context().get_job_id()
    assert found["worker"] != ray.get_runtime_context().get_worker_id()
    assert found["attempt"] == 0


def test_actor():
    actor = Plain.options(name="me").remote()
    found = ray.get(actor.ask.remote())
    assert found["actor"] == actor._actor_id.hex()
    assert found["actor_name"] == "me"
    assert found["name"] == "Plain.ask"
    assert found["resources"] == {}


def test_async_actor():
    actor = Asker.options(num_cpus=1).remote()
    found = ray.get(actor.ask.remote())
    assert found["actor"] == actor._actor_id.hex()
    assert found["resources"] == {"CPU": 1.0}
    assert ray.get(actor.me.remote()) == actor
    assert ray.get(actor.restarted.remote()) is False


def test_placement_group_and_capture():
    group = ray.util.placement_group([{"CPU": 1}])
    assert group.wait(10)

    @ray.remote(num_cpus=0)
    def inner():
        current = get_current_placement_group()
        return current.id.hex() if current else None

    @ray.remote(num_cpus=1)
    def outer():
        return get_current_placement_group(), ray.get(inner.remote())

    strategy = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
    assert ray.get(outer.options(scheduling_strategy=strategy).remote()) == (group, group.id.hex())
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=False)
    assert ray.get(outer.options(scheduling_strategy=strategy).remote()) == (group, None)
    ray.util.remove_placement_group(group)


def test_older_names_warn():
    with pytest.warns(DeprecationWarning, match=r"Use get_job_id\(\) instead"):
        assert ray.get_runtime_context().job_id.hex() == ray.get_runtime_context().get_job_id()
    with pytest.warns(DeprecationWarning, match=r"Use get_node_id\(\) instead"):
        assert ray.get_runtime_context().node_id.hex() == ray.get_runtime_context().get_node_id()


def test_tasks_without_gpus_see_what_their_node_sees_unless_told_otherwise():
    @ray.remote
    def visible():
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    assert ray.get(visible.remote(), timeout=30) == os.environ.get("CUDA_VISIBLE_DEVICES")
    told = {"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}}
    assert ray.get(visible.options(runtime_env=told).remote(), timeout=30) == ""


def shown():
    """The command line of this process, as others see it."""
    return psutil.Process().cmdline()


def test_a_process_is_titled_after_what_it_runs():
    @ray.remote
    def task():
        return shown()

    @ray.remote
    def stream():
        yield shown()

    assert ray.get(task.remote()) == ["ray::task"]
    assert ray.get(task.options(name="a name of its own").remote()) == ["ray::a", "name", "of", "its", "own"]
    assert ray.get(next(stream.remote())) == ["ray::stream"]
    assert ray.get(task.options(name="x" * 300).remote())[0].startswith("ray::" + "x" * 150)


def test_an_actors_process_is_titled_after_its_method_and_then_its_class(wait_until):
    class Plain:
        def __init__(self):
            self.at_first = shown()

        def method(self):
            return self.at_first, shown(), os.getpid()

    class Asynchronous(Plain):
        async def method(self):
            return super().method()

    kinds = [(Plain, 1), (Plain, 2), (Asynchronous, 100)]
    for cls, width in kinds:
        actor = ray.remote(num_cpus=0, max_concurrency=width)(cls).remote()
        first, then, pid = ray.get(actor.method.remote())
        assert first == [f"ray::{cls.__name__}.__init__"] and then == [f"ray::{cls.__name__}.method"]
        wait_until(lambda: psutil.Process(pid).cmdline() == [f"ray::{cls.__name__}"])  # noqa: B023
        ray.kill(actor)
