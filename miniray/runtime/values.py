"""Values as bytes and back: the one serialization of tasks, actors and objects.

Plain builtins and simple arrays go straight to the C pickler, or into a form of their own. All
else goes through `runtime.pickler` (cloudpickle plus our reducers), which also collects the
ObjectRefs it meets. `runtime.packed` has the forms. Any thread; no state but the registry of
reducers.
"""

from __future__ import annotations

import pickle
import sys
import threading
from typing import TYPE_CHECKING, Any

from miniray.ids import ObjectRef
from miniray.runtime.packed import Composite, Serialized, flat_array, flat_bytes, unpack

if TYPE_CHECKING:
    from collections.abc import Callable

RAW_BYTES = 32 * 1024
"""`bytes` from this size on are not pickled but copied as they are."""

MAX_DEFINITION = 95 * 2**20
"""Bytes of a pickled function or class; more is a captured value that belongs into the store."""

_ATOMS = frozenset({int, float, str, bytes, bool, type(None), complex})
_PLAIN_ITEMS = 64
"""Containers with more items than this are left to the full pickler without a look inside."""

_dumps = pickle.dumps
_loads = pickle.loads

deserialize = unpack


# ---- plain values ----

_plain_types: set[type] = set()
"""Array and scalar types that the C pickler may take as they are, known once numpy is imported."""

_array_type: Any = None


def _learn_numpy() -> None:
    global _array_type
    numpy = sys.modules.get("numpy")
    if numpy is not None and not _plain_types:
        _plain_types.update((numpy.float64, numpy.float32, numpy.int64, numpy.int32, numpy.bool_))
        _plain_types.add(numpy.ndarray)
        _array_type = numpy.ndarray


def _is_plain(value: Any, kind: type, depth: int = 2) -> bool:
    """True for what the C pickler handles as well as the full one: no user types, no references."""
    if kind in _ATOMS:
        return True
    if kind is tuple or kind is list:
        if len(value) > _PLAIN_ITEMS or not depth:
            return False
        for item in value:
            if type(item) not in _ATOMS and not _is_plain(item, type(item), depth - 1):
                return False
        return True
    if kind is dict:
        if len(value) > _PLAIN_ITEMS or not depth:
            return False
        for key, item in value.items():
            if type(key) not in _ATOMS:
                return False
            if type(item) not in _ATOMS and not _is_plain(item, type(item), depth - 1):
                return False
        return True
    if kind in _plain_types:
        return not (hasattr(value, "dtype") and value.dtype.hasobject)
    if not _plain_types and kind.__module__ == "numpy":
        _learn_numpy()
        return kind in _plain_types and _is_plain(value, kind)
    return False


def composite(
    inband: bytes,
    buffers: list[pickle.PickleBuffer],
    refs: list[ObjectRef[Any]] | None,
    table: bytes,
) -> Serialized:
    """What the full pickler made."""
    if not (buffers or refs):
        return Serialized(inband)
    return Composite(inband, _raw_views(buffers), refs, table)


def _raw_views(buffers: list[pickle.PickleBuffer]) -> list[memoryview]:
    return [buffer.raw() for buffer in buffers]


def serialize(value: Any, what: str = "the put value") -> Serialized:
    """`value` in pieces. TypeError (naming the member at fault) when it cannot be pickled.

    `what` says in that error what was to be serialized.
    """
    kind = type(value)
    if kind in _ATOMS:
        if kind is bytes and len(value) >= RAW_BYTES:
            return flat_bytes(value)
        return Serialized(_dumps(value, 5))
    if _is_plain(value, kind):
        if kind is _array_type:
            flat = flat_array(value)
            if flat is not None:
                return flat
        buffers: list[pickle.PickleBuffer] = []
        inband = _dumps(value, 5, buffer_callback=buffers.append)
        return Composite(inband, _raw_views(buffers)) if buffers else Serialized(inband)
    return _full(value, what)


def _full(value: Any, what: str) -> Serialized:
    from miniray.runtime import pickler

    try:
        return pickler.serialize(value)
    except (TypeError, pickle.PicklingError, AttributeError, RecursionError) as e:
        raise unserializable(value, what) from e


def unserializable(value: Any, what: str) -> TypeError:
    """The error for a value that cannot be pickled: says which member is at fault."""
    from miniray.util.check_serialize import report

    shown = f" {value!r}" if what else ""
    return TypeError(f"Could not serialize {what}{shown}:\n{report(value)}")


# ---- references that arrive inside a value ----


class _Restored(list[Any]):
    """What `restored` was told while one value was unpickled; `outer` is the value around it."""

    __slots__ = ("outer",)
    outer: _Restored | None


class _Thread(threading.local):
    restored: _Restored | None = None


_thread = _Thread()
_kept: list[Any] = []
"""References pickled or unpickled outside of the engine: nobody counts those, so they live on."""


def begin_restoring() -> list[Any]:
    """Collect what `restored` is told on this thread, until `end_restoring`. Calls nest."""
    collected = _Restored()
    collected.outer = _thread.restored
    _thread.restored = collected
    return collected


def end_restoring(collected: list[Any]) -> None:
    """Stop collecting into `collected`, the list of the matching `begin_restoring`."""
    assert isinstance(collected, _Restored)
    _thread.restored = collected.outer


def note_outside(collected: list[Any]) -> None:
    """What an ended collection found counts for the one around it too, if there is one."""
    assert isinstance(collected, _Restored)
    if collected.outer is not None:
        collected.outer.extend(collected)


def restored(item: Any) -> None:
    """A reference was unpickled; `item` stands for it."""
    collected = _thread.restored
    (_kept if collected is None else collected).append(item)


def restored_all(refs: list[ObjectRef[Any]]) -> None:
    """References were restored together."""
    collected = _thread.restored
    (_kept if collected is None else collected).extend([ref.entry for ref in refs])


def keep(item: Any) -> None:
    """`item` was pickled outside of the engine's own serialization: keep it till the session ends."""
    _kept.append(item)


def forget_kept() -> None:
    """The session has ended."""
    _kept.clear()


# ---- arguments ----


def serialize_args(
    args: tuple[Any, ...], kwargs: dict[str, Any], owner: Any = ""
) -> tuple[bytes | Serialized, list[ObjectRef[Any]], list[ObjectRef[Any]]]:
    """Arguments of a call: (payload, references that are arguments themselves, nested ones).

    A reference that is an argument by itself is replaced by its value before the call runs;
    one inside another value is passed on as a reference. `owner`, a template or a name, is what
    errors say the call is of.
    The payload is bytes when nothing is out of band, else a `Serialized`.
    """
    if not args and not kwargs:
        return b"", [], []
    atoms = plain = True
    for values in (args, kwargs.values()) if kwargs else (args,):
        for value in values:
            kind = type(value)
            if kind in _ATOMS:
                continue
            if kind is ObjectRef:
                return _with_refs(args, kwargs, owner)
            atoms = False
            plain = plain and _is_plain(value, kind)
    if atoms:
        return _dumps([args, kwargs] if kwargs else args, 5), [], []
    return _pack_args([args, kwargs] if kwargs else args, plain, [], args, kwargs, owner)


_only_refs: dict[int, bytes] = {}
"""Payloads of calls whose arguments are n references and nothing else."""


def _with_refs(
    args: tuple[Any, ...], kwargs: dict[str, Any], owner: Any
) -> tuple[bytes | Serialized, list[ObjectRef[Any]], list[ObjectRef[Any]]]:
    """Arguments with references among them: each leaves a hole that `deserialize_args` closes."""
    direct: list[ObjectRef[Any]] = []
    holes: list[int | str] = []
    plain = True
    packed_args: list[Any] = list(args)
    packed_kwargs = dict(kwargs)
    for index, value in enumerate(args):
        if type(value) is ObjectRef:
            direct.append(value)
            holes.append(index)
            packed_args[index] = None
        else:
            plain = plain and _is_plain(value, type(value))
    if len(direct) == len(args) and not kwargs:
        payload = _only_refs.get(len(args))
        if payload is None:
            payload = _only_refs[len(args)] = _dumps([packed_args, {}, holes], 5)
        return payload, direct, []
    for name, value in kwargs.items():
        if type(value) is ObjectRef:
            direct.append(value)
            holes.append(name)
            packed_kwargs[name] = None
        else:
            plain = plain and _is_plain(value, type(value))
    return _pack_args([packed_args, packed_kwargs, holes], plain, direct, args, kwargs, owner)


def _pack_args(
    value: Any,
    plain: bool,
    direct: list[ObjectRef[Any]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    owner: Any,
) -> tuple[bytes | Serialized, list[ObjectRef[Any]], list[ObjectRef[Any]]]:
    if plain:
        buffers: list[pickle.PickleBuffer] = []
        inband = _dumps(value, 5, buffer_callback=buffers.append)
        return (Composite(inband, _raw_views(buffers)) if buffers else inband), direct, []
    from miniray.runtime import pickler

    try:
        out = pickler.serialize(value)
    except (TypeError, pickle.PicklingError, AttributeError, RecursionError) as e:
        raise _argument_error(args, kwargs, owner, e) from e
    return (out if out.buffers else out.pack()), direct, list(out.refs)


def _argument_error(args: tuple[Any, ...], kwargs: dict[str, Any], owner: Any, cause: Exception) -> TypeError:
    """Find the argument that cannot be pickled."""
    for value in (*args, *kwargs.values()):
        try:
            serialize(value)
        except TypeError:
            return _unserializable_argument(value, owner)
    return TypeError(f"Could not serialize the arguments of {_name_of(owner)}: {cause}")


def _unserializable_argument(value: Any, owner: Any) -> TypeError:
    from miniray.util.check_serialize import report

    name = _name_of(owner)
    return TypeError(
        f"Could not serialize the argument {value!r} for a task or actor {name}:\n{report(value)}"
    )


def _name_of(owner: Any) -> str:
    """The full name of a template's function or constructor; a method's label; a name as it is."""
    function = getattr(owner, "function", None)
    if function is not None:
        return f"{function.__module__}.{function.__qualname__}"
    cls = getattr(owner, "cls", None)
    if cls is not None:
        return f"{cls.__module__}.{cls.__qualname__}.__init__"
    return str(getattr(owner, "label", owner))


def deserialize_args(buf: Any, values: list[Any] | tuple[Any, ...] = ()) -> tuple[Any, dict[str, Any]]:
    """(args, kwargs) of a call; `values` are those of the direct references, in their order."""
    if len(buf) == 0:
        return (), {}
    value = deserialize(buf)
    if type(value) is tuple:
        return value, {}
    if len(value) == 2:
        return value[0], value[1]
    args, kwargs, holes = value
    for hole, filled in zip(holes, values):
        if type(hole) is int:
            args[hole] = filled
        else:
            kwargs[hole] = filled
    return args, kwargs


# ---- functions, errors and other things in one piece ----


def dumps(value: Any) -> bytes:
    """`value` in one plain pickle, arrays in band. References inside are kept alive for ever."""
    from miniray.runtime import pickler

    return pickler.dumps(value)


def dumps_counted(value: Any) -> Serialized:
    """`value` in one plain pickle behind a table of its references, for whoever counts those."""
    from miniray.runtime import pickler

    return pickler.serialize_in_band(value)


def loads(data: Any) -> Any:
    """What `dumps` or `dumps_counted` wrote. Unpickles: only ever called on authenticated input,
    never in a daemon.
    """
    return unpack(data)


def serialize_function(function: Callable[..., Any], what: str = "the function") -> bytes:
    """A function or class: by value when workers could not import it, else by reference.

    TypeError when it cannot be pickled, ValueError when it is larger than `MAX_DEFINITION`.
    """
    try:
        data = dumps(function)
    except (TypeError, pickle.PicklingError, AttributeError, RecursionError) as e:
        from miniray.util.check_serialize import report

        name = f"{function.__module__}.{function.__qualname__}"
        if isinstance(function, type):
            name += ".__init__"
        raise TypeError(f"Could not serialize {what} {name}:\n{report(function)}") from e
    if len(data) > MAX_DEFINITION:
        kind = "actor" if isinstance(function, type) else "remote function"
        raise ValueError(
            f"The {kind} {function.__name__} is too large "
            f"({len(data) >> 20} MiB > {MAX_DEFINITION >> 20} MiB). "
            "Check that its definition is not implicitly capturing a large array or other object in scope. "
            "Tip: use ray.put() to put large objects in the object store."
        )
    return data


def deserialize_function(data: bytes) -> Any:
    """The function or class that `serialize_function` wrote."""
    return _loads(data)
