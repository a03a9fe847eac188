"""The loop between the head, which knows what waits, `core.scaling`, which decides, and a provider.

A thread of its own asks the head every `interval_s`. Nodes are known to the provider by a *handle*, which
they carry as a label; those without one are looked at and never stopped. A node is idle when nothing of it
is taken (objects in its store included), no actor lives on it and no driver is attached. It is drained
before its provider is told to stop it, so what came to it meanwhile goes on elsewhere. A node that died, or
that somebody else had drained, is let go of as well.

What is known of nodes is read off the head each time, so this may be started anew at any time. A head that
has just started lists the nodes it awaits without figures: they are taken for empty, and never for idle.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core import resources as res
from miniray.core.scaling import Decision, NodeState, NodeType, Options, Scaler, Wanted
from miniray.runtime import rpc, sessions

log = logging.getLogger("miniray.autoscaler")

HANDLE_LABEL = "miniray.io/node-handle"
TYPE_LABEL = "miniray.io/node-type"

SETTLE_S = 1.0
"""Two heartbeats: figures of different nodes are no further apart."""

PAUSE_MAX_S = 60.0
"""A kind that cannot be started is tried again after a second, later after so long at most."""


@dataclass(frozen=True)
class NodeKind:
    """A kind of node that can be started. `resources` as in `init`, "CPU" and "GPU" among them."""

    name: str
    resources: Mapping[str, float]
    min_nodes: int = 0
    max_nodes: int = 10
    labels: Mapping[str, str] = field(default_factory=dict)


class NodeProvider(Protocol):
    """What starts and stops machines. Both may take their time; they run on the autoscaler's thread."""

    def start(self, kind: NodeKind, handle: str) -> None:
        """Have a node join that offers `kind.resources` and carries `kind.labels` and the two labels of
        this module. Returns before it has joined; an exception says that it will not."""

    def stop(self, handle: str) -> None:
        """The node has been drained, or never joined: let go of what was started under this handle."""


class Autoscaler:
    """See the module head. A context manager; `stop` leaves the nodes to the provider."""

    def __init__(
        self,
        provider: NodeProvider,
        kinds: Iterable[NodeKind],
        address: str,
        *,
        token: str = "",
        max_nodes: int = 100,
        idle_s: float = 300.0,
        speed: float = 1.0,
        start_within_s: float = 600.0,
        interval_s: float = 1.0,
    ) -> None:
        """`address` is HOST:PORT of the head; the token is that of a session here if it is not given."""
        self._provider = provider
        self._kinds = {kind.name: kind for kind in kinds}
        self._address = address
        self._token = token or next((s.token() for s in sessions.living() if s.address == address), "")
        types = tuple(
            NodeType(kind.name, res.from_floats(dict(kind.resources)), kind.min_nodes, kind.max_nodes)
            for kind in self._kinds.values()
        )
        self._scaler = Scaler(Options(types, max_nodes, idle_s, speed, SETTLE_S, start_within_s))
        self._interval_s = interval_s
        self._made = 0
        self._first = int(time.time())
        self._met: dict[str, bytes] = {}
        """Nodes of ours that were alive at some look, and that the provider has not let go of."""
        self._leaving: dict[str, bytes] = {}
        """Those of them that are drained, or dead."""
        self._pause_s: dict[str, float] = {}
        """Of kinds that could not be started the last time, until they are tried again."""
        self._again_at: dict[str, float] = {}
        self._said: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="autoscaler", daemon=True)
        self.last = Decision()
        """The latest decision, for people."""

    def __enter__(self) -> Autoscaler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._interval_s):
            try:
                self.look()
            except (rpc.RpcError, OSError) as error:
                log.warning("the head cannot be asked what waits: %s", error)
            except Exception:
                log.exception("a look at the cluster failed; the next one may not")

    # ---- one look

    def look(self) -> Decision:
        """Ask, decide, carry out."""
        status = self._ask("status", gcs.StatusQuery()).status
        busy = self._inhabited()
        alive = [node for node in status.nodes if node.state != pb.NODE_DEAD and not node.takes_no_work]
        states = [
            NodeState(
                node.labels.get(HANDLE_LABEL, ""), node.labels.get(TYPE_LABEL, ""),
                res.from_map(node.available if node.available.amounts else node.total),
                node.node_id not in busy and node.available == node.total,
            )
            for node in alive if node.state == pb.NODE_ALIVE
        ]  # fmt: skip
        self._look_for_leavers(status.nodes)
        self._let_go({node.labels.get(HANDLE_LABEL, "") for node in alive})
        self.last = decision = self._scaler.decide(time.monotonic(), states, map(_wanted, status.demand))
        self._say(decision.refused)
        for name, count in decision.start.items():
            for _ in range(count):
                if time.monotonic() >= self._again_at.get(name, 0.0):
                    self._start(self._kinds[name])
        by_handle = {node.labels.get(HANDLE_LABEL, ""): node.node_id for node in alive}
        for handle in decision.stop:
            self._leaving[handle] = by_handle[handle]
            log.info("node %s has been idle: it is drained", handle)
            self._ask("drain", gcs.DrainRequest(
                node_id=by_handle[handle], deadline_s=60.0, reason="it was idle, says the autoscaler"))
        return decision

    def _start(self, kind: NodeKind) -> None:
        self._made += 1
        handle = f"{kind.name}-{self._first}-{self._made}"
        log.info("node %s is started", handle)
        try:
            self._provider.start(kind, handle)
        except Exception as error:
            pause = self._pause_s[kind.name] = min(self._pause_s.get(kind.name, 0.5) * 2, PAUSE_MAX_S)
            self._again_at[kind.name] = time.monotonic() + pause
            log.warning("node %s could not be started, again in %g s: %s", handle, pause, error)
            return
        self._pause_s.pop(kind.name, None)
        self._scaler.started(time.monotonic(), handle, kind.name)

    def _look_for_leavers(self, nodes: Iterable[pb.NodeInfo]) -> None:
        """Who is drained already, and who has died since it was met."""
        for node in nodes:
            handle = node.labels.get(HANDLE_LABEL, "")
            if node.labels.get(TYPE_LABEL, "") not in self._kinds or not handle:
                continue
            if node.state != pb.NODE_DEAD:
                self._met[handle] = node.node_id
            if node.state == pb.NODE_DRAINING or (
                node.state == pb.NODE_DEAD and self._met.get(handle) == node.node_id
            ):
                self._leaving[handle] = node.node_id

    def _let_go(self, alive: set[str]) -> None:
        """Stop those that have left the cluster."""
        for handle in [handle for handle in self._leaving if handle not in alive]:
            try:
                self._provider.stop(handle)
            except Exception as error:
                log.warning("node %s has left and could not be let go, tried again: %s", handle, error)
                continue
            del self._leaving[handle]
            self._met.pop(handle, None)
            log.info("node %s is gone", handle)

    def _say(self, refused: list[str]) -> None:
        """What no node can be started for, once."""
        for reason in refused:
            if reason not in self._said:
                log.warning("nothing is started: %s", reason)
        self._said = refused

    def _inhabited(self) -> set[bytes]:
        """Nodes on which an actor lives or a driver is attached."""
        actors = self._ask("actor_list", gcs.ActorList(all_namespaces=True, alive_only=True)).actors.actors
        jobs = self._ask("job_list", gcs.JobList()).jobs.jobs
        running = [job.driver.node_id for job in jobs if job.state == pb.JOB_RUNNING]
        return {*(actor.address.node_id for actor in actors), *running}

    def _ask(self, field_name: str, message: Any) -> gcs.ControlReply:
        request = gcs.ControlRequest(**{field_name: message})
        return asyncio.run(rpc.call_head(self._address, self._token, request))


def _wanted(demand: gcs.Demand) -> Wanted:
    """What the head publishes as pending, as the scaler reads it."""
    if not demand.bundles:
        return Wanted((res.from_map(demand.resources),), demand.count)
    bundles = tuple(res.from_map(bundle) for bundle in demand.bundles)
    return Wanted(
        bundles, demand.count, together=demand.strategy == pb.STRICT_PACK,
        apart=demand.strategy == pb.STRICT_SPREAD,
    )  # fmt: skip
