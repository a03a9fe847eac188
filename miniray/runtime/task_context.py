"""What runs here: the task on this thread or coroutine, what it holds, and the functions it may call.

A `TaskContext` follows the user's code through threads and coroutines (a ContextVar); the engine
reads it for parents of tasks, runtime contexts and to know that a waiting thread is a waiting task.
"""

from __future__ import annotations

import inspect
import os
import pickle
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from miniray import config
from miniray._proto import worker_pb2 as wire
from miniray.core.resources import UNIT
from miniray.runtime import values
from miniray.runtime.gpus import visible_names

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker

CURRENT: ContextVar[TaskContext | None] = ContextVar("miniray_task", default=None)
"""The task that runs on this thread or coroutine."""


class ExitActor(BaseException):
    """Raised by `exit_actor()`: the process ends on purpose after this call."""


class Assignment:
    """What the running tasks, or the actor, hold. Amounts are in units of 1/10,000."""

    __slots__ = ("resources", "slots", "placement_group_id", "capture", "runtime_env")

    def __init__(self, terms: wire.LeaseTerms, resources: dict[str, int] | None = None) -> None:
        kind = terms.scheduling_class
        self.resources = dict(kind.resources.amounts) if resources is None else resources
        self.slots = [(slot.resource, slot.index, slot.amount) for slot in terms.slots]
        self.placement_group_id: bytes = kind.strategy.bundle.placement_group_id
        self.capture: bool = kind.strategy.bundle.capture_child_tasks
        self.runtime_env: str = kind.runtime_env

    def show_devices(self) -> None:
        """Libraries see what was assigned: as many threads as CPUs, and the GPUs, as in Ray."""
        limit_threads(max(1, self.resources.get("CPU", 0) // UNIT))
        gpus = [str(device(index)) for name, index, _ in self.slots if name == "GPU"]
        if not gpus and not config.get("accel_env_var_override_on_zero"):
            return
        if not config.get("noset_cuda_visible_devices"):
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)


NODE_DEVICES = visible_names(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
"""The GPUs that this worker's node was given, in the order of its slots; [] when it was given all."""


def device(index: int) -> int | str:
    """The GPU in this slot of the node, as CUDA_VISIBLE_DEVICES names it."""
    name = NODE_DEVICES[index] if index < len(NODE_DEVICES) else str(index)
    return int(name) if name.isdigit() else name


_threads_shown = ""
"""What `limit_threads` has set; another value of OMP_NUM_THREADS is the user's."""


def limit_threads(count: int) -> None:
    """Numeric libraries start so many threads, unless the user has said how many."""
    global _threads_shown
    text = str(count)
    if text == _threads_shown or os.environ.get("OMP_NUM_THREADS", _threads_shown) != _threads_shown:
        return
    os.environ["OMP_NUM_THREADS"] = _threads_shown = text
    torch = sys.modules.get("torch")
    if torch is not None:  # it has read the variable already
        torch.set_num_threads(count)


NO_LEASE = Assignment(wire.LeaseTerms())


class TaskContext:
    """What runs on the calling thread or coroutine."""

    __slots__ = ("task_id", "name", "attempt", "actor_id", "assignment", "cancelled", "function")
    function: Function

    def __init__(
        self, task_id: bytes, name: str, attempt: int, actor_id: bytes, assignment: Assignment
    ) -> None:
        self.task_id = task_id
        self.name = name
        self.attempt = attempt
        self.actor_id = actor_id
        self.assignment = assignment
        self.cancelled = 0.0        # when it was told to end, on the monotonic clock; 0 for never

    @property
    def function_name(self) -> str:
        """Module and name of the function or method that runs; `name` while it is not known."""
        function = getattr(self, "function", None)
        return function.full_name if function is not None else self.name

    @property
    def resources(self) -> dict[str, int]:
        """What the task holds, in units of 1/10,000."""
        return self.assignment.resources

    @property
    def slots(self) -> list[tuple[str, int, int]]:
        """Devices assigned: (resource, index, amount)."""
        return self.assignment.slots

    @property
    def placement_group_id(self) -> bytes:
        """The group the task runs in; empty for none."""
        return self.assignment.placement_group_id

    @property
    def runtime_env(self) -> str:
        """Canonical JSON of the runtime environment; empty for none."""
        return self.assignment.runtime_env


class TaskHost:
    """What every executor tells of the task that runs on the calling thread or coroutine."""

    def __init__(self, worker: CoreWorker) -> None:
        self.worker = worker

    @property
    def current_task(self) -> bytes:
        """The id of the task; outside of tasks the id under which the process acts."""
        context = CURRENT.get()
        return context.task_id if context is not None else self.worker.default_task

    def under_way(self) -> list[tuple[TaskContext, float]]:
        """What runs in this process, and since when (monotonic seconds)."""
        return []

    def context(self) -> TaskContext | None:
        """What runs, or None outside of tasks."""
        return CURRENT.get()


class Function:
    """A function or method that a peer calls by number."""

    __slots__ = ("name", "title", "call", "count", "max_calls", "group", "backpressure")

    def __init__(self, definition: bytes, cache: dict[bytes, Any], instance: Any) -> None:
        about, body = pickle.loads(definition)
        self.name: str = about["name"]
        self.title = f"ray::{about.get('title') or self.name}"
        self.group: str = about.get("group", "")
        self.max_calls: int = about.get("max_calls", 0)
        self.count = 0
        self.backpressure: int = about.get("backpressure", -1)
        if body:
            known = cache.get(body)
            if known is None:
                known = cache[body] = imported(body, "The remote function")
            self.call: Any = known
        else:
            self.call = bound_method(instance, self.name)

    @property
    def full_name(self) -> str:
        """Its module and name. Of coroutines with the functions around the definition, as in Ray."""
        qualified = getattr(self.call, "__qualname__", self.name)
        if not (inspect.iscoroutinefunction(self.call) or inspect.isasyncgenfunction(self.call)):
            qualified = qualified.rpartition("<locals>.")[2]
        return f"{getattr(self.call, '__module__', '')}.{qualified}"


def imported(definition: bytes, what: str) -> Any:
    """The function or class in a pickled definition. RuntimeError with the cause if that cannot be loaded."""
    try:
        return values.deserialize_function(definition)
    except Exception as error:
        raise RuntimeError(
            f"{what} failed to import on the worker: {type(error).__name__}: {error}. Modules that it needs "
            f"must be where this worker finds them (a runtime_env can bring them): {sys.path}"
        ) from error


def bound_method(instance: Any, name: str) -> Any:
    """The actor's method, with the three that every actor has."""
    if name == "__ray_ready__":
        return lambda: True
    if name == "__ray_call__":
        return lambda function, *args, **kwargs: function(instance, *args, **kwargs)
    if name == "__ray_terminate__":

        def terminate() -> None:
            raise ExitActor

        return terminate
    # On the class: an attribute of the instance may have the method's name.
    method = inspect.getattr_static(type(instance), name, None)
    bind = getattr(method, "__get__", None)
    return bind(instance, type(instance)) if bind is not None else getattr(instance, name)
