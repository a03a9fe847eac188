"""A group of workers: reserved together, numbered, started, watched and ended together.

A placement group holds one bundle per worker, so either all can start or none does. Ranks go node
by node, so the workers of a node are neighbours in every ring that a collective builds. The end of one
worker is the end of the group: what the others do without it is of no use.
"""

from __future__ import annotations

import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import miniray as ray
from miniray.exceptions import RayActorError
from miniray.train.checkpoint import Checkpoint
from miniray.train.config import RunConfig, ScalingConfig
from miniray.train.exceptions import WorkerGroupError
from miniray.train.session import TrainContext
from miniray.train.storage import packed
from miniray.train.worker import Assignment, Place, TrainWorker
from miniray.util.placement_group import placement_group, remove_placement_group
from miniray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

REMIND_S = 10.0
"""After this long, and again and again, it is said what a run waits for."""
LOOK_S = 1.0
PATIENCE_S = 10.0
"""How long an elastic run waits for the workers that the cluster seems to have room for."""
FURTHER_FAILURES_S = 1.0
"""How long a group with a failure is still listened to: the first failure to be seen may be a consequence of
another, and reports that complete a checkpoint may be under way."""

Say = Callable[[str], None]


def room(bundle: dict[str, float]) -> int:
    """How many workers the living nodes could hold if nothing else ran on them."""
    return sum(_times(node["Resources"], bundle) for node in ray.nodes() if node["Alive"])


def free_room(bundle: dict[str, float]) -> int:
    """How many more workers the free resources of the cluster could hold, by their sum."""
    return _times(ray.available_resources(), bundle)


def _times(resources: dict[str, float], bundle: dict[str, float]) -> int:
    return min(
        (int(resources.get(name, 0.0) / amount + 1e-6) for name, amount in bundle.items()), default=1 << 20
    )


def reserve(scaling: ScalingConfig, say: Say) -> tuple[Any, int]:
    """A placement group for as many workers as fit, and their number; waits until the fewest fit."""
    bundle, started = scaling.bundle, time.monotonic()
    size = _fitting(scaling)
    while True:
        labels = [scaling.label_selector] * size if scaling.label_selector else None
        group = placement_group(
            [bundle] * size, strategy=scaling.placement_strategy, bundle_label_selector=labels
        )
        asked = said = time.monotonic()
        while not group.wait(LOOK_S):
            now = time.monotonic()
            if now - said > REMIND_S:
                said = now
                free = ray.available_resources()
                say(
                    f"waiting for room for {size} workers of {bundle} for {now - started:.0f} s; "
                    f"the cluster has { {name: free.get(name, 0.0) for name in bundle} } free"
                )
            wanted = _fitting(scaling)
            if wanted == size and size > scaling.min_workers and now - asked > PATIENCE_S:
                wanted = size - 1
            if wanted < size:
                break
        else:
            return group, size
        remove_placement_group(group)
        size = wanted


def _fitting(scaling: ScalingConfig) -> int:
    return max(scaling.min_workers, min(scaling.max_workers, room(scaling.bundle)))


@dataclass
class WorkerGroup:
    """Workers that run; make one with `started`."""

    contexts: list[TrainContext]
    places: list[Place]
    _actors: list[Any]
    _streams: dict[int, Any]
    _reservation: Any
    _failures: dict[int, Exception] = field(default_factory=dict)
    _deadline: float = math.inf

    @classmethod
    def started(
        cls, scaling: ScalingConfig, run: RunConfig, assignment: Assignment, loop: Any, config: Any, say: Say
    ) -> WorkerGroup:
        """Reserve, start, and set the loops going. Raises WorkerGroupError when that fails."""
        reservation, size = reserve(scaling, say)
        actors: list[Any] = []
        try:
            actors = [_actor(scaling, run, reservation, at) for at in range(size)]
            where = (assignment.context.storage_path, assignment.marker)
            asked = {at: actor.place.remote(*where) for at, actor in enumerate(actors)}
            places = _collected(asked, "start")
            order = _by_node([places[at] for at in range(size)])
            actors, placed = [actors[at] for at in order], [places[at] for at in order]
            contexts = _contexts(placed, assignment.context)
            group = f"train/{secrets.token_hex(8)}"
            files = _files(assignment, placed)
            starts = {}
            for rank, (actor, context, place) in enumerate(zip(actors, contexts, placed)):
                mine = None if place.sees_storage else files
                told = replace(assignment, context=context, group=group, files=mine)
                starts[rank] = actor.start.remote(told)
            _collected(starts, "be set up")
            streams = {
                rank: actor.run.options(num_returns="streaming").remote(loop, config)
                for rank, actor in enumerate(actors)
            }
        except BaseException:
            _end(actors, reservation)
            raise
        return cls(contexts, placed, actors, streams, reservation)

    def __len__(self) -> int:
        return len(self._actors)

    def said(self, wait_s: float) -> Iterator[tuple[int, Any]]:
        """What the workers have said, as (rank, Report or Done), after waiting for `wait_s` at most.

        Raises WorkerGroupError when any has failed, soon after it: what the others have said by then
        is told first.
        """
        if self._streams:
            wait_s = min(wait_s, max(0.0, self._deadline - time.monotonic()))
            ready, _ = ray.wait(list(self._streams.values()), num_returns=1, timeout=wait_s)
            for rank in list(self._streams):
                yield from self._read(rank, any(self._streams[rank] is one for one in ready))
        if self._failures and (not self._streams or time.monotonic() >= self._deadline):
            raise _failure(self._failures, "train") from next(iter(self._failures.values()))

    def _read(self, rank: int, ready: bool) -> Iterator[tuple[int, Any]]:
        """All that one worker has said by now; its end or its failure is noted."""
        stream = self._streams[rank]
        while ready or stream.next_ready():
            ready = False
            try:
                said = ray.get(next(stream))
            except StopIteration:
                del self._streams[rank]
                return
            except Exception as error:
                self._failures[rank] = error
                self._deadline = min(self._deadline, time.monotonic() + FURTHER_FAILURES_S)
                del self._streams[rank]
                return
            yield rank, said

    def end(self) -> None:
        """End all workers and give back what was reserved."""
        _end(self._actors, self._reservation)


def _actor(scaling: ScalingConfig, run: RunConfig, reservation: Any, bundle: int) -> Any:
    resources = dict(scaling.bundle)
    options: dict[str, Any] = {
        "num_cpus": resources.pop("CPU", 0.0),
        "num_gpus": resources.pop("GPU", 0.0),
        "resources": resources,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(reservation, bundle),
    }
    if "memory" in resources:
        options["memory"] = resources.pop("memory")
    if run.worker_runtime_env:
        options["runtime_env"] = run.worker_runtime_env
    return ray.remote(TrainWorker).options(**options).remote()


def _by_node(places: list[Place]) -> list[int]:
    """The order of ranks: nodes as they come, the workers of each together."""
    nodes = list(dict.fromkeys(place.node_id for place in places))
    return sorted(range(len(places)), key=lambda at: (nodes.index(places[at].node_id), at))


def _files(assignment: Assignment, places: list[Place]) -> Any:
    """A reference to the checkpoint's files, if there is one and a worker that does not see it."""
    if assignment.checkpoint is None or all(place.sees_storage for place in places):
        return None
    return ray.put(packed(Checkpoint(assignment.checkpoint)))


def _contexts(places: list[Place], base: TrainContext) -> list[TrainContext]:
    crowd = Counter(place.node_id for place in places)
    nodes, seen = list(crowd), Counter[str]()
    contexts = []
    for rank, place in enumerate(places):
        contexts.append(
            replace(
                base, world_size=len(places), world_rank=rank, local_rank=seen[place.node_id],
                local_world_size=crowd[place.node_id], node_rank=nodes.index(place.node_id),
                node_id=place.node_id,
            )
        )  # fmt: skip
        seen[place.node_id] += 1
    return contexts


def _collected(refs: dict[int, Any], doing: str) -> dict[int, Any]:
    """The values of `refs`. WorkerGroupError as soon as one has failed."""
    found, left = {}, dict(refs)
    while left:
        done, _ = ray.wait(list(left.values()), num_returns=1)
        for rank in [rank for rank, ref in left.items() if ref in done]:
            try:
                found[rank] = ray.get(left.pop(rank))
            except Exception as error:
                raise _failure({rank: error}, doing) from error
    return found


def _failure(failures: dict[int, Exception], doing: str) -> WorkerGroupError:
    """One error for all failures; the deaths of workers first, as other failures follow from them."""
    ranks = sorted(failures, key=lambda rank: (not isinstance(failures[rank], RayActorError), rank))
    lines = [f"worker {rank} could not {doing}: {failures[rank]}" for rank in ranks]
    return WorkerGroupError("\n".join(lines), {rank: failures[rank] for rank in ranks})


def _end(actors: list[Any], reservation: Any) -> None:
    for actor in actors:
        ray.kill(actor)
    remove_placement_group(reservation)
