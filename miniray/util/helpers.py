"""`as_completed`, `map_unordered` and small questions to the cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from miniray import api

CHUNK = 10
IN_FLIGHT = 100


def _some(
    refs: list[Any], chunk_size: int, as_refs: bool, wait: dict[str, Any]
) -> tuple[list[Any], list[Any]]:
    """Wait for up to `chunk_size` of `refs`: (their values or themselves, the rest)."""
    ready, rest = api.wait(refs, num_returns=min(chunk_size, len(refs)), **wait)
    return (ready if as_refs else api.get(ready)), rest


def _check(chunk_size: int, wait: dict[str, Any]) -> None:
    if chunk_size < 1:
        raise ValueError("`chunk_size` must be >= 1")
    if "num_returns" in wait:
        raise ValueError("Use the `chunk_size` argument instead of `num_returns`.")


def as_completed(
    refs: Sequence[Any], *, chunk_size: int = CHUNK, yield_obj_refs: bool = False, **kwargs: Any
) -> Iterator[Any]:
    """The values of `refs` (or, with `yield_obj_refs`, the references) as they become ready.

    They come in chunks of `chunk_size`, inside a chunk in input order. `kwargs` go to `wait`.
    """
    _check(chunk_size, kwargs)
    rest = list(refs)
    while rest:
        values, rest = _some(rest, chunk_size, yield_obj_refs, kwargs)
        yield from values


def map_unordered(
    fn: Any,
    items: Iterable[Any],
    *,
    backpressure_size: int | None = IN_FLIGHT,
    chunk_size: int = CHUNK,
    yield_obj_refs: bool = False,
    **kwargs: Any,
) -> Iterator[Any]:
    """`fn.remote(item)` for each item; the results as they become ready.

    At most `backpressure_size` calls are unfinished at a time (None: no limit).
    """
    if backpressure_size is not None and backpressure_size <= 0:
        raise ValueError("backpressure_size must be positive.")
    _check(chunk_size, kwargs)
    refs: list[Any] = []
    for item in items:
        refs.append(fn.remote(item))
        if backpressure_size is not None and len(refs) >= backpressure_size:
            values, refs = _some(refs, chunk_size, yield_obj_refs, kwargs)
            yield from values
    yield from as_completed(refs, chunk_size=chunk_size, yield_obj_refs=yield_obj_refs, **kwargs)


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """Names of the living named actors of this namespace, sorted by nothing in particular.

    With `all_namespaces`: dicts with "name" and "namespace", of the whole cluster.
    """
    from miniray._proto import gcs_pb2 as gcs

    worker = api.connected_worker()
    message = gcs.ActorList(
        namespace=worker.namespace, all_namespaces=all_namespaces, named_only=True, alive_only=True
    )
    specs = [info.spec for info in worker.request("actor_list", message).actors.actors]
    if all_namespaces:
        return [{"name": spec.name, "namespace": spec.namespace} for spec in specs]
    return [spec.name for spec in specs]


def get_node_ip_address() -> str:
    """The address of this node as other nodes reach it; 127.0.0.1 in a local session."""
    worker = api.current_worker()
    return (worker.node_info.host if worker is not None else "") or "127.0.0.1"


def get_node_instance_id() -> str:
    """The provider's id of this machine; "" when there is none."""
    return ""


def register_serializer(cls: type, *, serializer: Any, deserializer: Any) -> None:
    """From now on this process pickles instances of exactly `cls` as ``deserializer(serializer(obj))``.

    The deserializer travels with each value, so readers need no registration.
    """
    from miniray.runtime import pickler

    pickler.register(cls, serializer, deserializer)


def deregister_serializer(cls: type) -> None:
    """Undo `register_serializer`; nothing happens when there is none for `cls`."""
    from miniray.runtime import pickler

    pickler.deregister(cls)


_said: set[str] = set()


def log_once(key: str) -> bool:
    """True the first time it is called with `key` in this process."""
    if key in _said:
        return False
    _said.add(key)
    return True
