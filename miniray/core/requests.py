"""What clients may ask of the GCS, and how a question asked twice is answered.

A raylet repeats the requests it has not seen answered when the GCS has restarted. So a request
that changes something answers the same when it comes again: by its natural key (a job by its
driver, actors and groups by id) or, where there is none, by the saved reply (`_REMEMBERED`), which
is written together with the change. A refusal changes nothing and is not remembered.

Part of `core.head`; one method per request, `reply` picks it. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core import limits
from miniray.core.desk import Refusal, short

if TYPE_CHECKING:
    from miniray.core.head import Head

REPLIES_KEPT = 4_096
"""Saved replies; a node repeats only what it has not seen answered."""

_REMEMBERED = ("kv_put", "kv_delete", "actor_kill")

_REPLY_KEY = struct.Struct("<28sQ")


class Requests:
    """See the module head."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._replies: dict[bytes, bytes] = {}

    def restore(self, replies: dict[bytes, bytes]) -> None:
        """The saved replies, by sender's node and request id."""
        self._replies = replies

    def check(self) -> None:
        """Assert that the saved replies are bounded."""
        assert len(self._replies) <= REPLIES_KEPT

    def reply(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        """Carry a request out, or find the answer it had before."""
        kind = request.WhichOneof("body") or ""
        handler = _REQUEST_HANDLERS.get(kind)
        if handler is None:
            text = "the head does not know this request: it is older than the one who asks"
            return _refused(request, Refusal(pb.INVALID_ARGUMENT, text))
        too_much = limits.problem(request)
        if too_much:
            return _refused(request, Refusal(pb.INVALID_ARGUMENT, too_much))
        key = b""
        if kind in _REMEMBERED and request.sender.node_id:
            key = _REPLY_KEY.pack(request.sender.node_id, request.request_id)
            saved = self._replies.get(key)
            if saved is not None:
                return gcs.ControlReply.FromString(saved)
        try:
            reply = handler(self, now, request, node_id)
        except Refusal as refusal:
            return _refused(request, refusal)
        reply.request_id = request.request_id
        if key:
            self._remember(key, reply.SerializeToString())
        return reply

    def _remember(self, key: bytes, reply: bytes) -> None:
        self._replies[key] = reply
        self._head.desk.persist("reply", key, reply)
        if len(self._replies) > REPLIES_KEPT:
            oldest = next(iter(self._replies))
            del self._replies[oldest]
            self._head.desk.persist("reply", oldest, None)

    def _do_job_start(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        return gcs.ControlReply(job=self._head.jobs.started(now, request.job_start))

    def _do_job_finish(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        self._head.end_job(now, request.job_finish.job_id, request.job_finish.failed)
        return gcs.ControlReply()

    def _do_actor_register(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        spec = request.actor_register.spec
        group_id = spec.creation_class.strategy.bundle.placement_group_id
        if group_id and not self._head.placement.lives(group_id):
            text = f"placement group {group_id.hex()} was removed, or never made"
            raise Refusal(pb.PLACEMENT_GROUP_REMOVED, text)
        may_run = self._may_run(spec.actor_id[-4:])
        return gcs.ControlReply(actor=self._head.actors.registered(now, request.actor_register, may_run))

    def _may_run(self, job_id: bytes) -> bool:
        """Whether anything of the job can still ask for more: a raylet repeats what dead clients asked."""
        return job_id in self._head.jobs.running or self._head.actors.has_detached(job_id)

    def _do_actor_lookup(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        record = self._head.actors.registry.find(request.actor_lookup)
        return gcs.ControlReply(actor=self._head.actors.shown(record))

    def _do_actor_kill(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        self._head.actors.killed(now, request.actor_kill, self._named(request.sender))
        return gcs.ControlReply()

    def _named(self, sender: pb.Address) -> str:
        """Who asks, in words."""
        if not sender.worker_id:
            return ""
        driver = self._head.jobs.of_driver(sender.worker_id)
        kind = f"worker {short(sender.worker_id)}" if driver is None else f"the driver of job {driver.hex()}"
        return f"{kind} (node {short(sender.node_id)})"

    def _do_handle_gone(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        self._head.actors.handle_gone(now, request.actor_handle_gone.actor_id)
        return gcs.ControlReply()

    def _do_actor_list(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        records = self._head.actors.registry.listed(request.actor_list)
        return gcs.ControlReply(actors=gcs.ActorInfos(actors=[self._head.actors.shown(r) for r in records]))

    def _do_kv_put(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        return self._head.kv.put(request.kv_put)

    def _do_kv_get(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        return self._head.kv.get(request.kv_get)

    def _do_kv_delete(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        return self._head.kv.delete(request.kv_delete)

    def _do_kv_keys(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        return self._head.kv.keys(request.kv_keys)

    def _do_node_list(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        wanted = dict.fromkeys(request.node_list.node_ids)
        nodes = [info for info in self._head.members.all() if not wanted or info.node_id in wanted]
        return gcs.ControlReply(nodes=gcs.NodeInfos(nodes=nodes))

    def _do_job_list(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        return gcs.ControlReply(jobs=gcs.JobInfos(jobs=self._head.jobs.all()))

    def _do_group_create(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        job_id = request.group_create.info.creator_job_id
        if job_id and not self._may_run(job_id):
            text = f"no placement group can be made: job {job_id.hex()} has ended"
            raise Refusal(pb.INVALID_ARGUMENT, text)
        return gcs.ControlReply(group=self._head.placement.created(now, request.group_create))

    def _do_group_remove(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        self._head.placement.removed(now, request.group_remove.placement_group_id)
        return gcs.ControlReply()

    def _do_group_lookup(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        groups = self._head.placement.find(request.group_lookup)
        if request.group_lookup.placement_group_id or request.group_lookup.name:
            return gcs.ControlReply(group=groups[0])
        return gcs.ControlReply(groups=gcs.PlacementGroupInfos(groups=groups))

    def _do_subscribe(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        """Subscribers are nodes; a new one gets the present state of what it asked for."""
        wanted = request.subscribe
        if not node_id:
            text = "only a raylet can subscribe: publications travel on its stream"
            raise Refusal(pb.INVALID_ARGUMENT, text)
        if wanted.unsubscribe:
            self._head.pubsub.unsubscribed(node_id, wanted.channel, wanted.key)
            return gcs.ControlReply()
        self._head.pubsub.subscribed(node_id, wanted.channel, wanted.key, wanted.cursor)
        for key, body in self._present(wanted.channel, wanted.key, wanted.cursor > 0):
            self._head.pubsub.current(node_id, wanted.channel, key, **body)
        return gcs.ControlReply()

    def _present(self, channel: str, key: bytes, returns: bool) -> list[tuple[bytes, dict[str, Any]]]:
        """The rows a subscriber starts from: of one key, or all of a small channel.

        Dead nodes and ended jobs are only for one that returns and may have missed the news.
        """
        if channel == "actor" and key:
            record = self._head.actors.registry.records.get(key)
            return [(key, {"actor": self._head.actors.shown(record)})] if record is not None else []
        if channel == "group" and key:
            group = self._head.placement.info(key)
            return [(key, {"group": group})] if group is not None else []
        if channel == "node":
            nodes = self._head.members.all() if key or returns else self._head.members.alive()
            return [(i.node_id, {"node": i}) for i in nodes if key in (b"", i.node_id)]
        if channel == "worker":
            return [(key, {"worker": failed}) for key, failed in self._head.early_failures.items()]
        if channel == "job":
            jobs = self._head.jobs.all() if key or returns else list(self._head.jobs.running.values())
            return [(i.job_id, {"job": i}) for i in jobs if key in (b"", i.job_id)]
        return []

    def _do_publish(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        publication = request.publish.publication
        self._head.pubsub.published(publication.channel, publication.key, data=publication.data)
        return gcs.ControlReply()

    def _do_task_query(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        return gcs.ControlReply(tasks=self._head.events.query(request.task_query))

    def _do_explain(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        return gcs.ControlReply(explanation=self._head.questions.explained(now, request.explain))

    def _do_inquiry(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        """What processes execute, and what they know by a name: only they can say."""
        if not request.inquiry.ticket:
            raise Refusal(pb.INVALID_ARGUMENT, "an inquiry needs a ticket")
        return gcs.ControlReply(findings=self._head.questions.inquired(now, request.inquiry))

    def _do_census(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        return gcs.ControlReply(census=self._head.census.asked(request.census))

    def _do_drain(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        wanted = request.drain
        if not self._head.members.drain(now, wanted.node_id, wanted.deadline_s, wanted.reason):
            raise Refusal(pb.NOT_FOUND, f"node {short(wanted.node_id)} is not alive")
        return gcs.ControlReply()

    def _do_status(self, now: float, request: gcs.ControlRequest, node_id: bytes) -> gcs.ControlReply:
        alive, pending = self._head.actors.count()
        status = gcs.ClusterStatus(
            nodes=self._head.members.all(),
            demand=[
                *self._head.members.demand(),
                *self._head.actors.queue.demand(),
                *self._head.placement.demand(),
            ],
            actors_alive=alive,
            actors_pending=pending,
            jobs_running=len(self._head.jobs.running),
            epoch=self._head.options.epoch,
            uptime_s=now - self._head.started_at,
            version=self._head.options.version,
        )
        return gcs.ControlReply(status=status)


def _refused(request: gcs.ControlRequest, refusal: Refusal) -> gcs.ControlReply:
    return gcs.ControlReply(
        request_id=request.request_id, failure=pb.Failure(kind=refusal.kind, message=refusal.message)
    )


_REQUEST_HANDLERS: dict[str, Callable[[Requests, float, gcs.ControlRequest, bytes], gcs.ControlReply]] = {
    "job_start": Requests._do_job_start,
    "job_finish": Requests._do_job_finish,
    "actor_register": Requests._do_actor_register,
    "actor_lookup": Requests._do_actor_lookup,
    "actor_kill": Requests._do_actor_kill,
    "actor_handle_gone": Requests._do_handle_gone,
    "actor_list": Requests._do_actor_list,
    "kv_put": Requests._do_kv_put,
    "kv_get": Requests._do_kv_get,
    "kv_delete": Requests._do_kv_delete,
    "kv_keys": Requests._do_kv_keys,
    "node_list": Requests._do_node_list,
    "job_list": Requests._do_job_list,
    "group_create": Requests._do_group_create,
    "group_remove": Requests._do_group_remove,
    "group_lookup": Requests._do_group_lookup,
    "subscribe": Requests._do_subscribe,
    "publish": Requests._do_publish,
    "task_query": Requests._do_task_query,
    "drain": Requests._do_drain,
    "explain": Requests._do_explain,
    "census": Requests._do_census,
    "inquiry": Requests._do_inquiry,
    "status": Requests._do_status,
}
