"""The same training in actors: real processes, weights through the object store, equal bits at the end."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
ray: Any = pytest.importorskip("miniray", reason="the engine is not built")

from miniray.train.sync.rules import STRATEGIES, Merger  # noqa: E402
from ml.gan import data  # noqa: E402
from ml.gan import generate as gan_generate  # noqa: E402
from ml.gan import train as gan_train  # noqa: E402
from ml.gan.config import TrainConfig  # noqa: E402
from ml.gan.group import Blueprint, new_merger  # noqa: E402
from ml.gan.replica import Replica  # noqa: E402
from ml.gan.schedule import Schedule  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--dataset", "synthetic:70", "--width", "4", "--latent-dim", "8", "--batch-size", "8", "--seed", "5"]
WORKERS = 2


def command(module: str, *argv: str, code: int = 0, env: dict[str, str] | None = None) -> str:
    """Run a command as a user would, on a cluster of its own unless told otherwise; returns all it said."""
    clean = {name: value for name, value in os.environ.items() if not name.endswith("RAY_ADDRESS")}
    done = subprocess.run(
        [sys.executable, "-m", module, *argv],
        cwd=ROOT,
        env=clean | (env or {}),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def train(folder: Path, *more: str, code: int = 0) -> str:
    argv = ["--mode", "distributed", "--workers", str(WORKERS), "--save-dir", str(folder), *TINY, *more]
    return command("ml.gan.train", *argv, code=code)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Two epochs of two workers: their folder and what the command said."""
    folder = tmp_path_factory.mktemp("distributed")
    return folder, train(folder, "--epochs", "2", "--sync-interval", "2", "--checkpoint-every", "1")


@pytest.fixture
def no_cluster_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MINIRAY_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="class")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=WORKERS, preload=["torch"])
    yield
    ray.shutdown()


def test_the_command_trains_in_processes_of_their_own_that_end_equal(trained: tuple[Path, str]) -> None:
    folder, said = trained
    story = json.loads((folder / "run.json").read_text())
    assert len({member["pid"] for member in story["workers"]}) == WORKERS
    assert f"all {WORKERS} workers hold the same weights" in said and story["weights_digest"] in said
    saved = torch.load(folder / "checkpoint.pth", weights_only=True)
    merged = hashlib.blake2b(saved["merged"].numpy().tobytes(), digest_size=8).hexdigest()
    assert merged == story["weights_digest"]  # what the workers hold is what is saved
    assert len(saved["moments"]) == WORKERS and not torch.equal(*saved["moments"])
    assert (folder / "grid.png").exists() and (folder / "losses.png").exists()
    assert "images/s" in said and "ml.gan.generate" in said


def test_a_resumed_run_ends_as_the_unbroken_one(
    trained: tuple[Path, str], tmp_path: Path, no_cluster_named: None
) -> None:
    """In this process, which also shows that a command leaves nothing behind that stops the next one."""
    common = ["--mode", "distributed", *TINY, "--save-dir", str(tmp_path), "--sync-interval", "2"]
    assert gan_train.main([*common, "--epochs", "1"]) == 0
    assert gan_train.main([*common, "--epochs", "2", "--resume"]) == 0
    digests = [json.loads((one / "run.json").read_text())["weights_digest"] for one in (trained[0], tmp_path)]
    assert digests[0] == digests[1]


def test_images_are_the_same_for_any_number_of_workers(
    trained: tuple[Path, str], tmp_path: Path, no_cluster_named: None
) -> None:
    model = str(trained[0] / "worker_0" / "generator_0.pth")
    found = []
    for more in ([], ["--distributed", "--workers", "1"], ["--distributed", "--workers", "3"]):
        out = tmp_path / str(len(found))
        threads = torch.get_num_threads()
        assert gan_generate.main(["--model", model, "--num-images", "70", "--output", str(out), *more]) == 0
        torch.set_num_threads(threads)
        found.append([path.read_bytes() for path in sorted(out.glob("*.png"))])
    assert len(found[0]) == 71  # and the grid
    assert found[0] == found[1] == found[2]


def test_a_data_set_that_is_missing_ends_before_any_worker_starts(tmp_path: Path) -> None:
    argv = ["--mode", "distributed", "--dataset", "cifar10", "--data-dir", str(tmp_path)]
    code = (
        f"import sys, miniray; miniray.init = None; from ml.gan import train; sys.exit(train.main({argv!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and "cifar-10-python.tar.gz" in done.stderr


def test_a_cluster_that_does_not_answer_ends_with_code_2(tmp_path: Path) -> None:
    assert "127.0.0.1:1" in train(tmp_path, "--address", "127.0.0.1:1", code=2)


@pytest.mark.usefixtures("cluster")
class TestActors:
    """On one cluster of two CPUs."""

    config = TrainConfig(
        mode="distributed", workers=WORKERS, width=4, latent_dim=8, batch_size=8, seed=5, sync_interval=3
    )

    def group(self, config: TrainConfig, images: np.ndarray) -> Any:
        from ml.gan.actors import ActorGroup

        blueprint = Blueprint(config)
        return ActorGroup(config, images, blueprint.layout, blueprint.fresh(), print)

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_a_cluster_computes_what_one_process_would(self, strategy: str) -> None:
        images = data.load("synthetic:67").images  # 5 steps an epoch, the last one smaller
        config = TrainConfig(**self.config.to_json() | {"sync_strategy": strategy})
        schedule = Schedule(len(images), config.batch_size, WORKERS, config.seed)
        rounds = list(schedule.rounds(0, 2, config.sync_interval))
        group = self.group(config, images)
        threads = torch.get_num_threads()
        torch.set_num_threads(group.members[0].threads)
        try:
            handles = [group.submit(one) for one in rounds]  # all ahead: order is the engine's duty
            reports = [group.collect(handle) for handle in handles]
            state = group.take(group.checkpoint(moments=True))

            blueprint = Blueprint(config)
            merger = Merger(**new_merger(config, blueprint.layout, blueprint.fresh()))
            replicas = [Replica(config, rank, images) for rank in range(WORKERS)]
            merged = blueprint.fresh().state.merged
            for one, seen in zip(rounds, reports):
                for replica in replicas:
                    replica.load(merged)
                mine = [replica.train(one.first_step, one.steps) for replica in replicas]
                assert [(two.images, two.d_loss) for two in seen] == [
                    (two.images, two.d_loss) for two in mine
                ]
                merged = merger.merge(
                    one.steps, [two.images for two in mine], *[two.vector() for two in replicas]
                )
        finally:
            torch.set_num_threads(threads)
            group.close()
        np.testing.assert_array_equal(state.merged, merged)
        np.testing.assert_array_equal(state.ema, merger.state()[1])
        for saved, replica in zip(state.moments, replicas):
            np.testing.assert_array_equal(saved, replica.moments())

    def test_workers_differ_within_a_round_and_are_equal_after_it(self) -> None:
        images = data.load("synthetic:64").images
        group = self.group(self.config, images)
        try:
            [first, *_] = Schedule(64, 8, WORKERS, 5).rounds(0, 1, 2)
            group.collect(group.submit(first))
            before = ray.get([worker.moments.remote() for worker in group._workers])
            assert (before[0] != before[1]).any()  # they trained on different images
            assert len(set(group.digests())) == 1
        finally:
            group.close()

    def test_workers_read_the_data_in_shared_memory(self) -> None:
        from ml.gan.actors import TrainingWorker

        class Probe(TrainingWorker):
            def flags(self) -> tuple[bool, bool]:
                return self._replica._images.flags.owndata, self._replica._images.flags.writeable

        images = np.zeros((200, 3, 32, 32), dtype=np.uint8)  # 600 KB: in the store, not inline
        probe = ray.remote(Probe).remote(self.config, 0, ray.put(images), None, 0)
        try:
            assert ray.get(probe.flags.remote()) == (False, False)
        finally:
            ray.kill(probe)

    def test_a_worker_that_dies_ends_the_round_with_the_engines_error(self) -> None:
        group = self.group(self.config, data.load("synthetic:64").images)
        try:
            ray.kill(group._workers[1])
            [first, *_] = Schedule(64, 8, WORKERS, 5).rounds(0, 1, 2)
            with pytest.raises(ray.exceptions.RayError):
                group.collect(group.submit(first))
        finally:
            group.close()

    def test_more_workers_than_the_cluster_has_cpus_are_refused_at_once(self, tmp_path: Path) -> None:
        address = ["--address", "auto", "--workers", "5"]
        said = train(tmp_path, *address, code=2)
        assert "--workers 5 needs 5 CPUs" in said and str(WORKERS) in said
