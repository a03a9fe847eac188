"""Why something is as it is, as the GCS knows it: one sentence, the chain behind it, its story.

`miniray why` and `util.state.explain` ask with an id; its length says what it may be::

    4 job    16 actor    18 placement group    24 task    28 node, worker or object

Each link of the chain answers "why?" for the one before: a task failed because its worker died,
that because its node died. What has not ended is known best by its owner
(`core.why`), so `core.questions` passes the question on to all processes of the job: the GCS sees tasks
when they are over. `merged` puts what they say together.
Pure; reads the machines of `core.head`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core import ids, resources
from miniray.core.desk import short

if TYPE_CHECKING:
    from miniray.core.head import Head

HOLDERS_SHOWN = 5
"""Classes of actors, and bundles, that are named as holders of what others wait for."""


def merged(key: bytes, own: gcs.Explanation, findings: list[gcs.Finding]) -> gcs.Explanation:
    """What the GCS knows of `key` and what processes have found, as one.

    The owner speaks first of what has not ended, and of objects; then whoever executes the task, who
    else holds the object, what raylets know, and who did not answer.
    """
    said = [(finding, one) for finding in findings for one in finding.explanations if one.role]
    owner = next((one for _, one in said if one.role == "owner"), None)
    answer = gcs.Explanation()
    over = own.kind not in ("", "object") and (owner is None or not owner.unsettled)
    answer.CopyFrom(own if owner is None or over else owner)
    if ids.subject(answer.next) == ids.subject(key):
        answer.next = b""       # whoever executes it has been asked already
    for role in ("executor", "holder", "node"):
        for finding, one in said:
            if one.role == role:
                _append(answer, finding, one)
    silent = [finding for finding in findings if finding.silent]
    if answer.unsettled or not answer.kind:
        answer.chain.extend(_silence(finding) for finding in silent)
    if not answer.kind and silent:
        answer.kind = "unknown"
        answer.sentence = "nobody who answers knows this id; its owner may be one of those who do not"
    return answer


def _append(answer: gcs.Explanation, finding: gcs.Finding, said: gcs.Explanation) -> None:
    if not answer.kind:
        answer.kind, answer.sentence = said.kind, said.sentence
    who = "" if said.role == "node" else f"{place_of(finding)}: "
    answer.chain.extend(who + link for link in said.chain)
    answer.story.extend(said.story)
    answer.next = said.next or answer.next
    answer.name = answer.name or said.name
    answer.unsettled = answer.unsettled or said.unsettled


def place_of(finding: gcs.Finding) -> str:
    """A process in words."""
    node = short(finding.address.node_id)
    if not finding.address.worker_id:
        return f"raylet of node {node}"
    return f"{finding.title} {short(finding.address.worker_id)} (pid {finding.pid}, node {node})"


def _silence(finding: gcs.Finding) -> str:
    running = f" while it runs {finding.running[0]}" if finding.running else ""
    return f"{place_of(finding)} does not answer{running}: {finding.silent}"


def explain(head: Head, now: float, key: bytes) -> gcs.Explanation:
    """What the GCS knows of `key`; `kind` is "" when that is nothing."""
    for part in _BY_LENGTH.get(len(key), ()):
        found = part(head, key)
        if found is not None:
            found.story.extend(story(head, now, key))
            return found
    return gcs.Explanation()


def story(head: Head, now: float, key: bytes) -> list[str]:
    """What happened to `key`, oldest first, with times in seconds before `now`."""
    lines = []
    for line in head.story(key):
        at, _, text = line.partition(" ")
        lines.append(f"{now - float(at):.1f} s ago: {text}")
    return lines


_UNSAID = {pb.TASK_CANCELLED: "it was cancelled"}
"""What a failure without a message says."""


def causes(failure: pb.Failure) -> list[str]:
    """A failure as links of a chain: what happened, how the process ended, its last words."""
    said = failure.message or _UNSAID.get(failure.kind, pb.ErrorKind.Name(failure.kind))
    links = [f"{said} (node {short(failure.node_id)})" if failure.node_id and failure.pid else said]
    if failure.exit_detail and failure.exit_detail not in failure.message:
        links.append(failure.exit_detail)
    if failure.stderr_tail:
        links.append("the end of its stderr: " + failure.stderr_tail.strip()[-400:])
    return links


# ---- actors


def _actor(head: Head, key: bytes) -> gcs.Explanation | None:
    record = head.actors.registry.records.get(key)
    if record is None:
        return None
    info = head.actors.shown(record)
    spec = info.spec
    title = f"actor {spec.class_name}" + (f" '{spec.name}'" if spec.name else "") + f" ({short(key)})"
    found = gcs.Explanation(kind="actor")
    if info.state == pb.DEPENDENCIES_UNREADY:
        found.sentence = f"{title} waits for the arguments of its constructor"
        found.chain.append(f"they are made for worker {short(spec.owner.worker_id)}, which owns it")
    elif info.state == pb.ALIVE:
        found.sentence = f"{title} runs on {_place(head, info.address)}, pid {info.pid}"
        if info.restarts:
            found.chain.append(f"it has been restarted {info.restarts} times: {info.death.message}")
    elif info.state == pb.DEAD:
        found.sentence = f"{title} is dead"
        found.chain.extend(causes(info.death))
        found.chain.extend(_end_of_node(head, info.death.node_id or info.address.node_id))
    else:
        again = info.state == pb.RESTARTING
        found.sentence = f"{title} is {'restarting' if again else 'not alive yet'}"
        if info.pending_reason:
            found.chain.append(info.pending_reason)
            found.chain.extend(_held(head, info.pending_reason, spec.creation_class.resources.amounts))
        if record.node_id:
            where = _place(head, pb.Address(node_id=record.node_id))
            found.chain.append(f"it is being created on {where}: its process starts, or its constructor runs")
        found.chain.extend(_group_behind(head, spec.creation_class.strategy))
        if again:
            limit = "any number of" if spec.max_restarts < 0 else str(spec.max_restarts)
            found.chain.append(f"restart {info.restarts} of {limit}, after: {info.death.message}")
    return found


def _place(head: Head, address: pb.Address) -> str:
    info = _node_info(head, address.node_id)
    name = f" {info.node_name}" if info is not None and info.node_name else ""
    return f"node{name} ({short(address.node_id)})"


def _group_behind(head: Head, strategy: pb.SchedulingStrategy) -> list[str]:
    group_id = strategy.bundle.placement_group_id
    group = _group(head, group_id) if group_id else None
    return [group.sentence, *group.chain] if group is not None else []


def _held(head: Head, reason: str, wanted: Iterable[str]) -> list[str]:
    """Which actors and groups keep what is waited for; tasks give it back by themselves."""
    names = [name for name in wanted if f"for {name}:" in reason or " together on " in reason]
    holders: dict[str, int] = {}

    def count(holder: str, held: pb.ResourceMap) -> None:
        if any(held.amounts.get(name, 0) for name in names):
            holders[holder] = holders.get(holder, 0) + 1

    for record in head.actors.registry.records.values():
        if record.info.state == pb.ALIVE:
            count(f"actor {record.info.spec.class_name}", record.info.spec.lifetime_resources)
    for group in head.placement.infos():
        if group.state == pb.GROUP_CREATED:
            for bundle in group.bundles:
                count("bundle of placement groups", bundle.resources)
    most = sorted(holders, key=lambda holder: -holders[holder])[:HOLDERS_SHOWN]
    shown = ", ".join(f"{holders[holder]} x {holder}" for holder in most)
    return [f"{' and '.join(names)}: held by {shown}, until they end"] if shown else []


def kept(head: Head, links: Iterable[str]) -> list[str]:
    """Who keeps what a task waits for, where the node that would run it has not said so."""
    found = (match for link in links if (match := _WAITING.search(link)) is not None)
    return next((_held(head, match[0], [match[1]]) for match in found), [])


_WAITING = re.compile(r"waiting for ([^\s:]+): .* free on ")


# ---- placement groups


def _group(head: Head, key: bytes) -> gcs.Explanation | None:
    info = head.placement.info(key)
    if info is None:
        return None
    state = {
        pb.GROUP_PENDING: "waits for room", pb.GROUP_PREPARED: "is being placed",
        pb.GROUP_CREATED: "holds all its bundles", pb.GROUP_REMOVED: "was removed",
        pb.GROUP_RESCHEDULING: "has lost a node and waits for room elsewhere",
    }[info.state]  # fmt: skip
    name = f" '{info.name}'" if info.name else ""
    found = gcs.Explanation(kind="placement group", sentence=f"placement group{name} ({short(key)}) {state}")
    if info.pending_reason:
        found.chain.append(info.pending_reason)
        if info.state in (pb.GROUP_PENDING, pb.GROUP_RESCHEDULING):
            wanted = dict.fromkeys(name for bundle in info.bundles for name in bundle.resources.amounts)
            found.chain.extend(_held(head, info.pending_reason, wanted))
    for bundle in info.bundles:
        held = f"on {_place(head, pb.Address(node_id=bundle.node_id))}" if bundle.node_id else "nowhere"
        found.chain.append(
            f"bundle {bundle.index}, {resources.render(resources.from_map(bundle.resources))}: {held}"
        )
    return found


# ---- nodes and workers


def _node_info(head: Head, node_id: bytes) -> pb.NodeInfo | None:
    return next((info for info in head.members.all() if info.node_id == node_id), None)


def _node(head: Head, key: bytes) -> gcs.Explanation | None:
    info = _node_info(head, key)
    if info is None:
        return None
    title = f"node {info.node_name} ({short(key)})" if info.node_name else f"node {short(key)}"
    found = gcs.Explanation(kind="node")
    if info.state == pb.NODE_DEAD:
        found.sentence = f"{title} is dead"
        found.chain.extend(causes(info.death))
        return found
    draining = "is leaving: no new work goes there" if info.state == pb.NODE_DRAINING else "is alive"
    found.sentence = f"{title} {draining}"
    found.chain.append(f"free are {_shown(info.available)} of {_shown(info.total)}")
    return found


def _shown(amounts: pb.ResourceMap) -> str:
    """Without what names the node itself."""
    plain = {name: amount for name, amount in resources.from_map(amounts).items() if ":" not in name}
    return resources.render(plain)


def _end_of_node(head: Head, node_id: bytes) -> list[str]:
    info = _node_info(head, node_id) if node_id else None
    if info is None or info.state != pb.NODE_DEAD:
        return []
    return [f"{_place(head, pb.Address(node_id=node_id))} is dead: {info.death.message}"]


def _worker(head: Head, key: bytes) -> gcs.Explanation | None:
    for record in head.actors.registry.records.values():
        if record.info.address.worker_id == key:
            actor = _actor(head, record.id)
            assert actor is not None
            text = f"worker {short(key)} hosts an actor"
            return gcs.Explanation(kind="worker", sentence=text, chain=[actor.sentence, *actor.chain])
    for job in head.jobs.all():
        if job.driver.worker_id == key:
            found = _job(head, job.job_id)
            assert found is not None
            text = f"worker {short(key)} is the driver of a job"
            return gcs.Explanation(kind="worker", sentence=text, chain=[found.sentence])
    return None


# ---- jobs, tasks, objects


def _job(head: Head, key: bytes) -> gcs.Explanation | None:
    info = next((job for job in head.jobs.all() if job.job_id == key), None)
    if info is None:
        return None
    state = {pb.JOB_RUNNING: "runs", pb.JOB_FINISHED: "has finished", pb.JOB_FAILED: "has failed"}[info.state]
    where = f"driver pid {info.driver_pid} on {_place(head, info.driver)}"
    return gcs.Explanation(kind="job", sentence=f"job {key.hex()} ({info.entrypoint}) {state}", chain=[where])


def _task(head: Head, key: bytes) -> gcs.Explanation | None:
    rows = head.events.query(gcs.TaskQuery(task_id=key)).tasks
    if not rows:
        return None
    row = rows[-1]
    address = pb.Address(node_id=row.node_id)
    where = f" on {_place(head, address)}" if row.node_id else ""
    found = gcs.Explanation(kind="task")
    spent = f" after {row.ended_at - row.started_at:.3f} s" if row.started_at and row.ended_at else ""
    outcome = "failed" if row.state == "FAILED" else "has finished"
    found.sentence = f"task {row.name} ({short(key)}) {outcome}{spent}{where}"
    if row.attempt:
        found.chain.append(f"this was attempt {row.attempt + 1}: those before it failed")
    if row.error:
        found.chain.append(row.error.strip()[-1000:])
    if row.state == "FAILED":
        found.chain.extend(_end_of_node(head, row.node_id))
        actor = _actor(head, row.actor_id) if row.actor_id else None
        if actor is not None:
            found.chain.extend([actor.sentence, *actor.chain])
    waited = row.started_at - row.submitted_at
    if row.started_at and waited > 1.0:
        found.chain.append(f"it waited {waited:.1f} s before it was sent to a worker")
    return found


def _object(head: Head, key: bytes) -> gcs.Explanation | None:
    title = f"object {key.hex()}"
    if ids.is_put(key):
        job = _job(head, ids.job_of_task(ids.task_of_object(key)))
        if job is None:
            return None
        put = f"{title} was put, not returned by a task"
        return gcs.Explanation(kind="object", sentence=put, chain=[job.sentence])
    task = _task(head, ids.task_of_object(key))
    if task is None:
        return None
    return gcs.Explanation(kind="object", sentence=f"{title} is the result of a task",
                           chain=[task.sentence, *task.chain])


_BY_LENGTH: dict[int, tuple[Callable[[Head, bytes], gcs.Explanation | None], ...]] = {
    ids.JOB_ID_SIZE: (_job,),
    ids.ACTOR_ID_SIZE: (_actor,),
    ids.PLACEMENT_GROUP_ID_SIZE: (_group,),
    ids.TASK_ID_SIZE: (_task,),
    ids.OBJECT_ID_SIZE: (_node, _worker, _object),
}
