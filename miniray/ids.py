"""The public id classes and the object reference.

Inside the engine ids are plain bytes (`miniray.core.ids` has the layouts); these classes are what
users see, with Ray's names, sizes and text forms. A nil id is all 0xff.

`ObjectRef` is a native type: making and dropping one costs some tens of nanoseconds and runs no
Python code. Its methods that need the cluster ask the worker library of this process.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from miniray._native import ObjectRefBase
from miniray.core import ids as layout

if TYPE_CHECKING:
    import asyncio
    import concurrent.futures
    from collections.abc import Callable, Generator

    from typing_extensions import Self

T_co = TypeVar("T_co", covariant=True)


def _checked(value: object, size: int) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"Unsupported type: {type(value)}, expected bytes")
    if len(value) != size:
        raise ValueError(f"ID string needs to have length {size}, got {len(value)}")
    return value


class BaseID:
    """An id: immutable bytes of a fixed size. Equal only to ids of the same class."""

    SIZE: ClassVar[int] = 28
    __slots__ = ("_id",)
    _id: bytes

    def __init__(self, id: bytes) -> None:
        self._id = _checked(id, self.SIZE)

    @classmethod
    def size(cls) -> int:
        """Bytes of an id of this class."""
        return cls.SIZE

    @classmethod
    def nil(cls) -> Self:
        """The id that means "none"."""
        return cls(b"\xff" * cls.SIZE)

    @classmethod
    def from_random(cls) -> Self:
        """A new random id."""
        return cls(os.urandom(cls.SIZE))

    @classmethod
    def from_hex(cls, hex_id: str) -> Self:
        """The id with this hex form. ValueError if its length is wrong."""
        return cls(bytes.fromhex(hex_id))

    @classmethod
    def from_binary(cls, id_bytes: bytes) -> Self:
        """The id with these bytes. ValueError if their length is wrong."""
        return cls(id_bytes)

    def binary(self) -> bytes:
        """The raw bytes."""
        return self._id

    def hex(self) -> str:
        """The bytes in hexadecimal."""
        return self._id.hex()

    def is_nil(self) -> bool:
        """True for the id that means "none"."""
        return self._id == b"\xff" * self.SIZE

    def __bytes__(self) -> bytes:
        return self._id

    def __hash__(self) -> int:
        return hash(self._id)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._id == other._id

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._id.hex()})"

    def __reduce__(self) -> Any:
        return type(self), (self._id,)


class UniqueID(BaseID):
    """Any 28-byte id."""

    __slots__ = ()


class NodeID(UniqueID):
    """A node; new with each start of its raylet."""

    __slots__ = ()


class WorkerID(UniqueID):
    """A worker process or driver."""

    __slots__ = ()


class ClusterID(UniqueID):
    """A cluster."""

    __slots__ = ()


class FunctionID(UniqueID):
    """A remote function."""

    __slots__ = ()


class ActorClassID(UniqueID):
    """An actor class."""

    __slots__ = ()


class JobID(BaseID):
    """A job: one driver and all it started."""

    SIZE = layout.JOB_ID_SIZE
    __slots__ = ()

    @classmethod
    def from_int(cls, value: int) -> Self:
        """The `value`-th job, 0 ≤ value < 2**32."""
        return cls(layout.job_id(value))

    def int(self) -> int:
        """The number of the job."""
        return int.from_bytes(self._id, "little")


class ActorID(BaseID):
    """An actor; its last four bytes are its job."""

    SIZE = layout.ACTOR_ID_SIZE
    __slots__ = ()

    @classmethod
    def of(cls, job_id: JobID, parent_task_id: TaskID | None = None, parent_task_counter: int = 0) -> Self:
        """A new actor id of a job."""
        return cls(layout.actor_id(os.urandom(12), job_id.binary()))

    @property
    def job_id(self) -> JobID:
        """The job that made the actor."""
        return JobID(self._id[12:])


class TaskID(BaseID):
    """A task; it contains the actor it runs on and its job."""

    SIZE = layout.TASK_ID_SIZE
    __slots__ = ()

    @classmethod
    def for_fake_task(cls, job_id: JobID) -> Self:
        """An id of a task that does not exist."""
        return cls(layout.task_id(os.urandom(8), job_id.binary()))

    def actor_id(self) -> ActorID:
        """The actor it runs on; an id whose unique part is nil for a plain task."""
        return ActorID(layout.actor_of_task(self._id))

    def job_id(self) -> JobID:
        """The job it belongs to."""
        return JobID(layout.job_of_task(self._id))


class PlacementGroupID(BaseID):
    """A placement group; its last four bytes are its job."""

    SIZE = layout.PLACEMENT_GROUP_ID_SIZE
    __slots__ = ()

    @classmethod
    def of(cls, job_id: JobID) -> Self:
        """A new id for a group of a job."""
        return cls.of_job(job_id.binary())

    @classmethod
    def of_job(cls, job_id: bytes) -> Self:
        """A new id for a group of the job with these bytes."""
        return cls(os.urandom(14) + job_id)


class ObjectRef(ObjectRefBase, Generic[T_co]):
    """A reference to a value that exists, or will exist, somewhere in the cluster.

    Hold it, pass it to tasks, `get` it, or `await` it. The value lives while a reference to it
    is alive in any process.
    """

    __slots__ = ()

    @classmethod
    def size(cls) -> int:
        """Bytes of an object id."""
        return layout.OBJECT_ID_SIZE

    @classmethod
    def nil(cls) -> ObjectRef[Any]:
        """A reference to nothing."""
        return cls(b"\xff" * layout.OBJECT_ID_SIZE)

    @classmethod
    def from_random(cls) -> ObjectRef[Any]:
        """A reference with a random id, which no object has."""
        return cls(os.urandom(layout.OBJECT_ID_SIZE))

    @classmethod
    def from_binary(cls, id_bytes: bytes) -> ObjectRef[Any]:
        """A bare reference by id: it keeps nothing alive."""
        return cls(id_bytes)

    @classmethod
    def from_hex(cls, hex_id: str) -> ObjectRef[Any]:
        """A bare reference by the id's hex form: it keeps nothing alive."""
        return cls(bytes.fromhex(hex_id))

    def is_nil(self) -> bool:
        """True for a reference to nothing."""
        return self.binary() == b"\xff" * layout.OBJECT_ID_SIZE

    def task_id(self) -> TaskID:
        """The task that makes, or put, the object."""
        return TaskID(layout.task_of_object(self.binary()))

    def job_id(self) -> JobID:
        """The job the object belongs to."""
        return self.task_id().job_id()

    def call_site(self) -> str:
        """Where the reference was made, when that is recorded; else ""."""
        return ""

    def future(self) -> concurrent.futures.Future[T_co]:
        """A future of the value. Cancelling it does not cancel the task."""
        from miniray import api

        future: concurrent.futures.Future[T_co] = api.connected_worker().as_future(self)
        return future

    def as_future(self, _internal: bool = False) -> asyncio.Future[T_co]:
        """An asyncio future of the value, for the running loop."""
        import asyncio

        return asyncio.wrap_future(self.future())

    def _on_completed(self, callback: Callable[[Any], Any]) -> None:
        """Call `callback` with the value, or with the exception, on some thread, once there is one."""

        def completed(future: concurrent.futures.Future[T_co]) -> None:
            error = future.exception()
            callback(future.result() if error is None else error)

        self.future().add_done_callback(completed)

    def __await__(self) -> Generator[Any, None, T_co]:
        import asyncio

        future = asyncio.wrap_future(self.future())
        future.object_id = self.binary()  # type: ignore[attr-defined]  # for `miniray why`
        return future.__await__()

    def __bytes__(self) -> bytes:
        return self.binary()

    def __copy__(self) -> ObjectRef[T_co]:
        current = _current_worker()
        if current is None or self.entry is None:
            return type(self)(self.binary(), self.owner_address)
        with current.lock:
            copied: ObjectRef[T_co] = current.new_ref(self.entry)
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> ObjectRef[T_co]:
        return self.__copy__()

    def __reduce__(self) -> Any:
        """Pickling outside of the engine's own serialization: the object is kept from then on."""
        return restore_ref, (self.binary(), _pickled_out_of_band(self))


ObjectID = ObjectRef
"""Ray's older name."""


class UncountedRef:
    """A reference that bytes made by plain `pickle` do not keep: they may live, or lie on a disk, for ever.

    The engine's own serialization treats it as the reference. Elsewhere it is the reference where the
    process that unpickles still has it, and None where not.
    """

    __slots__ = ("ref",)

    def __init__(self, ref: ObjectRef[Any]) -> None:
        self.ref = ref

    def __reduce__(self) -> Any:
        return ref_if_known, (self.ref.binary(),)


def ref_if_known(id: bytes) -> ObjectRef[Any] | None:
    """The reference, if this process has one of the object."""
    current = _current_worker()
    known: ObjectRef[Any] | None = None if current is None else current.ref_if_known(id)
    return known


_library: Any = None
"""`miniray.runtime.worker`, once it was needed: every reference that arrives asks it."""


def _current_worker() -> Any:
    global _library
    if _library is None:
        from miniray.runtime import worker

        _library = worker
    return _library.current_or_none()


def _pickled_out_of_band(ref: ObjectRef[Any]) -> bytes:
    current = _current_worker()
    if current is None:
        return b""
    from miniray.runtime import values

    values.keep(ref.__copy__())
    owner: bytes = current.owner_bytes(ref)
    return owner


def restore_refs(table: bytes) -> list[ObjectRef[Any]]:
    """`restore_ref` for all references inside a value: ids and owners, one after the other."""
    current = _current_worker()
    if current is None:
        return [ObjectRef(table[at : at + 28], None, None) for at in range(0, len(table), 84)]
    restored: list[ObjectRef[Any]] = current.refs_restored(table)
    return restored


def restore_ref(id: bytes, owner: bytes) -> ObjectRef[Any]:
    """Unpickle a reference: the worker of this process becomes a borrower."""
    current = _current_worker()
    if current is None:
        return ObjectRef(id, None, None)
    restored: ObjectRef[Any] = current.ref_restored(id, owner)
    return restored
