"""Questions of people, passed on to the processes of this node, and what those say.

::

    GCS ─ Inquiry ─▶ raylet ─ Inquiry ─▶ every client it concerns
    GCS ◀─ Findings ─┘    ◀── Finding ──┘     (whoever is silent at the deadline is looked at instead)

A process that does not answer is an answer, too: it is stopped, or it holds its interpreter lock in
a long native call; the shell looks at it from outside (`LookAtProcess`). To a question about an object
or task the raylet adds what only it knows: pulls, spilled copies, room that is waited for.

Pure; part of `core.node.Node`. Nothing here costs anything until somebody asks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from miniray._proto import common_pb2 as common
from miniray._proto import gcs_pb2 as gcs
from miniray.core import ids
from miniray.core.node_effects import LookAtProcess, to_client
from miniray.core.pool import DRIVER, Worker

if TYPE_CHECKING:
    from miniray.core.node import Node

OPEN_INQUIRIES = 64
LOOK_S = 2.0
"""A look from outside takes no longer."""


@dataclass(slots=True)
class Open:
    """One question that not all have answered yet."""

    inquiry: gcs.Inquiry
    deadline: float
    waiting: dict[bytes, None] = field(default_factory=dict)
    findings: list[gcs.Finding] = field(default_factory=list)
    looking: bool = False


class Inquiries:
    """See the module head."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.open: dict[bytes, Open] = {}

    def asked(self, now: float, inquiry: gcs.Inquiry) -> None:
        """The GCS asks; each concerned client is asked in turn."""
        if inquiry.ticket in self.open:
            return
        entry = Open(inquiry, now + max(0.1, inquiry.within_s))
        for worker in self.node.pool.workers.values():
            if _concerns(inquiry, worker):
                entry.waiting[worker.worker_id] = None
                self.node.out.append(to_client(worker.worker_id, inquiry=inquiry))
        if inquiry.kind == gcs.Inquiry.EXPLAIN:
            entry.findings.extend(self._own(now, inquiry.key))
        self.open[inquiry.ticket] = entry
        if len(self.open) > OPEN_INQUIRIES:
            del self.open[next(iter(self.open))]
        self._end_if_done(inquiry.ticket)

    def answered(self, worker: Worker, finding: gcs.Finding) -> None:
        """A client has looked."""
        entry = self.open.get(finding.ticket)
        if entry is None or entry.waiting.pop(worker.worker_id, True) is not None:
            return
        entry.findings.append(self._signed(worker, finding))
        self._end_if_done(finding.ticket)

    def process_seen(self, ticket: bytes, worker_id: bytes, state: str, stack: str) -> None:
        """Answer to `LookAtProcess`: how a silent process is."""
        entry = self.open.get(ticket)
        worker = self.node.pool.workers.get(worker_id)
        if entry is None or entry.waiting.pop(worker_id, True) is not None:
            return
        if worker is not None:
            finding = gcs.Finding(silent=state, stack=stack)
            entry.findings.append(self._signed(worker, finding))
        self._end_if_done(ticket)

    def client_gone(self, worker_id: bytes) -> None:
        """It will not answer any more."""
        for ticket, entry in list(self.open.items()):
            if entry.waiting.pop(worker_id, True) is None:
                self._end_if_done(ticket)

    def _signed(self, worker: Worker, finding: gcs.Finding) -> gcs.Finding:
        """With what the raylet knows of who says it."""
        finding.address.node_id, finding.address.worker_id = self.node.node_id, worker.worker_id
        finding.pid = worker.pid
        if not finding.title:
            finding.title = "driver" if worker.state == DRIVER else "worker"
        if finding.silent and worker.current_task and not finding.running:
            finding.running.append(worker.current_task)
        return finding

    def _end_if_done(self, ticket: bytes) -> None:
        entry = self.open[ticket]
        if not entry.waiting:
            del self.open[ticket]
            self.node.tell_head(findings=gcs.Findings(ticket=ticket, findings=entry.findings))

    def next_deadline(self) -> float | None:
        """When the silent ones are looked at."""
        return min((entry.deadline for entry in self.open.values()), default=None)

    def tick(self, now: float) -> None:
        """Look at those that have not answered in time."""
        for ticket, entry in list(self.open.items()):
            if entry.deadline > now:
                continue
            if entry.looking:
                for worker_id in list(entry.waiting):
                    self.process_seen(ticket, worker_id, "it could not be looked at", "")
                continue
            entry.looking = True
            entry.deadline = now + LOOK_S
            stack = entry.inquiry.kind == gcs.Inquiry.STACK
            for worker_id in entry.waiting:
                worker = self.node.pool.workers[worker_id]
                self.node.out.append(LookAtProcess(ticket, worker_id, worker.pid, stack))

    # ---- what the raylet itself knows

    def _own(self, now: float, key: bytes) -> list[gcs.Finding]:
        if len(key) == ids.OBJECT_ID_SIZE:
            kind, links = "object", self.node.transfer.told(now, key) + self.node.memory.told(key)
        else:
            kind, links = "actor", self.node.hosting.told(now, key)
        if not links:
            return []
        address = common.Address(node_id=self.node.node_id)
        told = gcs.Explanation(kind=kind, role="node", chain=links)
        return [gcs.Finding(address=address, title="raylet", explanations=[told])]

    def check(self) -> None:
        """Every open question waits for somebody who lives, and is bounded in time."""
        for entry in self.open.values():
            assert entry.waiting, "an inquiry waits for nobody"


def _concerns(inquiry: gcs.Inquiry, worker: Worker) -> bool:
    if inquiry.kind == gcs.Inquiry.STACK and inquiry.key:
        return worker.worker_id.startswith(inquiry.key)
    return not inquiry.job_id or inquiry.job_id in (worker.job_id, worker.assigned_job)
