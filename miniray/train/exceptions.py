"""The errors of a training run."""

from __future__ import annotations

from miniray.exceptions import RayError


class TrainingFailedError(RayError):
    """The run failed more often than `max_failures` allows; its folder holds the last checkpoint."""


class WorkerGroupError(TrainingFailedError):
    """Workers failed. `worker_failures`: world rank → the error of that worker."""

    def __init__(self, message: str, worker_failures: dict[int, Exception]) -> None:
        super().__init__(message)
        self.worker_failures = worker_failures

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.args[0], self.worker_failures)


class StorageError(RayError):
    """The run's folder cannot be used as asked; the message says which and why."""


class SessionMisuseError(RuntimeError):
    """A function of the training loop was called where there is no loop."""
