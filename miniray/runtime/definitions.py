"""What a template needs to be called in this session: its pickled definition and its lane.

A function travels to each worker once per channel and is a number from then on. Definitions are
pickled on the thread that first calls the function, so what cannot be pickled fails there.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from miniray._proto import common_pb2 as pb
from miniray._proto import worker_pb2 as wire
from miniray.core.submission import Lane, LeaseWanted, places
from miniray.core.tasks import MethodTemplate, TaskTemplate
from miniray.runtime import values

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker


class Bound:
    """A TaskTemplate in one session."""

    __slots__ = ("worker", "lane", "definition")

    def __init__(self, worker: CoreWorker, template: TaskTemplate) -> None:
        self.worker = worker
        body = values.serialize_function(template.function)
        about = {
            "name": template.name,
            "max_calls": template.max_calls,
            "backpressure": template.generator_backpressure,
        }
        self.definition = pickle.dumps((about, body), 5)
        strategy = (
            template.strategy.SerializeToString(deterministic=True) if template.strategy is not None else b""
        )
        key = (tuple(sorted(template.resources.items())), strategy, template.runtime_env, template.priority,
               template.max_retries == 0)
        with worker.lock:
            self.lane = worker.owner.submission.lane(key, None)
            if self.lane.spec is None:
                self.lane.spec = scheduling_class(worker, template)
                self.lane.spreads = self.lane.spec.strategy.spread


def scheduling_class(worker: CoreWorker, template: Any) -> pb.SchedulingClass:
    """What the raylet is asked for, from a task or actor template."""
    out = pb.SchedulingClass(
        runtime_env=template.runtime_env,
        job_id=worker.job_id,
        function_name=getattr(template, "name", "") or getattr(template, "class_name", ""),
        priority=template.priority,
        final=getattr(template, "max_retries", None) == 0,
    )
    out.resources.amounts.update(template.resources)
    if template.strategy is not None:
        out.strategy.CopyFrom(template.strategy)
    return out


def method_definition(template: MethodTemplate) -> bytes:
    """What an actor's process needs to know of a method, once per channel."""
    about = {
        "name": template.name,
        "title": getattr(template, "label", ""),
        "group": template.concurrency_group,
        "backpressure": template.generator_backpressure,
    }
    return pickle.dumps((about, b""), 5)


def lease_request(worker: CoreWorker, wanted: LeaseWanted) -> wire.LeaseRequest:
    """The message for a lease that the machine wants."""
    lane: Lane = wanted.lane
    request = wire.LeaseRequest(request_id=wanted.request_id, backlog=len(lane.queue))
    request.requester.node_id, request.requester.worker_id = worker.address
    request.scheduling_class.CopyFrom(lane.spec)
    request.scheduling_class.function_name = wanted.record.name
    for node_id, size in places(wanted.record).items():
        request.arguments.add(node_id=node_id, bytes=size)
    return request
