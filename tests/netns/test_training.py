"""The flagship job over four hosts: its workers meet at the addresses of the nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.netns.cluster import ROOT, NetCluster

pytest.importorskip("torch", reason="torch is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TINY = (
    "--dataset", "synthetic:64", "--width", "4", "--latent-dim", "8", "--batch-size", "8", "--epochs", "2",
    "--quality-images", "0", "--sync-interval", "1",
)  # fmt: skip


def train(cluster: NetCluster, folder: Path, *more: str) -> dict[str, object]:
    """Train with a worker on every host, from the first; returns run.json."""
    host = cluster.hosts[0]
    command = [
        *host.enter, sys.executable, "-m", "ml.gan.train", "--mode", "distributed", "--workers", "4",
        "--save-dir", str(folder), *TINY, *more,
    ]  # fmt: skip
    environment = os.environ | cluster.environment(host) | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, object] = json.loads((folder / "run.json").read_text())
    return found


@pytest.mark.parametrize("parallel", ["ddp", "ps"])
def test_four_hosts_train_one_model(shared_four: NetCluster, tmp_path: Path, parallel: str) -> None:
    story = train(shared_four, tmp_path, "--parallel", parallel)
    workers = story["workers"]
    assert isinstance(workers, list) and [worker["rank"] for worker in workers] == [0, 1, 2, 3]
    assert story["images_trained"] == 128 and story["weights_digest"]
    assert (tmp_path / "generator.pth").exists()
