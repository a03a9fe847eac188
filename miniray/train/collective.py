"""Small exchanges between all workers of a training loop: `barrier`, `broadcast_from_rank_zero`.

For a word now and then, a name or a seed: it goes through an actor of the group, which the first worker
that comes starts. Tensors go through `torch.distributed`.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import miniray as ray
from miniray.train import session
from miniray.train.exceptions import SessionMisuseError

T = TypeVar("T")


def barrier() -> None:
    """Wait until every worker of the group is here. SessionMisuseError as for `broadcast_from_rank_zero`."""
    _meet("barrier", None)


def broadcast_from_rank_zero(data: T) -> T:
    """Worker 0's `data`, at every worker; what the others give is ignored.

    Waits for all workers, who must call the same functions of this module in the same order:
    SessionMisuseError names who did not, and is raised outside of a training loop.
    """
    given: T = _meet("broadcast_from_rank_zero", data)
    return given


def _meet(what: str, data: Any) -> Any:
    current = session.current()
    context = current.context
    if context.world_size == 1:
        return data
    if current.meeting is None:
        current.meeting = Meeting.options(
            name=f"train-{context.incarnation}", get_if_exists=True, max_concurrency=context.world_size
        ).remote(context.world_size)
    rank = context.world_rank
    given, error = ray.get(current.meeting.meet.remote(rank, what, data if rank == 0 else None))
    if error:
        raise SessionMisuseError(error)
    return given


@ray.remote(num_cpus=0)
class Meeting:
    """Where the workers of one start of a group wait for each other."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._here: dict[int, str] = {}
        self._over: asyncio.Future[tuple[Any, str]] = asyncio.get_running_loop().create_future()
        self._data: Any = None

    async def meet(self, rank: int, what: str, data: Any) -> tuple[Any, str]:
        """(what worker 0 gave, what was wrong), once all are here."""
        over = self._over
        self._here[rank] = what
        if rank == 0:
            self._data = data
        if len(self._here) == self._size:
            over.set_result((self._data, self._discord()))
            self._here, self._data = {}, None
            self._over = asyncio.get_running_loop().create_future()
        return await over

    def _discord(self) -> str:
        called = sorted(set(self._here.values()))
        if len(called) == 1:
            return ""
        who = ", ".join(f"worker {rank} {self._here[rank]}" for rank in sorted(self._here))
        return f"the workers called different functions of train.collective at the same time: {who}"
