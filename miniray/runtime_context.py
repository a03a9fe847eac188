"""`get_runtime_context()`: who and where the caller is. Names and texts follow Ray's class."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

from miniray import api, ids
from miniray.options import UNIT

if TYPE_CHECKING:
    from miniray.actor import ActorHandle
    from miniray.runtime.worker import CoreWorker
    from miniray.runtime_env import RuntimeEnv

logger = logging.getLogger(__name__)

_GROUP_MARK = "_group_"


def _task(worker: CoreWorker) -> Any:
    """The running task's context: None in a driver and outside of tasks."""
    return worker.executor.context() if worker.executor is not None else None


def _assignment(worker: CoreWorker) -> Any:
    """What the running task, else this process's actor, holds; None in a driver."""
    task = _task(worker)
    if task is not None:
        return task.assignment
    return getattr(worker.executor, "assignment", None)


def current_group_id(worker: CoreWorker) -> bytes:
    """The placement group that the running task or actor is in; b"" for none."""
    assignment = _assignment(worker)
    return assignment.placement_group_id if assignment is not None else b""


def captures_children(worker: CoreWorker) -> bool:
    """Whether what the running task starts goes into the same placement group."""
    assignment = _assignment(worker)
    return assignment is not None and bool(assignment.placement_group_id) and assignment.capture


def current_runtime_env(worker: CoreWorker) -> str:
    """Canonical JSON of the environment of the running task, actor or job; "" for none."""
    assignment = _assignment(worker)
    found: str = assignment.runtime_env if assignment is not None else ""
    return found or worker.job.runtime_env


def _plain_name(resource: str) -> str:
    """The resource behind a placement group's own name for it."""
    return resource.partition(_GROUP_MARK)[0]


def accelerator_ids(worker: CoreWorker) -> dict[str, list[Any]]:
    """Resource → ids of the devices assigned to this task or actor, as CUDA_VISIBLE_DEVICES has them."""
    from miniray.runtime.task_context import device

    found: dict[str, list[Any]] = {"GPU": [], "TPU": [], "neuron_cores": []}
    assignment = _assignment(worker)
    for resource, index, _ in assignment.slots if assignment is not None else ():
        name = _plain_name(resource)
        devices = found.setdefault(name, [])
        one = device(index) if name == "GPU" else index
        if one not in devices:
            devices.append(one)
    return found


def _shown_name(worker: CoreWorker, task: Any) -> str:
    """The task's name with its class, if it is an actor's call."""
    name: str = task.name
    if task.actor_id and "." not in name:
        return f"{worker.executor.actor_spec.class_name}.{name}"
    return name


class RuntimeContext:
    """What the current driver, task or actor can know of itself. Ids come in hexadecimal."""

    def __init__(self, worker: CoreWorker) -> None:
        self.worker = worker

    def _in_worker(self) -> bool:
        if self.worker.is_driver:
            logger.warning("This method is only available when the process is a worker. Current mode: driver")
            return False
        return True

    def get(self) -> dict[str, Any]:
        """The ids of the current context in one dict."""
        out: dict[str, Any] = {
            "job_id": ids.JobID(self.worker.job_id),
            "node_id": ids.NodeID(self.worker.address[0]),
            "namespace": self.namespace,
        }
        task = _task(self.worker)
        if task is not None:
            out["task_id"] = ids.TaskID(task.task_id)
            if task.actor_id:
                out["actor_id"] = ids.ActorID(task.actor_id)
        return out

    def get_job_id(self) -> str:
        """The job."""
        return self.worker.job_id.hex()

    def get_node_id(self) -> str:
        """The node this process runs on."""
        return self.worker.address[0].hex()

    def get_worker_id(self) -> str:
        """This worker or driver process."""
        return self.worker.address[1].hex()

    def get_task_id(self) -> str | None:
        """The running task; None in a driver and outside of tasks."""
        task = _task(self.worker) if self._in_worker() else None
        return task.task_id.hex() if task is not None else None

    def get_task_name(self) -> str | None:
        """The running task's name ("f", "Actor.method" or the option `name`); None in a driver."""
        task = _task(self.worker) if self._in_worker() else None
        return _shown_name(self.worker, task) if task is not None else None

    def get_task_function_name(self) -> str | None:
        """Module and name of the running function or method; None in a driver."""
        task = _task(self.worker) if self._in_worker() else None
        return getattr(task, "function_name", None) or (task.name if task is not None else None)

    def get_attempt_number(self) -> int:
        """How often the running task was tried before: 0 the first time."""
        task = _task(self.worker)
        return task.attempt if task is not None else 0

    def get_actor_id(self) -> str | None:
        """The actor this process is; None in drivers and plain workers."""
        actor_id = self._actor_id()
        return actor_id.hex() if actor_id else None

    def _actor_id(self) -> bytes:
        executor = self.worker.executor
        if executor is None or executor.actor_spec is None:
            return b""
        found: bytes = executor.actor_spec.actor_id
        return found

    def get_actor_name(self) -> str | None:
        """The actor's name, "" if it has none; None outside of actors."""
        if not self._in_worker() or not self._actor_id():
            return None
        name: str = self.worker.executor.actor_spec.name
        return name

    @property
    def namespace(self) -> str:
        """The namespace of the current job."""
        return self.worker.namespace

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """True when this actor has been restarted. AssertionError outside of actors."""
        assert self._actor_id(), "This method should't be called inside Ray tasks."
        return bool(self.worker.executor.attempt > 0)

    def get_placement_group_id(self) -> str | None:
        """The placement group the task or actor is in; None for none."""
        return current_group_id(self.worker).hex() or None

    @property
    def should_capture_child_tasks_in_placement_group(self) -> bool:
        """Whether tasks started here go into the same placement group."""
        return captures_children(self.worker)

    def get_assigned_resources(self) -> dict[str, float]:
        """Resource → amount that the running task or actor holds. AssertionError in a driver."""
        assert not self.worker.is_driver, (
            "This method is only available when the process is a worker. Current mode: driver"
        )
        assignment = _assignment(self.worker)
        held = assignment.resources if assignment is not None else {}
        return {_plain_name(name): amount / UNIT for name, amount in held.items() if amount}

    def get_runtime_env_string(self) -> str:
        """The runtime environment of this process as JSON."""
        return current_runtime_env(self.worker) or "{}"

    @property
    def runtime_env(self) -> RuntimeEnv:
        """The runtime environment of this process."""
        from miniray.runtime_env import RuntimeEnv

        return RuntimeEnv.deserialize(self.get_runtime_env_string())

    @property
    def current_actor(self) -> ActorHandle[Any]:
        """A handle to the actor this is. RuntimeError outside of actors."""
        actor_id = self._actor_id()
        if not actor_id:
            raise RuntimeError("This method is only available in an actor.")
        from miniray.actor import restore_handle

        return restore_handle(actor_id, self.worker.executor.actor_spec.handle)

    @property
    def gcs_address(self) -> str:
        """HOST:PORT of the head; the session directory of a local session."""
        from miniray import session_context

        return session_context.address_of(self.worker)

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """Resource → ids of the devices assigned here."""
        return {name: [str(one) for one in found] for name, found in accelerator_ids(self.worker).items()}

    def get_node_labels(self) -> dict[str, str]:
        """The labels of this node."""
        return dict(self.worker.node_info.labels)

    def get_session_name(self) -> str:
        """The name of the session: the last part of its directory."""
        return self.worker.session_dir.rpartition("/")[2]

    def get_temp_dir(self) -> str:
        """The directory that holds session directories on this node."""
        return self.worker.session_dir.rpartition("/")[0]

    def is_canceled(self) -> bool:
        """True when the running actor call was cancelled. RuntimeError in asyncio actors."""
        executor = self.worker.executor
        if executor is not None and executor.actor_spec is not None and executor.actor_spec.is_async:
            raise RuntimeError("This method is not supported in an async actor.")
        task = _task(self.worker)
        return bool(task is not None and task.cancelled)

    # ---- Ray's older names

    @property
    def job_id(self) -> ids.JobID:
        """Deprecated: `get_job_id()`."""
        _deprecated("get_job_id")
        return ids.JobID(self.worker.job_id)

    @property
    def node_id(self) -> ids.NodeID:
        """Deprecated: `get_node_id()`."""
        _deprecated("get_node_id")
        return ids.NodeID(self.worker.address[0])

    @property
    def task_id(self) -> ids.TaskID | None:
        """Deprecated: `get_task_id()`."""
        _deprecated("get_task_id")
        assert not self.worker.is_driver, "This method is only available when the process is a worker."
        task = _task(self.worker)
        return ids.TaskID(task.task_id) if task is not None else None

    @property
    def actor_id(self) -> ids.ActorID | None:
        """Deprecated: `get_actor_id()`."""
        _deprecated("get_actor_id")
        assert not self.worker.is_driver, "This method is only available when the process is a worker."
        actor_id = self._actor_id()
        return ids.ActorID(actor_id) if actor_id else None

    @property
    def current_placement_group_id(self) -> ids.PlacementGroupID:
        """Deprecated: `get_placement_group_id()`."""
        _deprecated("get_placement_group_id")
        group = current_group_id(self.worker)
        return ids.PlacementGroupID(group) if group else ids.PlacementGroupID.nil()

    def get_resource_ids(self) -> dict[str, list[str]]:
        """Deprecated: `get_accelerator_ids()`."""
        _deprecated("get_accelerator_ids")
        return self.get_accelerator_ids()


def _deprecated(instead: str) -> None:
    warnings.warn(f"Use {instead}() instead", DeprecationWarning, stacklevel=3)


def get_runtime_context() -> RuntimeContext:
    """The context of the calling driver, task or actor."""
    return RuntimeContext(api.connected_worker())
