"""Inside a training loop: `report`, `get_context`, `get_checkpoint`, `get_dataset_shard`.

One process runs one loop at a time, in a thread of its own; its session is the module's. Reports go
through a bounded queue to the thread that hands them to the driver, so a loop that reports faster
than the driver reads waits in `report`.
"""

from __future__ import annotations

import queue
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from miniray.train.checkpoint import Checkpoint
from miniray.train.exceptions import SessionMisuseError
from miniray.train.storage import Files, packed, persist

REPORTS_AHEAD = 64


@dataclass(frozen=True)
class TrainContext:
    """Where this worker stands in the group; Ray Train's class of the same name."""

    world_size: int = 1
    world_rank: int = 0
    local_rank: int = 0
    local_world_size: int = 1
    node_rank: int = 0
    node_id: str = ""
    experiment_name: str = ""
    storage_path: str = ""
    attempt: int = 0
    incarnation: str = ""
    """A name of this start of the workers, unlike that of any other."""

    def get_world_size(self) -> int:
        """How many workers train."""
        return self.world_size

    def get_world_rank(self) -> int:
        """This worker's number, from 0."""
        return self.world_rank

    def get_local_rank(self) -> int:
        """This worker's number among those of its node."""
        return self.local_rank

    def get_local_world_size(self) -> int:
        """How many workers this node has."""
        return self.local_world_size

    def get_node_rank(self) -> int:
        """The number of this node among those that train."""
        return self.node_rank

    def get_node_id(self) -> str:
        """The id of this node, hexadecimal."""
        return self.node_id

    def get_experiment_name(self) -> str:
        """The name of the run."""
        return self.experiment_name

    get_trial_name = get_experiment_name

    def get_storage(self) -> str:
        """The folder of the run."""
        return self.storage_path

    get_trial_dir = get_storage

    def get_attempt(self) -> int:
        """How many times the group has been started before in this `fit`."""
        return self.attempt


@dataclass(frozen=True)
class Report:
    """What a loop has said: the `number`-th report of this rank in this attempt, from 0."""

    number: int
    metrics: dict[str, Any]
    has_checkpoint: bool
    files: Files | None = None
    """Of the checkpoint, where the worker could not put them into the run's folder itself."""


@dataclass
class Session:
    """The state of one loop."""

    context: TrainContext
    checkpoint: Checkpoint | None = None
    shard: Callable[[str], Any] | None = None
    sees_storage: bool = True
    reports: queue.Queue[Any] = field(default_factory=lambda: queue.Queue(REPORTS_AHEAD))
    meeting: Any = None
    """The actor where `train.collective` waits for the other workers, once it is used."""
    _count: int = 0

    def report(self, metrics: Mapping[str, Any], checkpoint: Checkpoint | None) -> None:
        """Store the checkpoint's files, or take them along; then queue the report."""
        files = None
        if checkpoint is not None and self.sees_storage:
            persist(checkpoint, self.context.storage_path, staging_key(self.context.incarnation, self._count))
        elif checkpoint is not None:
            files = packed(checkpoint)
        plain = {name: _plain(value) for name, value in metrics.items()}
        self.queue(Report(self._count, plain, checkpoint is not None, files))
        self._count += 1

    def queue(self, report: Report) -> None:
        """Hand a report on."""
        self.reports.put(report)


def staging_key(incarnation: str, number: int) -> str:
    """The name under which the workers of one start stage the files of one report."""
    return f"{incarnation}-{number}"


_session: Session | None = None


def enter(session: Session | None) -> None:
    """Make `session` this process's; None: there is none any more."""
    global _session
    _session = session


def current() -> Session:
    """This process's session. SessionMisuseError where there is none."""
    if _session is None:
        raise SessionMisuseError("no training loop runs here: call this inside train_loop_per_worker")
    return _session


def report(
    metrics: Mapping[str, Any],
    checkpoint: Checkpoint | None = None,
    checkpoint_dir_name: str | None = None,
    *,
    delete_local_checkpoint_after_upload: bool = False,
) -> None:
    """Tell the driver metrics, and give it a checkpoint to keep.

    Every worker must report equally often; the metrics of worker 0 make the history, and the files of
    all workers' checkpoints of one report become one checkpoint. When this returns, the files are
    copied and may be removed; the checkpoint counts once every worker has made its report.

    Args:
        metrics: Numbers, mostly; arrays and tensors become lists.
        checkpoint: A directory of files. Workers that have nothing to store give None.
        checkpoint_dir_name: Ignored: directories are numbered.
        delete_local_checkpoint_after_upload: Remove the checkpoint's directory once its files are copied.
    """
    current().report(metrics, checkpoint)
    if checkpoint is not None and delete_local_checkpoint_after_upload:
        shutil.rmtree(checkpoint.path, ignore_errors=True)


def get_context() -> TrainContext:
    """Where this worker stands."""
    return current().context


def get_checkpoint() -> Checkpoint | None:
    """The checkpoint to go on from; None at a first start."""
    return current().checkpoint


def get_dataset_shard(dataset_name: str = "train") -> Any:
    """This worker's share of one of the trainer's `datasets`; see `datasets.Shard`. KeyError if unknown."""
    session = current()
    if session.shard is None:
        raise KeyError(f"no data set {dataset_name!r}: the trainer was made without datasets")
    return session.shard(dataset_name)


def _plain(value: Any) -> Any:
    """Tensors and arrays as numbers or lists; what was reported must not keep a graph or a GPU alive."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return value.tolist() if hasattr(value, "tolist") else value
