"""GPUs as tasks and actors see them, on a machine that has none: the slots are only counted."""

from __future__ import annotations

import os

import pytest

import miniray as ray


class AtLoading:
    """Becomes, where it is unpickled, what CUDA_VISIBLE_DEVICES is there and then."""

    def __reduce__(self):
        return os.getenv, ("CUDA_VISIBLE_DEVICES",)


@pytest.fixture
def two_of_four(monkeypatch: pytest.MonkeyPatch):
    """A session that was given the devices 3 and 1 of its machine."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    ray.init(num_cpus=2)
    yield
    ray.shutdown()


def test_tasks_see_the_devices_that_their_node_was_given(two_of_four):
    @ray.remote
    def devices(loaded):
        return loaded, os.environ["CUDA_VISIBLE_DEVICES"], ray.get_gpu_ids()

    assert ray.cluster_resources()["GPU"] == 2
    both = ray.get(devices.options(num_gpus=2).remote(AtLoading()))
    assert both == ("3,1", "3,1", [3, 1])
    one = ray.get(devices.options(num_gpus=1).remote(AtLoading()))
    assert one in [("3", "3", [3]), ("1", "1", [1])]
    assert ray.get_runtime_context().get_accelerator_ids()["GPU"] == []


def test_fractions_share_a_device_and_whole_ones_do_not(two_of_four):
    @ray.remote(num_cpus=0)
    class Holder:
        def devices(self):
            return ray.get_gpu_ids()

    halves = [Holder.options(num_gpus=0.5).remote() for _ in range(2)]
    (shared,) = {tuple(ids) for ids in ray.get([half.devices.remote() for half in halves])}
    whole = Holder.options(num_gpus=1).remote()
    assert {*shared, *ray.get(whole.devices.remote())} == {1, 3}


def test_a_type_of_accelerator_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch):
    name = "accelerator_type:A100"
    ray.init(num_cpus=1, num_gpus=1, resources={name: 1})
    try:

        @ray.remote(num_gpus=1, accelerator_type="A100")
        def here():
            return ray.get_gpu_ids()

        assert ray.get(here.remote(), timeout=30) == [0]
    finally:
        ray.shutdown()
