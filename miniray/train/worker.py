"""The actor around one training loop.

The loop runs in a thread of its own; the actor's `run` is a generator that yields what the loop
reports, so reports stream to the driver while the loop goes on, and the death of this process is the
end of that stream.
"""

from __future__ import annotations

import inspect
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import miniray as ray
from miniray.train import datasets, session
from miniray.train.backend import BackendConfig
from miniray.train.checkpoint import Checkpoint
from miniray.train.memory import keep_freed
from miniray.train.session import Session, TrainContext
from miniray.train.storage import sees, unpack


@dataclass(frozen=True)
class Place:
    """Where a worker runs."""

    node_id: str
    host: str
    pid: int
    sees_storage: bool = True


@dataclass(frozen=True)
class Done:
    """The loop has returned."""

    value: Any


@dataclass(frozen=True)
class Assignment:
    """All that a worker needs to begin."""

    context: TrainContext
    group: str
    backend: BackendConfig
    marker: str
    checkpoint: str | None
    data: dict[str, tuple[Any, bool]]
    """Of each data set: the reference to it, and whether it is cut into shares."""
    files: Any = None
    """A reference to the checkpoint's files, for a worker that does not see their directory."""


class TrainWorker:
    """One worker of a group."""

    def place(self, storage_path: str, marker: str) -> Place:
        """Where this is, and whether the driver's folder is seen here."""
        self._sees_storage = sees(storage_path, marker)
        node_id = ray.get_runtime_context().get_node_id()
        return Place(node_id, socket.gethostname(), os.getpid(), self._sees_storage)

    def start(self, assignment: Assignment) -> None:
        """Set up the backend; every worker of the group must be told at the same time."""
        context = assignment.context
        keep_freed()
        os.environ.update(
            RANK=str(context.world_rank), WORLD_SIZE=str(context.world_size),
            LOCAL_RANK=str(context.local_rank), LOCAL_WORLD_SIZE=str(context.local_world_size),
            NODE_RANK=str(context.node_rank),
        )  # fmt: skip
        self._backend = assignment.backend
        shards, checkpoint = self._shards(assignment), self._checkpoint(assignment)
        self._session = Session(context, checkpoint, shards, sees_storage=self._sees_storage)
        session.enter(self._session)
        self._backend.on_start(context, assignment.group)

    def _checkpoint(self, assignment: Assignment) -> Checkpoint | None:
        """What to go on from; on a node that does not see it, a copy in the node's session directory."""
        if assignment.files is None:
            return Checkpoint(assignment.checkpoint) if assignment.checkpoint else None
        here = ray.get_runtime_context()
        name = f"{assignment.marker}-{assignment.context.world_rank}"
        copy = Path(here.get_temp_dir(), here.get_session_name(), "train", name)
        shutil.rmtree(copy, ignore_errors=True)
        unpack(ray.get(assignment.files), copy)
        return Checkpoint(copy)

    def _shards(self, assignment: Assignment) -> Callable[[str], Any]:
        context = assignment.context

        def shard(name: str) -> datasets.Shard:
            if name not in assignment.data:
                raise KeyError(f"no data set {name!r} among those of the trainer: {list(assignment.data)}")
            ref, split = assignment.data[name]
            part = (context.world_rank, context.world_size) if split else (0, 1)
            return datasets.Shard(ray.get(ref), *part)

        return shard

    def run(self, loop: Callable[..., Any], config: dict[str, Any] | None) -> Iterator[Any]:
        """Run the loop; yields its Reports, and a Done at its end. Raises what the loop raises."""
        reports = self._session.reports

        def body() -> None:
            try:
                reports.put(Done(call_loop(loop, config)))
            except BaseException as error:
                reports.put(error)

        threading.Thread(target=body, name="training loop", daemon=True).start()
        while True:
            said = reports.get()
            if isinstance(said, BaseException):
                raise said
            if isinstance(said, Done):
                self._backend.on_shutdown()
                yield Done(said.value if self._session.context.world_rank == 0 else None)
                return
            yield said


def call_loop(loop: Callable[..., Any], config: dict[str, Any] | None) -> Any:
    """Call a loop with its config, if it takes one."""
    return loop(config if config is not None else {}) if inspect.signature(loop).parameters else loop()
