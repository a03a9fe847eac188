"""The machines of the daemons under hostile peers that hold the token: no exception, every invariant."""

from __future__ import annotations

import random
from typing import Any

from miniray._proto import common_pb2 as common
from miniray._proto import gcs_pb2 as gcs
from miniray._proto import raylet_pb2 as raylet
from miniray._proto import worker_pb2 as worker
from miniray.core.contract import HEAD, Persist, Send
from miniray.core.head import Head, HeadOptions
from miniray.core.node import Node
from tests.fuzz.source import Source

STEPS = 40
NODES = [bytes([65 + n]) * 28 for n in range(3)]
WORKERS = [bytes([97 + n]) * 28 for n in range(3)]
JOBS = [b"\1\0\0\0", b"\2\0\0\0"]
ACTORS = [b"a" * 12 + JOBS[0], b"b" * 12 + JOBS[1]]
GROUPS = [b"g" * 14 + job for job in JOBS]
TASKS = [b"t" * 8 + ACTORS[0], b"u" * 8 + b"\xff" * 12 + JOBS[0]]
OBJECTS = [task + b"\1\0\0\0" for task in TASKS]
KNOWN = [*NODES, *WORKERS, *JOBS, *ACTORS, *GROUPS, *TASKS, *OBJECTS]


def head(data: bytes) -> None:
    """The GCS: nodes that say anything, requests of anybody, restarts from what was persisted."""
    source = Source(data, KNOWN)
    rows: dict[tuple[str, bytes], bytes] = {}
    now = 100.0
    machine = _head(now, 1, rows)
    for node_id in NODES[:2]:
        info = common.NodeInfo(node_id=node_id, total=_resources(), available=_resources())
        machine.node_connected(now, node_id)
        machine.node_message(now, node_id, gcs.NodeMessage(register=gcs.NodeRegister(info=info)))
    for step in range(STEPS):
        if source.empty:
            break
        how = source.below(12)
        if how < 5:
            machine.node_message(now, source.pick(NODES), source.message(gcs.NodeMessage))
        elif how < 9:
            machine.request(now, source.message(gcs.ControlRequest), step)
        elif how == 9:
            now += source.pick((0.01, 1.0, 20.0))
            _tick(machine, now)
        elif how == 10:
            node_id = source.pick(NODES)
            if source.chance(2):
                machine.node_connected(now, node_id)
            else:
                machine.node_disconnected(now, node_id, source.chance(2))
        elif source.chance(3):
            _settle(machine, rows)
            machine = _head(now, step + 2, rows)
        _settle(machine, rows)
    machine.dump()
    for key in KNOWN:
        machine.request(now, gcs.ControlRequest(explain=gcs.ExplainQuery(id=key)), 0)
    _settle(machine, rows)


def _head(now: float, epoch: int, rows: dict[tuple[str, bytes], bytes]) -> Head:
    machine = Head(random.Random(epoch), HeadOptions(epoch=epoch))
    machine.restore(now, [(table, key, value) for (table, key), value in rows.items()])
    _settle(machine, rows)
    return machine


def _settle(machine: Head, rows: dict[tuple[str, bytes], bytes]) -> None:
    for effect in machine.out:
        if isinstance(effect, Persist):
            if effect.value is None:
                rows.pop((effect.table, effect.key), None)
            else:
                rows[effect.table, effect.key] = effect.value
    machine.out = []
    machine.check()


def _tick(machine: Any, now: float) -> None:
    for _ in range(50):
        due = machine.next_deadline()
        if due is None or due > now:
            return
        machine.tick(now)
    raise AssertionError("the machine never comes to rest")


def _resources() -> common.ResourceMap:
    return common.ResourceMap(amounts={"CPU": 40_000, "memory": 10_000 << 20})


def node(data: bytes) -> None:
    """The raylet: clients and other raylets that say anything."""
    source = Source(data, KNOWN)
    now = 100.0
    info = common.NodeInfo(node_id=NODES[0], node_name="n", total=_resources(), available=_resources())
    machine = Node(info, random.Random(0), store_bytes=1 << 30)
    machine.started(now)
    machine.head_message(now, gcs.NodeMessage(registered=gcs.NodeRegistered(accepted=True, epoch=1)))
    other = common.NodeInfo(node_id=NODES[1], total=_resources(), available=_resources())
    machine.head_message(now, gcs.NodeMessage(view=gcs.ClusterView(full=True, nodes=[info, other])))
    for slot, worker_id in enumerate(WORKERS[:2]):
        hello = worker.Register(is_driver=True, job=gcs.JobStart())
        machine.worker_registered(now, worker_id, 1000 + slot, slot + 1, hello)
        _answer_job_start(machine, now, JOBS[slot])
    for slot in range(STEPS):
        if source.empty:
            break
        how = source.below(12)
        if how < 6:
            workers = [*WORKERS, *machine.pool.workers]
            machine.worker_message(now, source.pick(workers), source.message(worker.ToRaylet), None)
        elif how < 10:
            machine.peer_message(now, source.pick(NODES[1:]), source.message(raylet.PeerMessage))
        elif how == 10:
            now += source.pick((0.01, 1.0, 70.0))
            _tick(machine, now)
        elif source.chance(2):
            machine.worker_exited(now, source.pick(WORKERS), common.Failure(message="it ended"))
        else:
            machine.worker_registered(now, bytes([slot]) * 28, 2000 + slot, slot + 10,
                                      source.message(worker.Register))
        machine.check()
        machine.out.clear()
    machine.dump()


def _answer_job_start(machine: Node, now: float, job_id: bytes) -> None:
    sent = [effect.message for effect in machine.out if isinstance(effect, Send) and effect.peer == HEAD]
    asked = [message.request for message in sent if message.WhichOneof("body") == "request"]
    reply = gcs.ControlReply(request_id=asked[-1].request_id, job=common.JobInfo(job_id=job_id))
    machine.head_message(now, gcs.NodeMessage(reply=reply))
    machine.check()
    machine.out.clear()
