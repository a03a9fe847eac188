"""Questions that the GCS passes on to the raylets, and the answers as they gather.

Whoever asks chooses a ticket and asks again with it until `asked` is False: that survives any loss on
the way and needs no memory at the asker's connection. Every raylet is asked once; one that has not
answered by the deadline is itself a finding. Pure; part of `core.head`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core import ids
from miniray.core.desk import short
from miniray.core.explain import explain, kept, merged

if TYPE_CHECKING:
    from miniray.core.head import Head

QUESTIONS_KEPT = 64
WITHIN_S = 1.0
"""Processes answer within this time unless the question says otherwise."""
WAY_S = 3.0
"""A raylet's answer may be so much later: it looks at who is silent."""


@dataclass(slots=True)
class Question:
    """One question under way, or answered a little while ago."""

    deadline: float
    waiting: dict[bytes, None] = field(default_factory=dict)
    findings: list[gcs.Finding] = field(default_factory=list)


class Questions:
    """See the module head."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._open: dict[bytes, Question] = {}

    def inquired(self, now: float, inquiry: gcs.Inquiry) -> gcs.Findings:
        """Ask all nodes, or say what has come so far."""
        question = self._open.get(inquiry.ticket)
        if question is None:
            inquiry.within_s = inquiry.within_s or WITHIN_S
            question = Question(now + inquiry.within_s + WAY_S)
            for node_id, member in self._head.members.living.items():
                if member.registered:
                    question.waiting[node_id] = None
                    self._head.desk.send(node_id, gcs.NodeMessage(inquiry=inquiry))
            self._open[inquiry.ticket] = question
            if len(self._open) > QUESTIONS_KEPT:
                del self._open[next(iter(self._open))]
        if question.waiting and now >= question.deadline:
            self._give_up(question)
        return gcs.Findings(
            ticket=inquiry.ticket, findings=question.findings, asked=bool(question.waiting))

    def _give_up(self, question: Question) -> None:
        for node_id in question.waiting:
            silent = f"its node, {short(node_id)}, has not answered"
            address = pb.Address(node_id=node_id)
            question.findings.append(gcs.Finding(address=address, title="raylet", silent=silent))
        question.waiting.clear()

    def found(self, node_id: bytes, findings: gcs.Findings) -> None:
        """A raylet has asked its processes."""
        question = self._open.get(findings.ticket)
        if question is not None and question.waiting.pop(node_id, True) is None:
            question.findings.extend(findings.findings)

    def node_died(self, node_id: bytes) -> None:
        """It will not answer."""
        for question in self._open.values():
            question.waiting.pop(node_id, None)

    def explained(self, now: float, query: gcs.ExplainQuery) -> gcs.Explanation:
        """What the GCS knows, and what the processes of the id's job know when they are asked."""
        own = explain(self._head, now, query.id)
        job_id = job_of(query.id)
        if not query.ticket or job_id not in self._head.jobs.running:
            return own
        inquiry = gcs.Inquiry(ticket=query.ticket, key=query.id, job_id=job_id, within_s=query.within_s)
        findings = self.inquired(now, inquiry)
        answer = merged(query.id, own, list(findings.findings))
        if answer.unsettled and answer.kind in ("task", "object"):
            answer.chain.extend(kept(self._head, answer.chain))
        answer.asked = findings.asked
        return answer

    def check(self) -> None:
        """Assert that what is kept is bounded."""
        assert len(self._open) <= QUESTIONS_KEPT


def job_of(key: bytes) -> bytes:
    """The job that a task, object or actor belongs to; b"" for any other id."""
    if len(key) == ids.OBJECT_ID_SIZE:
        key = ids.task_of_object(key)
    if len(key) == ids.ACTOR_ID_SIZE:
        return key[-ids.JOB_ID_SIZE :]
    return ids.job_of_task(key) if len(key) == ids.TASK_ID_SIZE else b""
