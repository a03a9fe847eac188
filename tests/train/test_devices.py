"""Which device a worker trains on, and by what gradients travel, on GPUs that are only said to be there."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import miniray as ray  # noqa: E402
from miniray.train.torch.device import choose_backend, get_device, get_devices, get_gpu_name  # noqa: E402

ONE, TWO = "GPU 0 of node a", "GPU 1 of node a"


def test_nccl_where_each_worker_has_a_gpu_alone() -> None:
    assert choose_backend(None, [ONE, TWO]) == ("nccl", "")
    assert choose_backend(None, [ONE]) == ("nccl", "")
    assert choose_backend("gloo", [ONE, TWO]) == ("gloo", "")
    assert choose_backend(None, ["", ""]) == ("gloo", "")


def test_workers_that_share_a_gpu_get_gloo_and_are_told() -> None:
    backend, reason = choose_backend(None, [TWO, ONE, ONE])
    assert backend == "gloo" and reason.startswith(f"workers [1, 2] share {ONE}")


def test_nccl_that_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"workers \[0, 1\] share GPU 0 of node a"):
        choose_backend("nccl", [ONE, ONE])
    with pytest.raises(ValueError, match=r"workers \[1\] have no GPU"):
        choose_backend("nccl", [ONE, ""])


def test_a_worker_uses_the_gpus_that_it_reserved_as_its_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def devices(visible: int, reserved: list[int]) -> list[str]:
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "get_gpu_ids", lambda: reserved)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: visible > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
        return [str(one) for one in get_devices()]

    assert devices(visible=1, reserved=[3]) == ["cuda:0"]
    assert devices(visible=2, reserved=[0, 1]) == ["cuda:0", "cuda:1"]
    assert devices(visible=2, reserved=[]) == ["cpu"], "what was not reserved is not used"
    assert devices(visible=0, reserved=[0]) == ["cpu"] and get_device().type == "cpu"
    assert get_gpu_name() == "", "torch sees none"


def test_shares_of_a_gpu_reach_the_workers_as_that_gpu() -> None:
    """Pretended GPUs: six workers on two of them, by the share that the job reserves."""
    from ml.gan.train import share_of_gpu

    ray.init(num_cpus=6, num_gpus=2)
    try:
        see = ray.remote(num_gpus=share_of_gpu(6, 2))(_Seeing)
        seeing = [see.remote() for _ in range(6)]
        seen = ray.get([one.gpus.remote() for one in seeing], timeout=200)
        assert sorted(seen) == [([0], "0")] * 3 + [([1], "1")] * 3
        assert share_of_gpu(2, 4) == 1.0
        assert 6 * share_of_gpu(6, 1) <= 1.0
    finally:
        ray.shutdown()


class _Seeing:
    def gpus(self) -> tuple[list[int], str]:
        import os

        return ray.get_gpu_ids(), os.environ["CUDA_VISIBLE_DEVICES"]
