"""BatchNorm over a group: in a group of one it is torch's own, forward, backward and in its statistics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import torch.distributed as dist  # noqa: E402

from ml.gan.norm import over_group  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def group_of_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    place: Path = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_group_of_one_is_torchs_own(layout: torch.memory_format) -> None:
    torch.manual_seed(3)
    torchs, ours = (torch.nn.BatchNorm2d(6) for _ in range(2))
    with torch.no_grad():
        torchs.weight.normal_()
        torchs.bias.normal_()
    ours.load_state_dict(torchs.state_dict())
    over_group(ours)
    given = (3 + 2 * torch.randn(8, 6, 5, 5)).to(memory_format=layout)
    wanted = torch.randn(8, 6, 5, 5)
    found = []
    for layer in (torchs, ours):
        values = given.clone().requires_grad_(True)
        normal = layer(values)
        (normal * wanted).sum().backward()
        buffers = (layer.running_mean, layer.running_var, layer.num_batches_tracked)
        found.append([normal, values.grad, layer.weight.grad, layer.bias.grad, *buffers])
    for mine, theirs in zip(*found):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_channels_that_hardly_vary_keep_their_digits() -> None:
    """Mean 1000, deviation 0.1: squares of single precision would leave nothing of it."""
    torch.manual_seed(4)
    ours = over_group(torch.nn.BatchNorm2d(2))
    normal = ours(1000 + 0.1 * torch.randn(64, 2, 8, 8))
    assert torch.allclose(normal.std((0, 2, 3)), torch.ones(2), atol=0.05)
