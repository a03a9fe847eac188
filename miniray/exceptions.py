"""The errors a user of miniray can meet; names, bases and attributes follow `ray.exceptions`.

::

    RayError
    ├── RayTaskError              a task raised; at `get` it is also the user's own type
    ├── TaskCancelledError
    ├── WorkerCrashedError, LocalRayletDiedError, NodeDiedError
    ├── RayActorError ── ActorDiedError, ActorUnavailableError
    ├── ObjectLostError ── OwnerDiedError, ObjectFetchTimedOutError, ObjectFreedError,
    │                      ObjectReconstructionFailedError, ReferenceCountingAssertionError
    ├── ObjectStoreFullError, OutOfDiskError, OutOfMemoryError
    ├── GetTimeoutError (also TimeoutError), PendingCallsLimitExceeded, …
    └── RaySystemError ── RayChannelError, …

Every type survives pickling whatever its constructor looks like: it is rebuilt from its state,
never by calling the constructor again. Remote tracebacks hold the user's frames only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from miniray.task_error import RayError as RayError
from miniray.task_error import RayTaskError as RayTaskError

_SERIALIZER_HELP = (
    "https://docs.ray.io/en/latest/ray-core/objects/serialization.html#custom-serializers-for-exceptions"
)
_TOKEN_HELP = "https://docs.ray.io/en/latest/ray-security/token-auth.html"


class CrossLanguageError(RayError):
    """A task of another language raised; the text is all that is known."""

    def __init__(self, language: str, text: str) -> None:
        super().__init__(f"An exception raised from {language}:\n{text}")


class UserCodeException(RayError):
    """Libraries wrap an error of user code in this; `retry_exceptions` looks at its `__cause__`."""


class UnserializableException(RayError):
    """A remote exception could be pickled but not unpickled here; its text is kept.

    Give the class a `__reduce__`, or register a serializer for it.
    """

    def __init__(self, original_stack_trace: str) -> None:
        super().__init__(original_stack_trace)
        self._original_stack_trace = original_stack_trace

    def __str__(self) -> str:
        return (
            f"Failed to deserialize exception. Refer to {_SERIALIZER_HELP} for more information.\n"
            f"Original exception:\n{self._original_stack_trace}"
        )


class TaskCancelledError(RayError):
    """The task was cancelled. `task_id` is a TaskID when it is known."""

    def __init__(self, task_id: Any = None, error_message: str | None = None) -> None:
        super().__init__(task_id, error_message)
        self.task_id = task_id
        self.error_message = error_message

    def __str__(self) -> str:
        if not self.task_id:
            return self.error_message or "This task or its dependency was cancelled"
        return f"Task: {self.task_id} was cancelled. " + (self.error_message or "")


class _MessageError(RayError):
    """An error whose text is `message`, with a sentence of its own when there is none."""

    DEFAULT = ""

    def __init__(self, message: str = "") -> None:
        self.message = message or self.DEFAULT
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message


class LocalRayletDiedError(_MessageError):
    """The raylet of the node that ran the task died."""

    DEFAULT = "The task's local raylet died: every worker of its node ended with it."


class WorkerCrashedError(_MessageError):
    """The worker process that ran the task ended before the task did."""

    DEFAULT = "The worker died unexpectedly while executing this task."


class NodeDiedError(_MessageError):
    """The node is dead or cannot be reached."""

    DEFAULT = "The node of this task died."


class OutOfMemoryError(_MessageError):
    """The node ran short of memory and the task or actor was ended to save it."""

    DEFAULT = "The task was killed because its node was running out of memory."


@dataclass(slots=True)
class ActorDeath:
    """What is known of a dead actor. Ids are hex; empty fields are left out of the text."""

    actor_id: str
    message: str = ""
    class_name: str = ""
    name: str = ""
    namespace: str = ""
    ip: str = ""
    pid: int = 0
    never_started: bool = False
    preempted: bool = False

    def describe(self) -> str:
        """The lines of an ActorDiedError."""
        fields = ("class_name", "actor_id", "pid", "name", "namespace", "ip")
        lines = [f"\t{field}: {getattr(self, field)}" for field in fields if getattr(self, field)]
        if self.message:
            lines.append(self.message)
        if self.never_started:
            lines.append("The actor never ran - it was cancelled before it started running.")
        return "\n".join([ActorDiedError.BASE_ERROR_MSG, *lines])


class RayActorError(RayError):
    """An actor is dead, or cannot be reached now. `actor_id` is hex, or None when unknown."""

    BASE_ERROR_MSG = "The actor experienced an error before finishing this task."

    def __init__(
        self,
        actor_id: str | None = None,
        error_msg: str = BASE_ERROR_MSG,
        actor_init_failed: bool = False,
        preempted: bool = False,
    ) -> None:
        super().__init__(error_msg)
        self.actor_id = actor_id
        self.error_msg = error_msg
        self._actor_init_failed = actor_init_failed
        self._preempted = preempted

    def __str__(self) -> str:
        return self.error_msg

    @property
    def preempted(self) -> bool:
        """True when the actor's node was taken away by its provider."""
        return self._preempted

    @property
    def actor_init_failed(self) -> bool:
        """True when the constructor raised."""
        return self._actor_init_failed


class ActorDiedError(RayActorError):
    """The actor is dead. `cause` is what its constructor raised, or how it died."""

    BASE_ERROR_MSG = "The actor died unexpectedly before finishing this task."

    def __init__(self, cause: RayTaskError | ActorDeath | str | None = None) -> None:
        if isinstance(cause, RayTaskError):
            text = f"The actor died because of an error raised in its creation task, {cause}"
            super().__init__(cause._actor_id, text, actor_init_failed=True)
        elif isinstance(cause, ActorDeath):
            super().__init__(cause.actor_id, cause.describe(), preempted=cause.preempted)
        else:
            super().__init__(None, cause or self.BASE_ERROR_MSG)

    @staticmethod
    def from_task_error(task_error: RayTaskError) -> ActorDiedError:
        """The error of an actor whose constructor raised `task_error`."""
        return ActorDiedError(task_error)


class ActorUnavailableError(RayActorError):
    """The actor cannot be reached now; the call may or may not have run."""

    def __init__(self, error_message: str, actor_id: bytes | None) -> None:
        hex_id = actor_id.hex() if actor_id is not None else None
        text = (
            f"The actor {hex_id} is unavailable: {error_message}. "
            "The task may or may not have been executed on the actor."
        )
        super().__init__(hex_id, text)


class ActorPlacementGroupRemoved(_MessageError):
    """The actor's placement group was removed."""

    DEFAULT = "The placement group corresponding to this Actor has been removed."


class TaskPlacementGroupRemoved(_MessageError):
    """The task's placement group was removed."""

    DEFAULT = "The placement group corresponding to this task has been removed."


class _UnschedulableError(RayError):
    WHAT = ""

    def __init__(self, error_message: str) -> None:
        super().__init__(error_message)
        self.error_message = error_message

    def __str__(self) -> str:
        return f"The {self.WHAT} is not schedulable: {self.error_message}"


class TaskUnschedulableError(_UnschedulableError):
    """No node can ever run the task; the message says why."""

    WHAT = "task"


class ActorUnschedulableError(_UnschedulableError):
    """No node can ever host the actor; the message says why."""

    WHAT = "actor"


class ActorAlreadyExistsError(ValueError, RayError):
    """A living actor has that name already."""

    def __init__(self, error_message: str) -> None:
        super().__init__(error_message)
        self.error_message = error_message


class ActorHandleNotFoundError(ValueError, RayError):
    """The handle names no actor of this cluster."""

    def __init__(self, error_message: str) -> None:
        super().__init__(error_message)
        self.error_message = error_message


class AsyncioActorExit(RayError):
    """Raised inside an asyncio actor by `exit_actor()`."""


class PendingCallsLimitExceeded(RayError):
    """The actor has `max_pending_calls` calls of this caller waiting already."""


class RuntimeEnvSetupError(RayError):
    """A runtime environment could not be made; the message has the tool's last lines."""

    def __init__(self, error_message: str | None = None) -> None:
        super().__init__(error_message)
        self.error_message = error_message

    def __str__(self) -> str:
        lines = ["Failed to set up runtime environment."]
        if self.error_message:
            lines.append(self.error_message)
        return "\n".join(lines)


class GetTimeoutError(RayError, TimeoutError):
    """`get` waited for `timeout` seconds in vain; the message names what is missing."""


class PlasmaObjectNotAvailable(RayError):
    """An object did not come into the store in time."""


class ObjectStoreFullError(_MessageError):
    """The store cannot hold the object: what is in it is still referenced."""

    DEFAULT = "The local object store is full of objects that are still in scope and cannot be evicted."


class OutOfDiskError(_MessageError):
    """The store is full and the disk has no room for spilling."""

    DEFAULT = (
        "The object cannot be created: the local object store is full and the local disk is over its limit."
    )


class ObjectLostError(RayError):
    """All copies of the object are gone. `object_ref_hex` is its id."""

    REASON = "All copies of {id} have been lost due to node failure."

    def __init__(
        self, object_ref_hex: str, owner_address: bytes | None = None, call_site: str = "", detail: str = ""
    ) -> None:
        super().__init__(object_ref_hex, owner_address, call_site)
        self.object_ref_hex = object_ref_hex
        self.owner_address = owner_address
        self.call_site = call_site
        self.detail = detail

    def _base_str(self) -> str:
        text = f"Failed to retrieve object {self.object_ref_hex}."
        if self.call_site:
            text += f" The ObjectRef was created at: {self.call_site}"
        return text

    def __str__(self) -> str:
        reason = self.REASON.format(id=self.object_ref_hex)
        return f"{self._base_str()}\n\n{reason}" + (f" {self.detail}" if self.detail else "")


class ObjectFetchTimedOutError(ObjectLostError):
    """No copy of the object was found in time."""

    REASON = "Fetch for object {id} timed out because no locations were found for the object."


class ObjectFreedError(ObjectLostError):
    """The object was freed by hand."""

    REASON = "The object was manually freed: free an object only once nothing needs it."


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """The object is gone though a reference to it was alive: a bug of the engine."""

    REASON = "The object has already been deleted by the reference counting protocol."


class OwnerDiedError(ObjectLostError):
    """The worker that made the reference, and so owns the object, has ended."""

    REASON = "The object's owner has exited: the worker that made the ObjectRef by `.remote()` or `put()`."


class ObjectReconstructionFailedError(ObjectLostError):
    """The object was lost and its task cannot be run again.

    `reason` is one of `REASON_MESSAGES`, without the prefix OBJECT_UNRECONSTRUCTABLE_.
    """

    REASON_MESSAGES = {
        "MAX_ATTEMPTS_EXCEEDED": "its task used up max_retries; raise it with `max_retries=N`.",
        "LINEAGE_EVICTED": "its lineage was dropped to bound memory; raise MINIRAY_MAX_LINEAGE_BYTES.",
        "PUT": "it was made by put(), so no task can make it again; return it from a task instead.",
        "RETRIES_DISABLED": "its task has max_retries=0.",
        "BORROWED": "this worker borrowed it, and only its owner can rebuild it.",
        "REF_NOT_FOUND": "its owner knows nothing of it.",
        "TASK_CANCELLED": "the task that makes it was cancelled.",
        "LINEAGE_DISABLED": "lineage reconstruction is switched off.",
    }

    def __init__(
        self,
        object_ref_hex: str,
        reason: str | None = None,
        reason_message: str | None = None,
        owner_address: bytes | None = None,
        call_site: str = "",
    ) -> None:
        super().__init__(object_ref_hex, owner_address, call_site)
        self.reason = (reason or "").removeprefix("OBJECT_UNRECONSTRUCTABLE_") or None
        known = self.REASON_MESSAGES.get(self.reason or "", "the reason is unknown.")
        self.reason_message = reason_message or f"The object cannot be reconstructed because {known}"

    def __str__(self) -> str:
        name = f"OBJECT_UNRECONSTRUCTABLE_{self.reason}" if self.reason else "UNKNOWN"
        return f"{self._base_str()}\n\n[{name}] {self.reason_message}"


class OufOfBandObjectRefSerializationException(RayError):
    """An ObjectRef was pickled outside of the engine where that was forbidden."""


class ObjectRefStreamEndOfStreamError(RayError):
    """A streaming generator has no more references."""


class RaySystemError(RayError):
    """The engine itself failed, or lost its raylet or head."""

    def __init__(self, client_exc: object, traceback_str: str | None = None) -> None:
        super().__init__(client_exc, traceback_str)
        self.client_exc = client_exc
        self.traceback_str = traceback_str

    def __str__(self) -> str:
        text = f"System error: {self.client_exc}"
        return f"{text}\ntraceback: {self.traceback_str}" if self.traceback_str else text


class StreamingGeneratorReplayInconsistentError(RaySystemError):
    """A streaming task that ran again yielded another number of values than before."""


class RayChannelError(RaySystemError):
    """A channel between two workers failed."""


class RayChannelTimeoutError(RayChannelError, TimeoutError):
    """A channel did not move in time."""


class RayCgraphCapacityExceeded(RaySystemError):
    """A compiled graph has no room for another call."""


class RayDirectTransportError(RaySystemError):
    """A direct transfer between two devices failed."""


class RpcError(RayError):
    """A call between two processes of the cluster failed."""

    def __init__(self, message: str, rpc_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.rpc_code = rpc_code


class AuthenticationError(RayError):
    """The cluster's token is missing or wrong."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.__suppress_context__ = True

    def __str__(self) -> str:
        return (
            f"{self.message}. Set MINIRAY_AUTH_TOKEN (or RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH) to the token "
            f"of the cluster, or join with its join string. For more information, see: {_TOKEN_HELP}"
        )


RAY_EXCEPTION_TYPES = [
    value
    for name, value in list(globals().items())
    if isinstance(value, type) and issubclass(value, RayError) and not name.startswith("_")
]
"""Every public type of this module."""
