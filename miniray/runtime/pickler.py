"""The full pickler: cloudpickle, our reducers, and a list of the references met on the way.

What is not importable by a worker (`__main__`, local functions and classes, lambdas) goes by
value, as cloudpickle does it. On top of that, by exact type and in this order:

- serializers that the user registered;
- `ObjectRef`: collected, so that the owner can count them (an ActorHandle contains one);
- torch tensors: their memory travels out of band;
- exceptions with a constructor of their own: rebuilt even if the constructor's arguments are
  not what it passed to `Exception.__init__`.

Imported at first need: importing cloudpickle takes some milliseconds. Any thread.
"""

from __future__ import annotations

import io
import pickle
import types
from collections.abc import Callable
from typing import Any

import cloudpickle

from miniray import ids
from miniray.runtime import worker
from miniray.runtime.packed import REF_BYTES, Serialized, ref_at
from miniray.runtime.values import composite

Reducer = Callable[["Pickler", Any], Any]

NO_OWNER = bytes(REF_BYTES - 28)

REDUCERS: dict[type, Reducer] = {}
"""Reducers of the engine by exact type."""

_registered: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {}


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """One pickling. `refs` is None outside of the engine's own serialization."""

    def __init__(self, file: io.BytesIO, buffer_callback: Any, collect: bool) -> None:
        super().__init__(file, 5, buffer_callback)
        self.refs: list[Any] | None = [] if collect else None
        self.table = bytearray()
        self._own: bytes | None = None

    def owner_of(self, ref: Any) -> bytes:
        """The address of a reference's owner, as it travels."""
        if ref.owner_address is not None:
            return worker.current().owner_bytes(ref)
        if self._own is None:
            current = worker.current_or_none()
            self._own = b"" if current is None else current.owner_bytes(ref)
        return self._own

    def reducer_override(self, obj: Any) -> Any:
        """How to pickle `obj`; NotImplemented leaves it to the ordinary way."""
        kind = type(obj)
        reducer = REDUCERS.get(kind)
        if reducer is not None:
            return reducer(self, obj)
        if kind is types.FunctionType or issubclass(kind, type):
            return super().reducer_override(obj)
        if issubclass(kind, BaseException):
            return _reduce_exception(obj, kind)
        if kind.__module__ == "torch" and kind.__name__ == "Tensor":
            from miniray.runtime import tensors

            REDUCERS[kind] = tensors.reduce_tensor
            return tensors.reduce_tensor(self, obj)
        return NotImplemented


def serialize(value: Any) -> Serialized:
    """`value` in pieces, its references and handles collected."""
    file = io.BytesIO()
    buffers: list[pickle.PickleBuffer] = []
    pickler = Pickler(file, buffers.append, True)
    pickler.dump(value)
    return composite(file.getvalue(), buffers, pickler.refs, bytes(pickler.table))


def dumps(value: Any) -> bytes:
    """`value` as one pickle."""
    file = io.BytesIO()
    Pickler(file, None, False).dump(value)
    return file.getvalue()


def serialize_in_band(value: Any) -> Serialized:
    """`value` as one pickle, its references and handles collected."""
    file = io.BytesIO()
    pickler = Pickler(file, None, True)
    pickler.dump(value)
    return composite(file.getvalue(), [], pickler.refs, bytes(pickler.table))


# ---- serializers of the user ----


def register(cls: type, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any]) -> None:
    """Pickle instances of exactly `cls` as `deserializer(serializer(obj))` from now on."""

    def reduce(_: Pickler, obj: Any) -> Any:
        return _restore_registered, (deserializer, serializer(obj))

    _registered[cls] = (serializer, deserializer)
    REDUCERS[cls] = reduce


def deregister(cls: type) -> None:
    """Forget the serializer of `cls`; nothing happens when there is none."""
    if _registered.pop(cls, None) is not None:
        REDUCERS.pop(cls, None)


def _restore_registered(deserializer: Callable[[Any], Any], state: Any) -> Any:
    return deserializer(state)


# ---- exceptions ----


def _reduce_exception(error: BaseException, kind: type[BaseException]) -> Any:
    """Keep what the default way loses: exceptions whose constructor takes other arguments."""
    plain = (
        kind.__reduce__ is BaseException.__reduce__
        and kind.__reduce_ex__ is object.__reduce_ex__
        and isinstance(kind.__init__, types.FunctionType)
        and "__setstate__" not in kind.__dict__
    )
    if not plain:
        return NotImplemented
    return _rebuild_exception, (kind, error.args, dict(error.__dict__))


def _rebuild_exception(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> Any:
    try:
        error = kind(*args)
    except TypeError:
        if not args:
            raise
        error = kind.__new__(kind, *args)
        error.args = args
    error.__dict__.update(state)
    return error


# ---- references ----


def _reduce_ref(pickler: Pickler, ref: Any) -> Any:
    if pickler.refs is None:
        return ref.__reduce__()
    index = len(pickler.refs)
    pickler.refs.append(ref)
    pickler.table += ref.binary() + (pickler.owner_of(ref) or NO_OWNER)
    return ref_at, (index,)


REDUCERS[ids.ObjectRef] = _reduce_ref
REDUCERS[ids.UncountedRef] = lambda pickler, holder: _reduce_ref(pickler, holder.ref)
