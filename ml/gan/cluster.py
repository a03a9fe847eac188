"""Connecting a command to a cluster: one that runs, by address, else one of this machine for this run.

And a word that reaches workers on every node, also where the run's folder is not seen: to end the run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import miniray as ray
from ml.gan.machine import usable_cores


class NoCluster(Exception):
    """There is no cluster to connect to, or it is too small; the message says which."""


@contextmanager
def connected(address: str, workers: int) -> Iterator[dict[str, float]]:
    """Inside the block miniray is connected; yields the cluster's resources. Raises NoCluster.

    An empty `address` means $MINIRAY_ADDRESS (or $RAY_ADDRESS), and without those a cluster of this machine,
    which offers at least one CPU per worker, even if the machine has fewer.
    """
    wanted = address or os.environ.get("MINIRAY_ADDRESS") or os.environ.get("RAY_ADDRESS")
    try:
        if wanted:
            ray.init(address=wanted)
        else:
            ray.init(num_cpus=max(workers, usable_cores()), preload=["torch"])  # forked workers share it
    except (ConnectionError, TimeoutError, ValueError, RuntimeError) as error:
        raise NoCluster(f"no cluster at '{wanted or 'this machine'}': {error}") from error
    try:
        resources = dict(ray.cluster_resources())
        cpus = resources.get("CPU", 0.0)
        if cpus < workers:
            raise NoCluster(f"--workers {workers} needs {workers} CPUs; the cluster has {cpus:g}")
        yield resources
    finally:
        ray.shutdown()


class _Word:
    """An actor that does nothing: that it is there says it."""


def give_word(run: Path) -> Any:
    """Have `word_is_out` be true for a run's folder, as long as what this returns is kept."""
    return ray.remote(_Word).options(name=_name(run), num_cpus=0).remote()


def word_is_out(run: Path) -> bool:
    """Has the driver given the word for this run? One question to the head."""
    try:
        ray.get_actor(_name(run))
    except ValueError:
        return False
    return True


def _name(run: Path) -> str:
    return f"gan-stop-{hashlib.blake2b(str(run.absolute()).encode(), digest_size=16).hexdigest()}"
