"""`ray.cloudpickle`: the pickler of the engine under the names of the standard module."""

from __future__ import annotations

import io
import pickle
from typing import IO, Any

from cloudpickle import *  # noqa: F403
from cloudpickle import CloudPickler, Pickler, load, loads
from cloudpickle import register_pickle_by_value as register_pickle_by_value

from miniray.runtime import pickler, values


def dumps(obj: Any, protocol: int | None = None, buffer_callback: Any = None) -> bytes:
    """`obj` as a pickle. References inside are kept alive from then on."""
    file = io.BytesIO()
    pickler.Pickler(file, buffer_callback, False).dump(obj)
    return file.getvalue()


def dump(obj: Any, file: IO[bytes], protocol: int | None = None, buffer_callback: Any = None) -> None:
    """`dumps` into a file."""
    file.write(dumps(obj, protocol, buffer_callback))


def dumps_debug(obj: Any, protocol: int | None = None, buffer_callback: Any = None) -> bytes:
    """`dumps`, whose TypeError names the member that cannot be pickled."""
    try:
        return dumps(obj, protocol, buffer_callback)
    except (TypeError, pickle.PicklingError) as e:
        raise values.unserializable(obj, "the object") from e


__all__ = [
    "CloudPickler",
    "Pickler",
    "dump",
    "dumps",
    "dumps_debug",
    "load",
    "loads",
    "register_pickle_by_value",
]
