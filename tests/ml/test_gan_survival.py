"""Kills in the middle of a training: a worker, a node, the head twenty times, the driver; the same result.

Training is data-parallel with a checkpoint an epoch, so a run that goes on from its checkpoints makes exactly
the steps that an undisturbed one makes, and ends with the same bits.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
ray: Any = pytest.importorskip("miniray", reason="the engine is not built")

from miniray.runtime import launch  # noqa: E402
from miniray.runtime.daemon import HeadOptions, NodeOptions  # noqa: E402
from ml.gan import data  # noqa: E402
from ml.gan.config import TrainConfig  # noqa: E402
from ml.gan.state import Blueprint  # noqa: E402
from ml.gan.trainer import Outputs, Result, Trainer  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
CONFIG = TrainConfig(
    mode="distributed", workers=2, parallel="ddp", epochs=12, batch_size=16, sync_interval=2, width=12,
    latent_dim=8, seed=5, dataset="synthetic:128",
)  # fmt: skip
ROUNDS = 24
"""Four steps an epoch, two of them a report."""
HEAD_KILLS = 20


class Machines:
    """A head that can be started again, and nodes; the test is a driver on the first one."""

    def __init__(self, folder: Path) -> None:
        self.token, self.storage = secrets.token_hex(32), f"sqlite:{folder}/head.sqlite"
        self.port, self.pids = 0, []
        self.start_head()
        self.home = self.add_node()
        self.other = self.add_node()

    def start_head(self) -> None:
        options = HeadOptions(port=self.port, token=self.token, storage=self.storage, driver_pid=os.getpid())
        ready = launch.start_daemon("head", options)
        self.head, self.address = ready["pid"], ready["address"]
        self.port = int(self.address.rpartition(":")[2])

    def kill_head(self) -> None:
        """Kill the head and start it again on its database, under its address."""
        end(self.head)
        self.start_head()

    def add_node(self) -> dict[str, Any]:
        options = NodeOptions(
            gcs_address=self.address, token=self.token, num_cpus=1, num_gpus=0, memory=2 << 30,
            object_store_memory=100 << 20, driver_pid=os.getpid(),
        )  # fmt: skip
        ready = launch.start_daemon("node", options)
        self.pids.append(ready["pid"])
        return ready

    def close(self) -> None:
        for pid in [*self.pids, self.head]:
            end(pid)


def end(pid: int) -> None:
    """SIGKILL, and wait until it is gone."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    signal.pidfd_send_signal(fd, signal.SIGKILL)
    assert select.select([fd], [], [], 30)[0], "a killed process is still there"
    os.close(fd)


class Disturbed(Trainer):
    """A Trainer that does something when reports have come."""

    act: Callable[[Disturbed, int], None] = staticmethod(lambda trainer, count: None)
    heard = 0

    def after_report(self, run_config: Any, metrics: Any, checkpoint: Any) -> None:
        super().after_report(run_config, metrics, checkpoint)
        self.heard += 1
        self.act(self, self.heard)


def train(
    folder: Path, act: Callable[[Disturbed, int], None] | None = None
) -> tuple[Result, list[dict[str, Any]]]:
    """Run to the end, with `act` after each report; the result, and what was reported in the end."""
    images = data.load(CONFIG.dataset, seed=CONFIG.seed)
    outputs = Outputs(folder, 1, 0, 0, 0, 0.0, max_failures=3, resources_per_worker={"CPU": 1.0})
    trainer = Disturbed(CONFIG, images, Blueprint(CONFIG).layout, outputs, io.StringIO())
    if act is not None:
        trainer.act = act  # type: ignore[method-assign]
    result = trainer.run()
    lines = (folder / "run" / "result.jsonl").read_text().splitlines()
    return result, [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        made = Machines(tmp_path_factory.mktemp("head"))
        ray.init(made.home["session_dir"], configure_logging=False, log_to_driver=False)
        yield made
        ray.shutdown()
        made.close()


@pytest.fixture(scope="module")
def undisturbed(machines: Machines, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[float]]:
    """The weights' fingerprint and the losses of a run that nothing happens to."""
    result, rows = train(tmp_path_factory.mktemp("undisturbed"))
    assert len(rows) == ROUNDS and result.finished
    return result.digest, [row["d_loss"] for row in rows]


def failures(folder: Path) -> int:
    return int(json.loads((folder / "run" / "run_state.json").read_text())["failures"])


def same(found: tuple[Result, list[dict[str, Any]]], undisturbed: tuple[str, list[float]]) -> None:
    result, rows = found
    assert [row["training_iteration"] for row in rows] == list(range(1, ROUNDS + 1))
    assert [row["d_loss"] for row in rows] == undisturbed[1], "the loss curve goes on where it stood"
    assert result.digest == undisturbed[0]


def test_a_worker_is_killed(undisturbed: tuple[str, list[float]], tmp_path: Path) -> None:
    def act(trainer: Disturbed, count: int) -> None:
        if count in (5, 11):
            os.kill(trainer.members[count % 2].pid, signal.SIGKILL)

    same(train(tmp_path, act), undisturbed)
    assert failures(tmp_path) == 2


def test_the_head_is_killed_twenty_times(
    machines: Machines, undisturbed: tuple[str, list[float]], tmp_path: Path
) -> None:
    kills = []

    def act(trainer: Disturbed, count: int) -> None:
        if count <= HEAD_KILLS:
            machines.kill_head()
            kills.append(count)

    same(train(tmp_path, act), undisturbed)
    assert len(kills) == HEAD_KILLS and failures(tmp_path) == 0


def test_a_node_is_killed_and_another_takes_its_place(
    machines: Machines, undisturbed: tuple[str, list[float]], tmp_path: Path
) -> None:
    def act(trainer: Disturbed, count: int) -> None:
        if count == 7:
            end(machines.other["pid"])
            machines.other = machines.add_node()

    same(train(tmp_path, act), undisturbed)
    assert failures(tmp_path) == 1


def test_the_driver_is_killed_and_the_run_resumed(
    undisturbed: tuple[str, list[float]], tmp_path: Path
) -> None:
    command = [
        sys.executable, "-m", "ml.gan.train", "--mode", "distributed", "--workers", "2", "--parallel", "ddp",
        "--epochs", "12", "--batch-size", "16", "--sync-interval", "2", "--width", "12", "--latent-dim", "8",
        "--seed", "5", "--dataset", "synthetic:128", "--checkpoint-every", "1", "--quality-images", "0",
        "--save-dir", str(tmp_path),
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as driver:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "run_state.json").exists():  # written with the first checkpoint
            assert time.monotonic() < deadline and driver.poll() is None, "no checkpoint was made"
            time.sleep(0.005)
        driver.send_signal(signal.SIGKILL)
    done = subprocess.run([*command, "--resume"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / "result.jsonl").read_text().splitlines()
    story = json.loads((tmp_path / "run.json").read_text())
    assert [json.loads(line)["d_loss"] for line in lines] == undisturbed[1]
    assert story["weights_digest"] == undisturbed[0]
