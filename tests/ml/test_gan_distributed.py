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

from miniray.train import Result  # noqa: E402
from miniray.train.sync import STRATEGIES, Merger  # noqa: E402
from ml.gan import data  # noqa: E402
from ml.gan import generate as gan_generate  # noqa: E402
from ml.gan import train as gan_train  # noqa: E402
from ml.gan.config import TrainConfig  # noqa: E402
from ml.gan.replica import Replica  # noqa: E402
from ml.gan.schedule import Schedule  # noqa: E402
from ml.gan.state import Blueprint, State, load_state  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--dataset", "synthetic:70", "--width", "4", "--latent-dim", "8", "--batch-size", "8", "--seed", "5",
        "--quality-images", "0"]  # fmt: skip
WORKERS = 2


def command(module: str, *argv: str, code: int = 0, env: dict[str, str] | None = None) -> str:
    """Run a command as a user would, on a cluster of its own unless told otherwise; returns all it said."""
    clean = {name: value for name, value in os.environ.items() if not name.endswith("RAY_ADDRESS")}
    done = subprocess.run(
        [sys.executable, "-m", module, *argv],
        cwd=ROOT,
        env=clean
        | {"OMP_NUM_THREADS": "1"}
        | (env or {}),  # threads that wait for one another crawl on a busy machine
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


@pytest.fixture
def cluster() -> Iterator[None]:
    ray.init(num_cpus=WORKERS, preload=["torch"])
    yield
    ray.shutdown()


def test_the_command_trains_in_processes_of_their_own_that_end_equal(trained: tuple[Path, str]) -> None:
    folder, said = trained
    story = json.loads((folder / "run.json").read_text())
    assert len({member["pid"] for member in story["workers"]}) == WORKERS
    assert f"all {WORKERS} workers hold the same weights" in said and story["weights_digest"] in said
    state = saved(folder)
    merged = hashlib.blake2b(state.merged.tobytes(), digest_size=8).hexdigest()
    assert merged == story["weights_digest"]  # what the workers hold is what is saved
    assert len(state.moments) == WORKERS and (state.moments[0] != state.moments[1]).any()
    assert (folder / "grid.png").exists() and (folder / "losses.png").exists()
    assert "images/s" in said and "ml.gan.generate" in said


@pytest.mark.slow
def test_a_resumed_run_ends_as_the_unbroken_one(
    trained: tuple[Path, str], tmp_path: Path, no_cluster_named: None
) -> None:
    """In this process, which also shows that a command leaves nothing behind that stops the next one."""
    common = ["--mode", "distributed", *TINY, "--save-dir", str(tmp_path), "--sync-interval", "2"]
    assert gan_train.main([*common, "--epochs", "1"]) == 0
    assert gan_train.main([*common, "--epochs", "2", "--resume"]) == 0
    digests = [json.loads((one / "run.json").read_text())["weights_digest"] for one in (trained[0], tmp_path)]
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_images_are_the_same_for_any_number_of_workers(
    trained: tuple[Path, str], tmp_path: Path, no_cluster_named: None
) -> None:
    model = str(trained[0] / "worker_0" / "generator_0.pth")
    found = []
    for more in ([], ["--distributed", "--workers", "3"]):
        out = tmp_path / str(len(found))
        threads = torch.get_num_threads()
        assert gan_generate.main(["--model", model, "--num-images", "70", "--output", str(out), *more]) == 0
        torch.set_num_threads(threads)
        found.append([path.read_bytes() for path in sorted(out.glob("*.png"))])
    assert len(found[0]) == 71  # and the grid
    assert found[0] == found[1]


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


def history(folder: Path) -> list[dict[str, Any]]:
    """What worker 0 has reported so far, round by round."""
    path = folder / "run" / "result.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def saved(folder: Path) -> State:
    checkpoint = Result.from_path(folder / "run").checkpoint
    assert checkpoint is not None
    return load_state(Path(checkpoint.path))[0]


@pytest.mark.usefixtures("no_cluster_named")
class TestWays:
    """The command in this process, each time on a cluster of its own."""

    @pytest.fixture(autouse=True)
    def one_thread(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the runs in this process
        threads = torch.get_num_threads()
        yield
        torch.set_num_threads(threads)

    def train(self, folder: Path, *more: str, mode: str = "distributed") -> list[dict[str, Any]]:
        where = ["--mode", mode, "--workers", str(WORKERS), "--save-dir", str(folder)]
        assert gan_train.main([*where, *TINY, *more]) == 0
        return history(folder)

    @pytest.mark.slow
    def test_ddp_with_statistics_of_each_worker_ends_equal(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.train(tmp_path, "--parallel", "ddp", "--batchnorm", "local", "--epochs", "2")
        assert f"all {WORKERS} workers hold the same weights" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "strategy",
        [pytest.param(one, marks=() if one == "momentum" else pytest.mark.slow) for one in STRATEGIES],
    )
    def test_a_cluster_computes_what_one_process_would(self, strategy: str, tmp_path: Path) -> None:
        images = data.load("synthetic:67", seed=5).images  # 4 steps an epoch, the last one smaller
        more = (
            "--dataset",
            "synthetic:67",
            "--sync-strategy",
            strategy,
            "--sync-interval",
            "3",
            "--epochs",
            "2",
        )
        rows = self.train(tmp_path, *more)
        config = TrainConfig(
            workers=WORKERS, width=4, latent_dim=8, batch_size=8, seed=5, sync_strategy=strategy
        )
        schedule, blueprint = Schedule(67, 8, WORKERS, 5), Blueprint(config)
        merged = blueprint.fresh().merged
        merger = Merger(blueprint.layout.parts, merged, strategy=strategy, momentum=config.momentum)
        replicas = [Replica(config, rank, images) for rank in range(WORKERS)]
        for one, row in zip(schedule.rounds(0, 2, 3), rows, strict=True):
            for replica in replicas:
                replica.load(merged)
            seen = [replica.train(one.first_step, one.steps) for replica in replicas]
            counts = [report.images for report in seen]
            expected = np.average([report.d_loss for report in seen], weights=counts)
            assert row["d_loss"] == pytest.approx(expected, rel=1e-3)
            merged = merger.merge(one.steps, counts, *[replica.vector() for replica in replicas])
        state = saved(tmp_path)
        np.testing.assert_allclose(state.merged, merged, rtol=1e-2, atol=1e-3)
        assert len(state.moments) == WORKERS and (state.moments[0] != state.moments[1]).any()

    def test_ddp_with_one_or_two_workers_gives_the_same_losses(self, tmp_path: Path) -> None:
        """BatchNorm over all workers and noise by global index: only the order of sums differs."""
        more = ("--parallel", "ddp", "--epochs", "3", "--sync-interval", "1", "--dataset", "synthetic:75")
        two = self.train(tmp_path / "two", *more)
        one = self.train(tmp_path / "one", *more, "--batch-size", "16", mode="single")
        assert len(one) == len(two) == 15
        for name in ("d_loss", "g_loss", "d_real", "d_fake"):
            assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=2e-3), name
        np.testing.assert_allclose(saved(tmp_path / "two").merged, saved(tmp_path / "one").merged, atol=5e-3)

    def test_a_parameter_server_trains_and_ends_with_one_model(self, tmp_path: Path) -> None:
        rows = self.train(tmp_path, "--parallel", "ps", "--epochs", "2", "--sync-interval", "2")
        assert [row["step"] for row in rows] == [2, 4, 6, 8] and all(
            np.isfinite(row["g_loss"]) for row in rows
        )
        story = json.loads((tmp_path / "run.json").read_text())
        merged = hashlib.blake2b(saved(tmp_path).merged.tobytes(), digest_size=8).hexdigest()
        assert merged == story["weights_digest"] and story["config"]["parallel"] == "ps"


@pytest.mark.usefixtures("cluster")
def test_more_workers_than_the_cluster_has_cpus_are_refused_at_once(tmp_path: Path) -> None:
    said = train(tmp_path, "--address", "auto", "--workers", "5", code=2)
    assert "--workers 5 needs 5 CPUs" in said and str(WORKERS) in said
