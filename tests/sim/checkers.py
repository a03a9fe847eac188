"""Invariants that are looked at from outside, from time to time and at the end.

While it runs: every machine's own `check()`, and that each node's resources are exactly what its
leases, actors and bundles hold. At rest (all scripts finished, all references dropped): nothing
is left anywhere, every placement group is whole or absent, every resource is back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core.head import Head

from .world import Violation

if TYPE_CHECKING:
    from miniray.core.directory import ObjectEntry

    from .cluster import Cluster
    from .node import SimNode
    from .worker import SimWorker


def look(cluster: Cluster) -> None:
    """While it runs."""
    copies_are_equal(cluster)
    for node in cluster.living:
        node.node.check()
        resources_add_up(node)
    for worker in cluster.owners():
        worker.owner.check()
    if cluster.head.head is not None:
        cluster.head.head.check()


def resources_add_up(node: SimNode) -> None:
    """total = available + held by leases and actors + held by bundles, for each resource."""
    pool = node.node.resources
    held: dict[str, int] = {}
    allocations = [grant.allocation for grant in node.node.leases.grants.values()]
    allocations += [bundle.allocation for bundle in node.node.hosting.bundles.values()]
    for allocation in allocations:
        for name, amount in allocation.amounts.items():
            held[name] = held.get(name, 0) + amount - allocation.lent.get(name, 0)
    for name, total in pool.total.items():
        if pool.available[name] + held.get(name, 0) != total:
            raise Violation(
                f"{node.name}: {name} total {total}, available {pool.available[name]}, "
                f"held {held.get(name, 0)}"
            )


def copies_are_equal(cluster: Cluster) -> None:
    """Every copy of an object, in a store or on a disk, is the same and is its own."""
    seen: dict[bytes, Any] = {}
    for node in cluster.living:
        for place in (node.store, node.disk):
            for oid, item in place.items():
                value = seen.setdefault(oid, item.value)
                if item.value.tag != oid or value.note != item.value.note:
                    raise Violation(f"{cluster.world.name(oid)} on {node.name} is {item.value}, not {value}")


def rows_are_known(head: Head, rows: dict[tuple[str, bytes], bytes]) -> None:
    """Right after a restart the head knows everything that was saved."""
    jobs = {job.job_id for job in head.jobs.all()}
    nodes = {info.node_id for info in head.members.all()}
    for (table, key), row in rows.items():
        if table == "actor":
            record = head.actors.registry.records.get(key)
            known = record is not None and record.info.spec.name == pb.ActorInfo.FromString(row).spec.name
        elif table == "group":
            known = head.placement.info(key) is not None
        elif table == "kv":
            known = head.kv.get(gcs.KvGet(key=key[2:])).kv.value == row     # all are in the namespace ""
        else:
            known = {"job": jobs, "node": nodes}.get(table, {key: None}).__contains__(key)
        if not known:
            raise Violation(f"row {table} {key.hex()} was saved, and is unknown after the restart")


def at_rest(cluster: Cluster) -> list[str]:
    """What is not yet as it was in the beginning; empty when the cluster is at rest.

    Actors that hold one another's handles live on, with all that they hold, as long as their driver.
    """
    kept = kept_by_actors(cluster)
    left: list[str] = []
    for worker in cluster.owners():
        left += [f"{worker.name}: {text}" for text in _owner_left(worker, kept)]
    for node in cluster.living:
        left += [f"{node.name}: {text}" for text in _node_left(node, kept)]
    return left + _head_left(cluster, kept)


def kept_by_actors(cluster: Cluster) -> dict[bytes, None]:
    """The objects that living actors can reach, and the actors whose handles are among them."""
    oracle = cluster.oracle
    kept = {
        oid: None
        for oid, holders in oracle.live.items()
        if any(one.actor is not None for one in holders)
    }
    found = list(kept)
    for oid in found:       # grows meanwhile
        for worker in cluster.owners():
            entry = worker.owner.directory.find(oid)
            fresh = [one.id for one in _below(entry) if one.id not in kept]
            kept.update(dict.fromkeys(fresh))
            found += fresh
    reached = {actor: None for actor, handle in oracle.handles.items() if handle in kept}
    return kept | reached | dict.fromkeys(oracle.detached)


def _below(entry: ObjectEntry | None) -> list[ObjectEntry]:
    """What is inside an object and what it was made of, that of freed objects too: they may be made again."""
    found = [] if entry is None else [entry]
    for one in found:       # grows meanwhile
        inner = [] if one.rare is None else list(one.rare.contents)
        if one.task is not None:
            inner += one.task.held or ()
        found += [other for other in inner if other not in found]
    return found[1:]


def _owner_left(worker: SimWorker, kept: dict[bytes, None]) -> list[str]:
    owner, name = worker.owner, worker.world.name
    left = [
        f"knows {name(entry.id)}: {entry} {_rare(worker, entry)}"
        for entry in owner.directory.objects.values()
        if entry.id not in kept
    ]
    if worker.executor is None:
        left += [f"holds {name(oid)}" for oid, who in worker.cluster.oracle.live.items() if worker in who]
    ownership = owner.ownership
    left += [
        f"{name(borrower[1])} is in the books"
        for borrower, oids in ownership.by_borrower.items()
        if not kept.keys() >= oids.keys()
    ]
    left += [f"waits for the owner of {name(oid)}" for oid, _ in ownership.awaiting]
    left += [f"lane {lane.key} is not idle" for lane in owner.submission.lanes.values() if not lane.idle]
    if owner.unfinished:
        left.append(f"{owner.unfinished} tasks unfinished")
    left += [
        f"{len(remote.inflight)} calls in flight to {name(address[1])}"
        for address, remote in owner.remotes.items()
        if remote.inflight
    ]
    if worker.executor is not None and (worker.executor.running or worker.executor.queue):
        left.append("runs or queues something")
    return left


def _rare(worker: SimWorker, entry: Any) -> str:
    if entry.rare is None:
        return ""
    name = worker.world.name
    borrowers = {name(borrower[1]): count for borrower, count in entry.rare.borrowers.items()}
    return f"borrowers {borrowers} contains {[name(one.id) for one in entry.rare.contents]}"


def _node_left(node: SimNode, kept: dict[bytes, None]) -> list[str]:
    machine, name = node.node, node.world.name
    left = [f"{name(oid)} in its store" for oid in node.store if oid not in kept]
    left += [f"{name(oid)} on its disk" for oid in node.disk if oid not in kept]
    left += [
        f"{name(oid)} held, owned by {name(held.owner[1])}"
        for oid, held in machine.memory.held.items()
        if oid not in kept
    ]
    for grant in machine.leases.grants.values():
        if grant.actor_id in kept:
            continue
        what = name(grant.actor_id) if grant.actor_id else grant.cls.function_name
        left.append(f"lease {grant.grant_id} of {what} for {name(grant.key[0])} on {name(grant.worker_id)}")
    left += [f"{name(key[0])} waits for a lease" for key in machine.requests.known]
    left += [f"bundle {index} of {name(group)}" for group, index in machine.hosting.bundles]
    left += [f"pulls {name(oid)}" for oid in machine.transfer.pulls]
    left += [f"a part of {name(oid)}" for oid in node.copying.landings]
    left += [f"sends {name(oid)}" for oid, spread in machine.serving.spreads.items() if spread.readers]
    if machine.resources.available != machine.resources.total:
        left.append(f"available {machine.resources.available} of {machine.resources.total}")
    return left


def _head_left(cluster: Cluster, kept: dict[bytes, None]) -> list[str]:
    head, name = cluster.head.head, cluster.world.name
    if head is None:
        return ["the head is down"]
    left = []
    for record in head.actors.registry.records.values():
        if not record.is_dead and record.id not in kept:
            left.append(
                f"head: {name(record.id)} is {pb.ActorState.Name(record.info.state)} "
                f"{record.info.pending_reason}"
            )
    for group in head.placement.find(pb_lookup()):
        if group.state != pb.GROUP_REMOVED:
            left.append(f"head: {name(group.placement_group_id)} is {pb.GroupState.Name(group.state)}")
    alive = {node.id for node in cluster.living}
    known = set(head.members.living)
    if alive != known:
        left.append(f"head: knows nodes {sorted(map(name, known))}, alive are {sorted(map(name, alive))}")
    return left


def pb_lookup() -> Any:
    """A lookup of all groups."""
    return gcs.GroupLookup()


def detached_live(cluster: Cluster) -> list[str]:
    """Detached actors that were acknowledged, start again for ever and were not ended, but do not live."""
    assert cluster.head.head is not None
    records = cluster.head.head.actors.registry.records
    alive = {worker.actor.actor_id for worker in cluster.workers if worker.alive and worker.actor is not None}
    missing = []
    for actor_id, was_acknowledged in cluster.oracle.detached.items():
        record = records.get(actor_id)
        has_died = record is None or record.is_dead
        if was_acknowledged and (has_died or actor_id not in alive):
            state = "unknown" if record is None else pb.ActorState.Name(record.info.state)
            missing.append(f"{cluster.world.name(actor_id)} is detached, restarts for ever, and is {state}")
    return missing


def groups_are_whole(cluster: Cluster) -> None:
    """A created group has all its bundles; a removed one has none. Only when nothing is under way."""
    head = cluster.head.head
    assert head is not None
    held: dict[bytes, dict[int, bool]] = {}
    for node in cluster.living:
        for (group, index), bundle in node.node.hosting.bundles.items():
            held.setdefault(group, {})[index] = bundle.committed
    for info in head.placement.find(pb_lookup()):
        bundles = held.pop(info.placement_group_id, {})
        if info.state == pb.GROUP_CREATED:
            if bundles != {bundle.index: True for bundle in info.bundles}:
                raise Violation(
                    f"{cluster.world.name(info.placement_group_id)} is CREATED but holds {bundles}"
                )
        elif info.state in (pb.GROUP_PENDING, pb.GROUP_REMOVED) and bundles:
            name = cluster.world.name(info.placement_group_id)
            raise Violation(f"{name} is {pb.GroupState.Name(info.state)} but holds {bundles}")
    if held:
        raise Violation(
            f"bundles of groups that nobody knows: {[cluster.world.name(group) for group in held]}"
        )
