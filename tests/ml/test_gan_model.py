"""The networks, their flat vectors, and one replica's training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from miniray.train.sync import merge  # noqa: E402
from ml.gan import data, model  # noqa: E402
from ml.gan.adam import Adam  # noqa: E402
from ml.gan.config import TrainConfig  # noqa: E402
from ml.gan.draw import CHUNK, calibrate, chunks, draw_images  # noqa: E402
from ml.gan.plain import PlainTraining  # noqa: E402
from ml.gan.products import as_products  # noqa: E402
from ml.gan.replica import Replica  # noqa: E402
from ml.gan.vector import Layout  # noqa: E402

CONFIG = TrainConfig(width=4, latent_dim=8, batch_size=8, seed=3)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return data.load("synthetic:64").images


def modules(seed: int = 0) -> dict[str, torch.nn.Module]:
    return dict(zip(("generator", "discriminator"), model.build(8, 4, seed)))


def test_shapes_and_ranges() -> None:
    generator, discriminator = model.build(latent_dim=10, width=4, seed=0)
    pictures = generator(torch.randn(5, 10))
    assert pictures.shape == (5, 3, 32, 32) and pictures.abs().max() <= 1
    assert discriminator(pictures).shape == (5,)


def test_initial_weights_are_dcgans_and_a_function_of_the_seed() -> None:
    first, again, other = (model.build(100, 64, seed)[0].state_dict() for seed in (1, 1, 2))
    key = "layers.3.weight"
    assert torch.equal(first[key], again[key]) and not torch.equal(first[key], other[key])
    assert abs(float(first[key].std()) - 0.02) < 1e-3


def test_building_a_model_does_not_depend_on_the_global_generator() -> None:
    torch.manual_seed(1)
    first = model.build(8, 4, 0)[0].state_dict()
    torch.manual_seed(2)
    second = model.build(8, 4, 0)[0].state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_vector_holds_the_whole_state_and_restores_it() -> None:
    source, target = modules(1), modules(2)
    source["generator"](torch.randn(6, 8))  # moves running statistics and counters
    layout = Layout(source)
    vector = layout.pack(source)
    assert vector.dtype == np.float32 and vector.size == sum(
        value.numel() for one in source.values() for value in one.state_dict().values()
    )
    vector.flags.writeable = False  # what comes out of the object store
    Layout(target).unpack(vector, target)
    for name, module in source.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, target[name].state_dict()[key]), key
            assert torch.equal(value, layout.state_dict(vector, name)[key]), key


def test_the_parts_of_a_vector_are_weights_means_variances_counters() -> None:
    pair = modules()
    for module in pair.values():
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.running_mean.fill_(-5)
                layer.running_var.fill_(7)
                layer.num_batches_tracked.fill_(11)
    layout = Layout(pair)
    vector = layout.pack(pair)
    assert (vector[layout.parts.means] == -5).all() and (vector[layout.parts.variances] == 7).all()
    assert (vector[layout.parts.variances.stop :] == 11).all() and layout.parts.counters == 5
    assert abs(vector[: layout.parts.weights]).max() < 2


def test_a_generator_is_rebuilt_from_its_weights_alone() -> None:
    generator = model.build(12, 4, 0)[0].eval()
    rebuilt = model.generator_from(generator.state_dict())
    noise = torch.randn(3, 12)
    assert torch.equal(generator(noise), rebuilt(noise))


@pytest.mark.parametrize(
    "weights", [{}, {"layers.0.weight": torch.zeros(3)}, model.Discriminator(4).state_dict()]
)
def test_other_weights_are_refused(weights: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="not a generator's weights"):
        model.generator_from(weights)


def test_drawn_images_do_not_depend_on_the_cut() -> None:
    generator = model.build(8, 4, 0)[0].eval()
    whole = draw_images(generator, 5, 0, 40)
    pieces = [draw_images(generator, 5, first, count) for first, count in ((0, 3), (3, 20), (23, 17))]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    assert (draw_images(generator, 6, 0, 40) != whole).any()


@pytest.mark.parametrize(("first", "count"), [(0, 1), (5, 40), (CHUNK, CHUNK), (CHUNK - 1, 2)])
def test_chunks_tile_a_range_and_stay_inside_the_grid(first: int, count: int) -> None:
    pieces = chunks(first, count)
    assert [place for start, size in pieces for place in range(start, start + size)] == [
        *range(first, first + count)
    ]
    assert all(start // CHUNK == (start + size - 1) // CHUNK for start, size in pieces)


def test_calibration_gives_the_statistics_of_the_present_weights() -> None:
    generator = model.build(8, 4, 0)[0]
    calibrate(generator, seed=1)
    with torch.no_grad():
        hidden = generator.layers[0](torch.randn(4_000, 8).view(-1, 8, 1, 1))
    norm = generator.layers[1]
    assert torch.allclose(norm.running_mean, hidden.mean((0, 2, 3)), atol=2e-3)
    assert torch.allclose(norm.running_var, hidden.var((0, 2, 3)), rtol=0.1)
    assert norm.momentum == 0.1 and not generator.training


def test_training_is_a_function_of_its_inputs(images: np.ndarray) -> None:
    digests = []
    for _ in range(2):
        torch.manual_seed(torch.seed() % 1_000)  # a different global state each time
        replica = Replica(CONFIG, 0, images)
        replica.train(0, 4)
        digests.append(replica.digest())
    assert digests[0] == digests[1]


def test_ranks_train_on_different_images_and_noise(images: np.ndarray) -> None:
    config = TrainConfig(width=4, latent_dim=8, batch_size=8, workers=2, seed=3)
    ranks = [Replica(config, rank, images) for rank in range(2)]
    assert not torch.equal(ranks[0]._batch(0), ranks[1]._batch(0))
    assert not torch.equal(ranks[0]._noise(0, 8), ranks[1]._noise(0, 8))


def test_read_only_data_is_not_written_to(images: np.ndarray) -> None:
    frozen = images.copy()
    frozen.flags.writeable = False
    Replica(CONFIG, 0, frozen).train(0, 2)
    np.testing.assert_array_equal(frozen, images)


def test_grey_images_become_three_equal_channels(images: np.ndarray) -> None:
    batch = Replica(CONFIG, 0, images[:, :1])._batch(0)
    assert batch.shape == (8, 3, 32, 32) and torch.equal(batch[:, 0], batch[:, 2])
    assert batch.min() >= -1 and batch.max() <= 1


def test_all_replicas_are_equal_after_a_merge(images: np.ndarray) -> None:
    config = TrainConfig(width=4, latent_dim=8, batch_size=8, workers=3, seed=3)
    ranks = [Replica(config, rank, images) for rank in range(3)]
    for rank in ranks:
        rank.train(0, 2)
    assert len({rank.digest() for rank in ranks}) == 3
    parts = Layout(modules()).parts
    merged = merge([rank.vector() for rank in ranks], [1, 1, 1], parts)
    for rank in ranks:
        rank.load(merged)
        np.testing.assert_array_equal(rank.vector(), merged)
    assert len({rank.digest() for rank in ranks}) == 1


def test_a_replica_continues_bit_for_bit_from_weights_and_moments(images: np.ndarray) -> None:
    whole = Replica(CONFIG, 0, images)
    assert not whole.moments().any()
    whole.train(0, 3)
    vector, moments = whole.vector(), whole.moments()
    second = Replica(CONFIG, 0, images)
    second.load(vector)
    second.load_moments(moments, 3)
    whole.train(3, 3)
    second.train(3, 3)
    assert whole.digest() == second.digest()
    np.testing.assert_array_equal(whole.moments(), second.moments())


def test_adam_is_torchs_adam() -> None:
    ours, theirs = (model.build(8, 4, 0)[1] for _ in range(2))
    ours.to(memory_format=torch.channels_last)
    mine = Adam(ours.parameters(), 1e-2, (0.5, 0.999))
    reference = torch.optim.Adam(theirs.parameters(), lr=1e-2, betas=(0.5, 0.999))
    for step in range(5):
        batch = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        for module, optimiser in ((ours, mine), (theirs, reference)):
            optimiser.zero_grad()
            module(batch).square().sum().backward()
            optimiser.step()
    for first, second in zip(ours.parameters(), theirs.parameters()):
        assert torch.allclose(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_products_are_the_convolutions_that_they_stand_for(layout: torch.memory_format) -> None:
    """Outputs, gradients, and the names and shapes of what is saved."""
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(6, 8, generator=draw), torch.randn(6, 3, 32, 32, generator=draw)
    for torchs, ours, values in zip(model.build(8, 4, 0), model.build(8, 4, 0), inputs):
        kinds = [type(layer) for layer in torchs.layers]
        as_products(ours.to(memory_format=layout))
        changed = sum(type(layer) is not kind for layer, kind in zip(ours.layers, kinds))
        found = [module(values) for module in (ours, torchs)]
        for output in found:
            output.square().sum().backward()
        assert changed == 1 and torch.allclose(*found, rtol=1e-4, atol=1e-6)
        for (name, mine), (_, other) in zip(ours.named_parameters(), torchs.named_parameters(), strict=True):
            assert torch.allclose(mine.grad, other.grad, rtol=1e-3, atol=1e-4), name
        torchs.load_state_dict(ours.state_dict())


def test_training_does_not_import_torchs_compiler() -> None:
    code = (
        "import sys; from ml.gan import data; from ml.gan.config import TrainConfig; "
        "from ml.gan.replica import Replica; images = data.load('synthetic:20').images; "
        "Replica(TrainConfig(width=4, latent_dim=8, batch_size=8), 0, images).train(0, 1); "
        "print('torch._dynamo' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=root
    )
    assert done.stdout.strip() == "False"


def test_a_report_counts_images_and_means(images: np.ndarray) -> None:
    report = Replica(CONFIG, 0, images).train(0, 3)
    assert report.images == 24 and report.seconds > 0
    assert 0 < report.d_real < 1 and 0 < report.d_fake < 1 and report.d_loss > 0 and report.g_loss > 0


def test_plain_pytorch_takes_the_same_steps(images: np.ndarray) -> None:
    """What the job is measured against does the same work, by torch's own optimiser and losses."""
    ours, plain = Replica(CONFIG, 0, images), PlainTraining(CONFIG, images)
    ours.train(0, 3)
    assert plain.steps(0, 3) == 24
    for mine, theirs in zip(ours.modules.values(), (plain.generator, plain.discriminator)):
        for name, value in theirs.state_dict().items():
            assert torch.allclose(mine.state_dict()[name], value, atol=1e-5), name
