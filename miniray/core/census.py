"""A census: what every process of the cluster knows of itself, asked for when somebody lists it.

::

    asker ─query─▶ GCS ─query─▶ raylets ─query─▶ their workers and drivers
      ▲  asks again │ ◀─ whom I asked ─┘ ◀───── rows ─────┘
      └─ all there ─┘

Nobody reports what nobody asks for: what runs, waits or is held is known to the processes concerned
and costs nothing until somebody looks. `HeadCensus` gathers the parts by ticket, `NodeCensus` passes
the question on and answers for processes that end meanwhile. Both keep the latest censuses only. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core.node_effects import to_client
from miniray.core.pool import DRIVER

if TYPE_CHECKING:
    from miniray.core.head import Head
    from miniray.core.node import Node

KEPT = 16
"""Censuses under way at most; the oldest gives way."""


@dataclass(slots=True)
class Gathering:
    """One census at the GCS: what has come, and who has not answered."""

    nodes: dict[bytes, None]
    processes: dict[tuple[bytes, bytes], None] = field(default_factory=dict)
    found: gcs.Census = field(default_factory=gcs.Census)


class HeadCensus:
    """Censuses at the GCS."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._open: dict[bytes, Gathering] = {}

    def asked(self, query: gcs.CensusQuery) -> gcs.Census:
        """All rows when everybody has answered, or the asker waits no longer; else only who is missing."""
        gathering = self._open.get(query.ticket)
        if gathering is None:
            gathering = self._start(query)
        living = self._head.members.living
        missing = sum(node in living for node in gathering.nodes)
        missing += sum(node in living for node, _ in gathering.processes)
        if missing and not query.finish:
            return gcs.Census(missing=missing)
        del self._open[query.ticket]
        gathering.found.missing = missing
        return gathering.found

    def _start(self, query: gcs.CensusQuery) -> Gathering:
        nodes = [node for node, member in self._head.members.living.items() if member.registered]
        gathering = self._open[query.ticket] = Gathering(dict.fromkeys(nodes))
        if len(self._open) > KEPT:
            del self._open[next(iter(self._open))]
        for node_id in nodes:
            self._head.desk.send(node_id, gcs.NodeMessage(census=query))
        return gathering

    def counted(self, node_id: bytes, part: gcs.CensusPart) -> None:
        """A raylet, or one of its clients, has answered."""
        gathering = self._open.get(part.ticket)
        if gathering is None:
            return
        if part.worker_id:
            gathering.processes.pop((node_id, part.worker_id), None)
        else:
            gathering.nodes.pop(node_id, None)
            gathering.processes.update(((node_id, worker_id), None) for worker_id in part.asked)
        gathering.found.MergeFrom(part.found)


class NodeCensus:
    """Censuses at one raylet."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._open: dict[bytes, dict[bytes, None]] = {}
        """By ticket: the clients that have not answered."""

    def asked(self, now: float, query: gcs.CensusQuery) -> None:
        """Answer for this node, and ask its clients where they know more."""
        if query.kind == gcs.CensusQuery.WORKERS:
            rows = gcs.Census(workers=[*self._living(now), *self._ended(now)])
            self._tell(gcs.CensusPart(ticket=query.ticket, found=rows))
            return
        clients = list(self._node.pool.workers)
        self._open[query.ticket] = dict.fromkeys(clients)
        if len(self._open) > KEPT:
            del self._open[next(iter(self._open))]
        self._tell(gcs.CensusPart(ticket=query.ticket, asked=clients))
        for worker_id in clients:
            self._node.out.append(to_client(worker_id, census=query))

    def answered(self, worker_id: bytes, part: gcs.CensusPart) -> None:
        """A client has told its rows."""
        waiting = self._open.get(part.ticket, {})
        if worker_id in waiting:
            part.worker_id = worker_id
            del part.asked[:]
            self._close(part.ticket, worker_id)
            self._tell(part)

    def client_gone(self, worker_id: bytes) -> None:
        """It will not answer any more."""
        for ticket in [ticket for ticket, waiting in self._open.items() if worker_id in waiting]:
            self._close(ticket, worker_id)
            self._tell(gcs.CensusPart(ticket=ticket, worker_id=worker_id))

    def _close(self, ticket: bytes, worker_id: bytes) -> None:
        waiting = self._open[ticket]
        del waiting[worker_id]
        if not waiting:
            del self._open[ticket]

    def _tell(self, part: gcs.CensusPart) -> None:
        self._node.tell_head(counted=part)

    def _living(self, now: float) -> list[gcs.WorkerRow]:
        node_id = self._node.node_id
        return [
            gcs.WorkerRow(
                address=pb.Address(node_id=node_id, worker_id=worker.worker_id), pid=worker.pid,
                is_driver=worker.state == DRIVER, is_alive=True, job_id=worker.job_id,
                started_ago_s=now - worker.registered_at,
            )
            for worker in self._node.pool.workers.values()
        ]  # fmt: skip

    def _ended(self, now: float) -> list[gcs.WorkerRow]:
        return [
            gcs.WorkerRow(
                address=end.failed.address, pid=end.failed.failure.pid, is_driver=end.failed.is_driver,
                job_id=end.failed.job_id, started_ago_s=now - end.started_at, ended_ago_s=now - end.at,
                end=end.failed.failure, intended=end.failed.intended, ended_by=end.ended_by,
            )
            for end in self._node.residents.ended
        ]  # fmt: skip


def merged(ended: Iterable[gcs.TaskRow], live: Iterable[gcs.TaskRow]) -> list[gcs.TaskRow]:
    """One row per attempt, oldest first: its end if that was reported, else what owner and worker tell."""
    attempts = {(row.task_id, row.attempt): row for row in ended}
    for row in live:
        key = (row.task_id, row.attempt)
        known = attempts.get(key)
        if known is None:
            attempts[key] = row
        elif known.state == "RUNNING":
            _complete(known, row)
        elif row.state == "RUNNING" and known.state not in ("FINISHED", "FAILED"):
            _complete(row, known)
            attempts[key] = row
    return sorted(attempts.values(), key=lambda row: row.submitted_at or row.started_at)


def _complete(running: gcs.TaskRow, owned: gcs.TaskRow) -> None:
    """Who runs a task knows where and since when, its owner the rest."""
    running.name = owned.name
    running.parent_task_id = owned.parent_task_id
    running.submitted_at = owned.submitted_at
    running.dependencies.extend(owned.dependencies)
