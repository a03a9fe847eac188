"""The results of a task that raised: what its caller gets in place of values.

On the thread that ran the task, or the loop of an asyncio actor.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from miniray.core.directory import FAILED
from miniray.core.owner import Result
from miniray.exceptions import RayTaskError, TaskCancelledError
from miniray.ids import TaskID
from miniray.runtime.errors import pack_failure, task_error
from miniray.runtime.task_context import CURRENT, Function

if TYPE_CHECKING:
    from miniray.runtime.executor import Executor


def failures(
    executor: Executor, error: BaseException, function: Function | None, peer: Any, count: int
) -> list[Result]:
    """`count` results: the error in place of each. The caller holds the references inside, for each anew."""
    payload, refs = pack_failure(_told(executor, error, function))
    entries = [ref.entry for ref in refs]
    return [Result(FAILED, payload, len(payload), executor.introduce(entries, peer)) for _ in range(count)]


def _told(executor: Executor, error: BaseException, function: Function | None) -> BaseException:
    """What the caller gets for what a task raised."""
    name = function.name if function is not None else "unknown"
    if executor.actor_spec is not None:
        name = f"{executor.actor_spec.class_name}.{name}"
    if isinstance(error, KeyboardInterrupt):
        context = CURRENT.get()
        traceback = error.__traceback__
        error = TaskCancelledError(TaskID(context.task_id) if context is not None else None)
        error.__traceback__ = traceback
    if isinstance(error, RayTaskError) and error.function_name == name:
        return error
    return named(executor, error, name)


def named(executor: Executor, error: BaseException, name: str) -> RayTaskError:
    """An error of the task or method `name`, which says where it ran."""
    spec = executor.actor_spec
    if spec is None:
        return task_error(error, name, pid=os.getpid())
    try:
        shown = repr(executor.actor) if executor.actor is not None else spec.class_name
    except Exception:
        shown = object.__repr__(executor.actor)
    return task_error(error, name, pid=os.getpid(), actor_repr=shown, actor_id=spec.actor_id)
