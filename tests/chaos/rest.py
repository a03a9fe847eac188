"""What a cluster without drivers must not hold any more: resources, actors, jobs, objects, files."""

from __future__ import annotations

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs

from .cluster import Cluster


def unrest(cluster: Cluster) -> list[str]:
    """Everything that is not at rest, in words; [] when all is."""
    status = cluster.ask(gcs.ControlRequest(status=gcs.StatusQuery())).status
    found = []
    counts = {"jobs running": status.jobs_running, "actors alive": status.actors_alive,
              "actors waiting": status.actors_pending, "demands": len(status.demand)}
    found += [f"{count} {what}" for what, count in counts.items() if count]
    for node in status.nodes:
        if node.state == pb.NODE_DEAD:
            continue
        for name, total in node.total.amounts.items():
            free = node.available.amounts.get(name, 0)
            if free != total and name != "object_store_memory":
                found.append(f"{(total - free) / 10_000:g} {name} of {node.node_id.hex()[:8]} in use")
    for disk in cluster.disks:
        found += [f"{path} on disk" for path in disk.path.rglob("*.spill")]
    return found or stores(cluster)


def end_detached(cluster: Cluster) -> None:
    """Kill the detached actors of drivers that were killed: they live on, as they should."""
    import miniray as ray
    from miniray.util import list_named_actors

    ray.init(cluster.nodes[0].session_dir, configure_logging=False, log_to_driver=False)
    for found in list_named_actors(all_namespaces=True):
        ray.kill(ray.get_actor(found["name"], namespace=found["namespace"]))
    ray.shutdown()


def stores(cluster: Cluster) -> list[str]:
    """Stores that are not empty; looks as a driver of each node."""
    import miniray as ray
    from miniray import api

    found = []
    for node in cluster.nodes:
        ray.init(node.session_dir, configure_logging=False, log_to_driver=False)
        left = api.connected_worker().store.list()
        ray.shutdown()
        found += [f"object {oid.hex()} ({size} bytes, {state}) in the store of node {node.index}"
                  for oid, size, state, _, _ in left]
    return found
