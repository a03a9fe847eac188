"""Errors across processes: from exceptions to bytes, from `Failure` messages to exceptions.

An error travels as ``u32 length of text | text | pickle``: the text is what remains when the
pickle cannot be read on the other side. Daemons carry these bytes and never look inside. References
inside the error of a task are counted like those in a value: a table of them precedes the pickle.

Remote tracebacks keep the user's frames only: frames of the engine are dropped by file name.
Any thread; no state.
"""

from __future__ import annotations

import re
import struct
import sys
import traceback
from typing import TYPE_CHECKING, Any

from miniray import exceptions
from miniray.core.ids import NO_ACTOR, actor_of_task, task_of_object
from miniray.runtime import notes
from miniray.runtime.own_code import is_machinery

if TYPE_CHECKING:
    from collections.abc import Callable

    from miniray._proto.common_pb2 import Failure
    from miniray.core.directory import ObjectEntry
    from miniray.core.lineage import NotRebuilt
    from miniray.core.tasks import TaskRecord
    from miniray.ids import ObjectRef

MAX_TEXT = 64 * 1024
"""Bytes of traceback text kept; the middle of a longer one is cut."""

_LENGTH = struct.Struct("<I")

CHAIN_SHOWN = 16
"""Tasks that failed because an argument failed: so many of a chain are named in the last one's error."""

DEPENDENCY_NOTE = "  At least one of the input arguments for this task could not be computed:"


def _strip(error: traceback.TracebackException, seen: set[int]) -> None:
    """Drop the engine's frames from an error and all that is chained to it."""
    if id(error) in seen:
        return
    seen.add(id(error))
    kept = [frame for frame in error.stack if not is_machinery(frame.filename)]
    error.stack = traceback.StackSummary.from_list(kept)
    for chained in (error.__cause__, error.__context__, *(getattr(error, "exceptions", None) or ())):
        if chained is not None:
            _strip(chained, seen)


def format_exception(error: BaseException) -> str:
    """The traceback of `error` and its chain, user frames only."""
    summary = traceback.TracebackException.from_exception(error)
    _strip(summary, set())
    text = "".join(summary.format())
    if sys.version_info < (3, 11):
        text += "".join(f"{note}\n" for note in notes.of(error))
    if not text.startswith("Traceback ") and not hasattr(error, "exceptions"):
        text = "Traceback (most recent call last):\n" + text
    return _shorten(text)


def _shorten(text: str) -> str:
    if len(text) <= MAX_TEXT:
        return text
    half = MAX_TEXT // 2
    return f"{text[:half]}\n... ({len(text) - MAX_TEXT} characters left out) ...\n{text[-half:]}"


def task_error(
    error: BaseException,
    function_name: str,
    *,
    pid: int | None = None,
    ip: str = "127.0.0.1",
    actor_repr: str | None = None,
    actor_id: bytes | None = None,
) -> exceptions.RayTaskError:
    """What a caller gets when `error` leaves a task: `function_name` is "f" or "A.method".

    An error that came from another task keeps its first cause, so causes do not nest.
    """
    cause = error.cause if isinstance(error, exceptions.RayTaskError) else error
    return exceptions.RayTaskError(
        function_name,
        format_exception(error),
        cause,
        pid=pid,
        ip=ip,
        actor_repr=actor_repr,
        actor_id=actor_id.hex() if actor_id else None,
    )


def dependency_error(
    error: BaseException,
    function_name: str,
    *,
    pid: int | None = None,
    ip: str = "127.0.0.1",
    actor_repr: str | None = None,
    actor_id: bytes | None = None,
) -> exceptions.RayTaskError:
    """The error of a task that could not start because the argument `error` stands for failed."""
    name = type(error).__qualname__ if not isinstance(error, exceptions.RayTaskError) else "RayTaskError"
    text = f"Traceback :\n{DEPENDENCY_NOTE}\n{type(error).__module__}.{name}: {error}"
    cause = error.cause if isinstance(error, exceptions.RayTaskError) else error
    return exceptions.RayTaskError(
        function_name,
        _shorten(text),
        cause,
        pid=pid,
        ip=ip,
        actor_repr=actor_repr,
        actor_id=actor_id.hex() if actor_id else None,
    )


def pack_exception(error: BaseException) -> bytes:
    """`error` as bytes. A cause that cannot be pickled becomes a RayError with its text.

    References inside are kept alive for ever.
    """
    from miniray.runtime import values

    try:
        pickled = values.dumps(error)
    except Exception as e:
        pickled = values.dumps(_degraded(error, e))
    return _head(error) + pickled


def pack_failure(error: BaseException) -> tuple[bytes, list[ObjectRef[Any]]]:
    """`pack_exception` for the result of a task: the references inside are for the caller to count."""
    from miniray.runtime import values

    try:
        packed = values.dumps_counted(error)
    except Exception as e:
        packed = values.dumps_counted(_degraded(error, e))
    return _head(error) + packed.pack(), packed.refs


def _head(error: BaseException) -> bytes:
    text = "".join(traceback.format_exception_only(type(error), error)).rstrip("\n")
    raw = _shorten(text).encode("utf-8", "replace")
    return _LENGTH.pack(len(raw)) + raw


def _degraded(error: BaseException, failure: Exception) -> exceptions.RayError:
    """A picklable stand-in for an error that is not."""
    task = error if isinstance(error, exceptions.RayTaskError) else None
    original = task.cause if task is not None else error
    kind = f"{type(original).__module__}.{type(original).__name__}"
    details = task.traceback_str if task is not None else format_exception(error)
    stand_in = exceptions.RayError(
        f"Exception {kind} isn't serializable: {failure}\nOriginal exception details:\n{details}"
    )
    if task is None:
        return stand_in
    return exceptions.RayTaskError(
        task.function_name,
        task.traceback_str,
        stand_in,
        task.proctitle,
        task.pid,
        task.ip,
        task.actor_repr,
        task._actor_id,
    )


def unpack_exception(data: bytes | memoryview) -> BaseException:
    """The error that `pack_exception` wrote, or UnserializableException with its text."""
    from miniray.runtime import values

    view = memoryview(data)
    (length,) = _LENGTH.unpack_from(view)
    text = bytes(view[4 : 4 + length]).decode("utf-8", "replace")
    try:
        error = values.loads(view[4 + length :])
    except Exception:
        return exceptions.UnserializableException(text)
    return error if isinstance(error, BaseException) else exceptions.UnserializableException(text)


DESCRIBED = 1900
"""Characters of an error in a task's row, the last ones of a long traceback."""


def described(error: Any) -> str:
    """An error as a task's row tells it: Ray's name of its kind, a colon, and its text; "" for none."""
    from miniray._proto import common_pb2 as pb

    while isinstance(error, FailedArgument):
        error = error.cause
    if isinstance(error, bytes):
        (length,) = _LENGTH.unpack_from(error)
        text = error[4 : 4 + length].decode("utf-8", "replace")
        return f"TASK_EXECUTION_EXCEPTION: User exception:\n{text[-DESCRIBED:]}"
    kind = getattr(error, "kind", 0)
    if not kind:
        return str(getattr(error, "message", ""))
    return f"{pb.ErrorKind.Name(kind)}: {error.message[-DESCRIBED:]}"


_RAISED = re.compile(r"(?:[\w<>]+\.)*[A-Z]\w*(?:: .*)?$")
"""The line of a traceback that says what was raised."""


def words_of(error: bytes | Failure | FailedArgument | None) -> list[str]:
    """An entry's error as links of a chain: what happened, and a process's last words.

    "KeyError: 'x'" of what user code raised; nothing is unpickled for it.
    """
    if error is None:
        return []
    if isinstance(error, FailedArgument):
        first, *more = words_of(error.cause) or [""]
        return [f"its argument {error.object_id.hex()} failed: {first}", *more]
    if not isinstance(error, (bytes, memoryview)):
        from miniray.core.explain import causes

        return causes(error)
    (length,) = _LENGTH.unpack_from(error)
    lines = bytes(memoryview(error)[4 : 4 + length]).decode("utf-8", "replace").splitlines()
    said = next((line for line in reversed(lines) if _RAISED.match(line)), "")
    said = said or next((line for line in reversed(lines) if line.strip()), "")
    note = next((line for line in reversed(lines) if line.startswith(notes.WHILE)), "")
    return [f"{said} {note}".rstrip()] if said else []


def raised(error: BaseException) -> BaseException:
    """What `get` raises for a stored error: a task error also as the user's own type."""
    return error.as_instanceof_cause() if isinstance(error, exceptions.RayTaskError) else error


# ---- Failure messages ----


def _details(failure: Failure, task: str = "") -> str:
    """The failure's sentence, with how the process ended, where, in which `task`, and what it last said."""
    text = failure.message
    node = f"node {failure.node_id.hex()[:12]}" if failure.node_id and failure.pid else ""
    concerned = ", ".join(part for part in (task, node) if part)
    if concerned:
        text += f" ({concerned})"
    if failure.exit_detail and failure.exit_detail not in text:
        text += f" ({failure.exit_detail})"
    if failure.stderr_tail:
        text += f"\nLast lines of its stderr:\n{failure.stderr_tail.rstrip()}"
    return text


def _actor_died(failure: Failure, actor_id: bytes | None, task_name: str) -> Exception:
    if failure.payload:
        cause = unpack_exception(failure.payload)
        if isinstance(cause, exceptions.RayActorError):
            return cause
        if isinstance(cause, exceptions.RayTaskError):
            if cause._actor_id is None and actor_id:
                cause._actor_id = actor_id.hex()
            return exceptions.ActorDiedError(cause)
        if isinstance(cause, exceptions.RayError):
            return cause
    details = _details(failure)
    death = exceptions.ActorDeath(
        actor_id=actor_id.hex() if actor_id else "",
        message=f"The{details[3:]}" if details.startswith("the ") else details,
        class_name=task_name.partition(".")[0],
        pid=failure.pid,
    )
    error = exceptions.ActorDiedError(death)
    error.actor_id = death.actor_id or None
    return error


def _cancelled(task_id: bytes | None, failure: Failure) -> Exception:
    from miniray import ids

    return exceptions.TaskCancelledError(ids.TaskID(task_id) if task_id else None, failure.message or None)


def exception_of(
    failure: Failure,
    *,
    object_id: bytes | None = None,
    actor_id: bytes | None = None,
    task_name: str = "",
) -> Exception:
    """The typed error that `failure` stands for.

    `object_id` is the object that was asked for (its task and actor are read off the id),
    `task_name` the function or "Class.method" that was to make it.
    """
    from miniray._proto import common_pb2 as pb

    task_id = task_of_object(object_id) if object_id else None
    if actor_id is None and task_id is not None and actor_of_task(task_id)[:12] != NO_ACTOR:
        actor_id = actor_of_task(task_id)
    kind = failure.kind
    if kind == pb.USER_ERROR and failure.payload:
        error = raised(unpack_exception(failure.payload))
        return error if isinstance(error, Exception) else exceptions.RaySystemError(error)
    if kind == pb.ACTOR_DIED:
        return _actor_died(failure, actor_id, task_name)
    if kind == pb.TASK_CANCELLED:
        return _cancelled(task_id, failure)
    if kind == pb.UNAVAILABLE and actor_id is not None:
        return exceptions.ActorUnavailableError(_details(failure), actor_id)
    if kind in (pb.OBJECT_LOST, pb.OWNER_DIED):
        return _object_error(failure, object_id)
    simple = _SIMPLE.get(pb.ErrorKind.Name(kind))
    task = f"task {task_name} {task_id.hex()[:12]}" if task_id and task_name and failure.pid else ""
    text = _details(failure, task)
    if kind == pb.PLACEMENT_GROUP_REMOVED:
        removed = exceptions.ActorPlacementGroupRemoved if actor_id else exceptions.TaskPlacementGroupRemoved
        return removed(f"{removed.DEFAULT} {text[:1].upper()}{text[1:]}." if text else "")
    if kind == pb.INFEASIBLE and actor_id is not None:
        return exceptions.ActorUnschedulableError(text)
    return simple(text) if simple is not None else exceptions.RaySystemError(text)


class FailedArgument:
    """The error of a task whose argument failed: that argument's error, and who wanted it.

    Only a link while a failure runs down a chain of tasks; made into an exception when somebody looks.
    """

    __slots__ = ("cause", "object_id", "made_by", "wanted_by")

    def __init__(self, record: TaskRecord, argument: ObjectEntry) -> None:
        self.cause: bytes | Failure | FailedArgument = argument.value
        self.object_id = argument.id
        self.made_by = argument.task.label if argument.task is not None else ""
        self.wanted_by = record.label

    def exception(self) -> exceptions.RayTaskError:
        """The error of the task `wanted_by`, which tells of those before it."""
        names = []
        link: Any = self
        while isinstance(link, FailedArgument):
            names.append(link.wanted_by)
            last, link = link, link.cause
        error = unpack_exception(link) if isinstance(link, bytes) else None
        if error is None:
            error = exception_of(link, object_id=last.object_id, task_name=last.made_by)
        if len(names) > CHAIN_SHOWN:
            names[CHAIN_SHOWN - 1 : -1] = []
        for name in reversed(names):
            error = dependency_error(error, name)
        assert isinstance(error, exceptions.RayTaskError)
        return error


def error_of(entry: ObjectEntry) -> BaseException:
    """The exception that a FAILED entry stands for."""
    error = entry.value
    if isinstance(error, bytes):
        return unpack_exception(error)
    if isinstance(error, FailedArgument):
        return error.exception()
    record = entry.task
    return exception_of(error, object_id=entry.id, task_name=record.label if record is not None else "")


def failure_bytes(error: bytes | Failure | FailedArgument) -> bytes:
    """An entry's error as packed exception bytes."""
    if isinstance(error, bytes):
        return error
    return pack_exception(error.exception() if isinstance(error, FailedArgument) else exception_of(error))


def _object_error(failure: Failure, object_id: bytes | None) -> Exception:
    from miniray._proto import common_pb2 as pb

    name = object_id.hex() if object_id else ""
    if failure.kind == pb.OWNER_DIED:
        return exceptions.OwnerDiedError(name, detail=_details(failure))
    reason, separator, rest = failure.message.partition(": ")
    if separator and reason in exceptions.ObjectReconstructionFailedError.REASON_MESSAGES:
        return exceptions.ObjectReconstructionFailedError(name, reason, rest or None)
    return exceptions.ObjectLostError(name, detail=_details(failure))


def not_rebuilt(refusal: NotRebuilt, object_id: bytes, node_id: bytes, why: str = "") -> Failure:
    """The failure of a lost object: why its task, or that of an argument, cannot run again."""
    from miniray._proto import common_pb2 as pb

    known = exceptions.ObjectReconstructionFailedError.REASON_MESSAGES[refusal.reason]
    other = refusal.entry.id
    about = f"its argument {other.hex()} cannot be made again either: " if other != object_id else ""
    end = f", where it was lost: {why}." if why else "."
    text = f"{about}{known} Its last copy was on node {node_id.hex()[:12]}{end}"
    return pb.Failure(kind=pb.OBJECT_LOST, message=f"{refusal.reason}: {text}", node_id=node_id)


_SIMPLE: dict[str, Callable[[str], Exception]] = {
    "WORKER_DIED": exceptions.WorkerCrashedError,
    "NODE_DIED": exceptions.NodeDiedError,
    "ACTOR_UNSCHEDULABLE": exceptions.ActorUnschedulableError,
    "RUNTIME_ENV_FAILED": exceptions.RuntimeEnvSetupError,
    "OUT_OF_MEMORY": exceptions.OutOfMemoryError,
    "STORE_FULL": exceptions.ObjectStoreFullError,
    "OUT_OF_DISK": exceptions.OutOfDiskError,
    "INFEASIBLE": exceptions.TaskUnschedulableError,
    "NOT_FOUND": ValueError,
    "ALREADY_EXISTS": exceptions.ActorAlreadyExistsError,
    "INVALID_ARGUMENT": ValueError,
}
