"""Collective operations between actors and tasks, with the names of `ray.util.collective`.

::

    @ray.remote
    class Worker:
        def setup(self, n, rank): collective.init_collective_group(n, rank, "gloo")
        def step(self): collective.allreduce(self.gradient)

Every process that is a member calls the same operations in the same order. Tensors are
torch.Tensor or numpy.ndarray and are changed in place: on the CPU with gloo, on GPUs with NCCL. The
backends are torch's; ranks find one another through the cluster (`rendezvous`).

The operations raise RuntimeError, naming group, rank and cause, when a member has died or does not
come within the group's time limit: the group is then of no more use.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from miniray.runtime.worker import current_or_none
from miniray.util.collective.types import Backend, ReduceOp

if TYPE_CHECKING:
    from miniray.util.collective.rendezvous import KeyValues

TIMEOUT_MS = 30_000


@dataclass(slots=True)
class Group:
    """This process's membership in a group."""

    name: str
    world_size: int
    rank: int
    backend: str
    keys: KeyValues
    process_group: Any

    def run(self, operation: str, *args: Any) -> None:
        """One collective operation, to its end."""
        try:
            getattr(self.process_group, operation)(*args).wait()
        except RuntimeError as error:
            raise RuntimeError(
                f"{operation} of rank {self.rank} in collective group {self.name!r} failed: {error}"
            ) from error

    def checked(self, rank: int) -> int:
        """A rank of this group. ValueError if it is none."""
        if rank < 0:
            raise ValueError(f"rank '{rank}' is negative.")
        if rank >= self.world_size:
            raise ValueError(f"rank '{rank}' must be less than world size '{self.world_size}'")
        return rank


_groups: dict[str, Group] = {}
_lock = threading.Lock()


# ---- backends


def gloo_available() -> bool:
    """Can groups of CPU tensors be made here?"""
    return _torch_has("is_gloo_available")


def nccl_available() -> bool:
    """Can groups of GPU tensors be made here?"""
    return _torch_has("is_nccl_available")


def is_backend_available(backend: str) -> bool:
    """Can groups with this backend be made here?"""
    try:
        return nccl_available() if Backend.named(backend) == Backend.NCCL else gloo_available()
    except ValueError:
        return False


def _torch_has(name: str) -> bool:
    try:
        import torch.distributed as dist
    except ImportError:
        return False
    return bool(getattr(dist, name)())


def _require(backend: str) -> str:
    named = Backend.named(backend)
    if not is_backend_available(named):
        raise RuntimeError(
            f"the collective backend {named} is not available in this process: "
            + ("it needs a build of torch with NCCL, and GPUs; 'gloo' runs on CPUs"
               if named == Backend.NCCL else "install torch")
        )  # fmt: skip
    return named


# ---- groups


def init_collective_group(
    world_size: int,
    rank: int,
    backend: str = Backend.NCCL,
    group_name: str = "default",
    gloo_timeout: int = TIMEOUT_MS,
) -> None:
    """Join a group as `rank` of `world_size`; returns when all have. Milliseconds; TimeoutError.

    RuntimeError outside of actors and tasks, or if this process is a member already.
    """
    _inside()
    if not group_name:
        raise ValueError(f"group_name '{group_name}' needs to be a string.")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of a group of {world_size}: ranks are 0 to {world_size - 1}")
    with _lock:
        if group_name in _groups:
            raise RuntimeError("Trying to initialize a group a second time.")
        _groups[group_name] = _join(world_size, rank, backend, group_name, gloo_timeout)


def create_collective_group(
    actors: Sequence[Any],
    world_size: int,
    ranks: Sequence[int],
    backend: str = Backend.NCCL,
    group_name: str = "default",
    gloo_timeout: int = TIMEOUT_MS,
) -> None:
    """Declare a group of actors, from the driver: each joins at its first operation in it."""
    from miniray.util.collective.rendezvous import KeyValues

    if len(ranks) != len(actors):
        raise RuntimeError(
            f"Each actor should correspond to one rank. Got '{len(ranks)}' ranks but '{len(actors)}' actors"
        )
    if sorted(ranks) != list(range(len(ranks))):
        raise RuntimeError(f"Ranks must be a permutation from 0 to '{len(ranks) - 1}'. Got {list(ranks)}.")
    if world_size != len(ranks):
        raise RuntimeError(f"World size must be the number of actors, {len(ranks)}. Got '{world_size}'.")
    plan = {
        "world_size": world_size, "backend": Backend.named(backend), "timeout": gloo_timeout,
        "ranks": {actor._actor_id.hex(): rank for actor, rank in zip(actors, ranks)},
    }  # fmt: skip
    if not KeyValues(group_name).put("plan", json.dumps(plan).encode(), overwrite=False):
        raise RuntimeError("Trying to initialize a group twice.")


def destroy_collective_group(group_name: str = "default") -> None:
    """Leave a group; nothing happens if this process is no member."""
    _inside()
    with _lock:
        group = _groups.pop(group_name, None)
    if group is None:
        return
    group.process_group.shutdown()
    if group.rank == 0:
        group.keys.delete("", prefix=True)


def is_group_initialized(group_name: str = "default") -> bool:
    """Is this process a member of the group?"""
    with _lock:
        return group_name in _groups


def get_rank(group_name: str = "default") -> int:
    """This process's rank in the group; -1 if it is no member."""
    _inside()
    with _lock:
        group = _groups.get(group_name)
    return -1 if group is None else group.rank


def get_collective_group_size(group_name: str = "default") -> int:
    """How many ranks the group has; -1 if this process is no member."""
    _inside()
    with _lock:
        group = _groups.get(group_name)
    return -1 if group is None else group.world_size


def get_group_handle(group_name: str = "default") -> Group:
    """This process's membership; an actor of a declared group joins it. RuntimeError for others."""
    _inside()
    with _lock:
        group = _groups.get(group_name)
        if group is None:
            group = _groups[group_name] = _join_as_declared(group_name)
        return group


def _inside() -> None:
    worker = current_or_none()
    if worker is None or worker.is_driver:
        raise RuntimeError("The collective APIs shall be only used inside a Ray actor or task.")


def _join(world_size: int, rank: int, backend: str, name: str, timeout_ms: int) -> Group:
    from miniray.util.collective.rendezvous import ClusterStore, KeyValues, meet

    named = _require(backend)
    keys = KeyValues(name)
    timeout = timedelta(milliseconds=timeout_ms)
    try:
        incarnation = meet(keys, rank, world_size, timeout.total_seconds())
    except TimeoutError as error:
        raise TimeoutError(f"rank {rank} cannot join collective group {name!r}: {error}") from None
    store = ClusterStore(keys, incarnation, timeout)
    return Group(name, world_size, rank, named, keys, _process_group(named, store, rank, world_size, timeout))


def _process_group(backend: str, store: Any, rank: int, world_size: int, timeout: timedelta) -> Any:
    import torch.distributed as dist

    if backend == Backend.NCCL:
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        return dist.ProcessGroupNCCL(store, rank, world_size, options)
    worker = current_or_none()
    assert worker is not None
    options = dist.ProcessGroupGloo._Options()
    # gloo listens where the node does: on loopback in a local session
    host = worker.node_info.host or "127.0.0.1"
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = timeout
    return dist.ProcessGroupGloo(store, rank, world_size, options)


def _join_as_declared(name: str) -> Group:
    from miniray.runtime_context import get_runtime_context
    from miniray.util.collective.rendezvous import KeyValues

    declared = KeyValues(name).get("plan")
    plan = json.loads(declared) if declared else {"ranks": {}}
    rank = plan["ranks"].get(get_runtime_context().get_actor_id())
    if rank is None:
        raise RuntimeError(f"The collective group '{name}' is not initialized in the process.")
    return _join(plan["world_size"], rank, plan["backend"], name, plan["timeout"])


# ---- operations


def allreduce(tensor: Any, group_name: str = "default", op: ReduceOp = ReduceOp.SUM) -> None:
    """Every rank's `tensor` becomes the reduction of all of them."""
    import torch.distributed as dist

    options = dist.AllreduceOptions()
    options.reduceOp = _torch_op(op)
    get_group_handle(group_name).run("allreduce", [_tensor(tensor)], options)


def reduce(
    tensor: Any, dst_rank: int = 0, group_name: str = "default", op: ReduceOp = ReduceOp.SUM
) -> None:
    """`tensor` of `dst_rank` becomes the reduction of all; those of others are undefined."""
    import torch.distributed as dist

    group = get_group_handle(group_name)
    options = dist.ReduceOptions()
    options.reduceOp = _torch_op(op)
    options.rootRank = group.checked(dst_rank)
    group.run("reduce", [_tensor(tensor)], options)


def broadcast(tensor: Any, src_rank: int = 0, group_name: str = "default") -> None:
    """Every rank's `tensor` becomes the one of `src_rank`."""
    import torch.distributed as dist

    group = get_group_handle(group_name)
    options = dist.BroadcastOptions()
    options.rootRank = group.checked(src_rank)
    group.run("broadcast", [_tensor(tensor)], options)


def allgather(tensor_list: list[Any], tensor: Any, group_name: str = "default") -> None:
    """`tensor_list[r]` becomes the `tensor` of rank r, on every rank."""
    group = get_group_handle(group_name)
    group.run("allgather", [_tensors(tensor_list, group)], [_tensor(tensor)])


def reducescatter(
    tensor: Any, tensor_list: list[Any], group_name: str = "default", op: ReduceOp = ReduceOp.SUM
) -> None:
    """`tensor` of rank r becomes the reduction of every rank's `tensor_list[r]`."""
    import torch.distributed as dist

    group = get_group_handle(group_name)
    options = dist.ReduceScatterOptions()
    options.reduceOp = _torch_op(op)
    group.run("reduce_scatter", [_tensor(tensor)], [_tensors(tensor_list, group)], options)


def send(tensor: Any, dst_rank: int, group_name: str = "default") -> None:
    """Give `tensor` to `dst_rank`, which calls `recv`. RuntimeError if that is this rank."""
    group = get_group_handle(group_name)
    group.run("send", [_tensor(tensor)], _other(group, dst_rank), 0)


def recv(tensor: Any, src_rank: int, group_name: str = "default") -> None:
    """`tensor` becomes what `src_rank` sends. RuntimeError if that is this rank."""
    group = get_group_handle(group_name)
    group.run("recv", [_tensor(tensor)], _other(group, src_rank), 0)


def barrier(group_name: str = "default") -> None:
    """Wait until every rank is here."""
    import torch.distributed as dist

    get_group_handle(group_name).run("barrier", dist.BarrierOptions())


def _other(group: Group, rank: int) -> int:
    if group.checked(rank) == group.rank:
        raise RuntimeError(f"The destination rank '{rank}' is self.")
    return rank


def _torch_op(op: ReduceOp) -> Any:
    import torch.distributed as dist

    return getattr(dist.ReduceOp, op.name)


def _tensors(values: Any, group: Group) -> list[Any]:
    if not isinstance(values, list):
        raise RuntimeError(f"The input must be a list of tensors. Got '{type(values)}'.")
    if len(values) != group.world_size:
        raise RuntimeError(
            "The length of the tensor list operands must be equal to world_size: "
            f"{len(values)} tensors, {group.world_size} ranks."
        )
    return [_tensor(value) for value in values]


def _tensor(value: Any) -> Any:
    """As a torch tensor on the same memory."""
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        return value
    if not isinstance(value, np.ndarray):
        raise RuntimeError(
            f"Unrecognized tensor type '{type(value)}'. Supported types are: np.ndarray, torch.Tensor."
        )
    if not value.flags.writeable:
        raise ValueError(
            "the array is read-only (an object of the store?): give a copy, it is changed in place"
        )
    return torch.from_numpy(value)
