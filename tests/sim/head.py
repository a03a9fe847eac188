"""The head of the simulated cluster: the real `Head` machine, its links, and a disk that survives.

A turn writes all its rows before anything is sent. A crash loses the machine, the links and, if it
comes in the middle of a turn, that turn's rows or its messages; the disk keeps what was written.
A restart is `Head.restore` under the next epoch.
"""

from __future__ import annotations

from random import Random
from typing import Any

from miniray._proto import gcs_pb2 as gcs
from miniray.core.contract import HEAD, Persist, Send
from miniray.core.head import Head, HeadOptions

from . import checkers
from .clocks import Clocks
from .network import LinkEnd, Network
from .world import Timer

PROBE_EVERY_S = 0.5
WALL_OFFSET_S = 1.7e9


class SimHead:
    """See the module head. `head` is None while it is down."""

    def __init__(self, clocks: Clocks, network: Network, check_every: int) -> None:
        self._clocks = clocks
        self.world = clocks.another()
        self.network = network
        self.check_every = check_every
        self.rows: dict[tuple[str, bytes], bytes] = {}
        self.head: Head | None = None
        self.epoch = 0
        self.wall_offset_s = WALL_OFFSET_S
        self.crash_in_turn = ""
        """"rows": the next turn that writes loses its rows; "messages": only its messages."""
        self._ends: dict[bytes, LinkEnd] = {}
        self._links_made = 0
        self._timer = Timer(self.world, self._tick)
        self._stimuli = 0

    # ---- life

    def start(self) -> None:
        """Come up, with what the disk has."""
        if self.epoch:  # on another machine, or on this one booted again
            self.world = self._clocks.another()
            self._timer = Timer(self.world, self._tick)
        self.epoch += 1
        self._links_made = 0
        head = Head(Random(self.world.rng.getrandbits(64)), HeadOptions(self.epoch, self.wall_offset_s))
        head.restore(self.world.now, [(table, key, value) for (table, key), value in self.rows.items()])
        checkers.rows_are_known(head, self.rows)
        self.head = head
        self.network.attach(HEAD, self._packet)
        self.world.note("head", f"up, epoch {self.epoch}, {len(self.rows)} rows")
        self._turn()
        self._probe(self.epoch)

    def crash(self, why: str = "") -> None:
        """kill -9."""
        if self.head is None:
            return
        self.world.note("head", f"CRASH {why}".rstrip())
        self.head = None
        self.network.detach(HEAD)
        for end in self._ends.values():
            end.close()
        self._ends.clear()
        self._timer.set(None)

    def clock_jumped(self, seconds: float) -> None:
        """Somebody has set the clock of its machine."""
        self.wall_offset_s += seconds
        if self.head is not None:
            self.head.desk.wall_offset = self.wall_offset_s

    @property
    def is_up(self) -> bool:
        """Whether the process runs."""
        return self.head is not None

    # ---- stimuli

    def _packet(self, node_id: bytes, packet: Any) -> None:
        assert self.head is not None
        end = self._ends.get(node_id)
        if end is None:
            end = self._ends[node_id] = self._new_end(node_id)
            self.head.node_connected(self.world.now, node_id)
        end.received(packet)
        self._turn()

    def _new_end(self, node_id: bytes) -> LinkEnd:
        self._links_made += 1
        incarnation = (self.epoch << 24) + self._links_made
        return LinkEnd(
            self.network, HEAD, node_id, incarnation, gcs.Packet,
            lambda message: self._message(node_id, message), lambda undelivered: None, self.world,
        )  # fmt: skip

    def _message(self, node_id: bytes, message: gcs.NodeMessage) -> None:
        if self.head is None:
            return
        kind = message.WhichOneof("body")
        if kind != "heartbeat":
            inner = message.request.WhichOneof("body") if kind == "request" else ""
            self.world.note("head", f"<- {self.world.name(node_id)} {kind} {inner}".rstrip())
        self.head.node_message(self.world.now, node_id, message)
        self._turn()

    def _probe(self, epoch: int) -> None:
        """Nodes whose address refuses connections are known to be gone, as `runtime.gcs` finds out."""
        if self.head is None or self.epoch != epoch:
            return
        for node_id in list(self.head.members.living):
            if not self.network.is_up(node_id) and node_id not in self.network.silent:
                self.head.node_disconnected(self.world.now, node_id, True)
        self._turn()
        self.world.after(PROBE_EVERY_S, self._probe, epoch)

    def _tick(self) -> None:
        if self.head is not None:
            self.head.tick(self.world.now)
            self._turn()

    # ---- effects

    def turn(self) -> None:
        """Carry out what a request from outside the nodes has decided."""
        self._turn()

    def _turn(self) -> None:
        head = self.head
        if head is None:
            return
        self._stimuli += 1
        if self._stimuli % self.check_every == 0:
            head.check()
        effects, head.out = head.out, []
        rows = [effect for effect in effects if type(effect) is Persist]
        if rows and self.crash_in_turn == "rows":
            self.crash("before its rows were written")
            return
        for row in rows:
            if row.value is None:
                self.rows.pop((row.table, row.key), None)
            else:
                self.rows[(row.table, row.key)] = row.value
        if rows and self.crash_in_turn == "messages":
            self.crash("after its rows were written, before anything was sent")
            return
        for effect in effects:
            if type(effect) is Send:
                self._send(effect.peer, effect.message)
        self._timer.set(head.next_deadline())

    def _send(self, node_id: bytes, message: gcs.NodeMessage) -> None:
        end = self._ends.get(node_id)
        if end is None:
            return  # it will register again when it connects
        kind = message.WhichOneof("body")
        if kind != "view":
            self.world.note("head", f"-> {self.world.name(node_id)} {self._describe(kind, message)}")
        end.send(message)

    def _describe(self, kind: str | None, message: gcs.NodeMessage) -> str:
        name = self.world.name
        if kind == "publication":
            publication = message.publication
            state = f" state {publication.actor.state}" if publication.HasField("actor") else ""
            return f"publication {publication.channel} {name(publication.key)}{state}"
        if kind == "create_actor":
            actor = message.create_actor
            return f"create_actor {name(actor.spec.actor_id)} attempt {actor.attempt}"
        if kind == "kill_worker":
            kill = message.kill_worker
            return f"kill_worker {name(kill.worker_id or kill.actor_id)}: {kill.reason}"
        if kind == "bundle_request":
            request = message.bundle_request
            step = gcs.BundleRequest.Step.Name(request.step)
            indices = [bundle.index for bundle in request.bundles]
            return f"bundles {step} {name(request.placement_group_id)} {indices}"
        return kind or ""
