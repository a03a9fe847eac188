"""The GCS's shell: one event loop around `core.head.Head`, its storage and its nodes' links.

::

    streams of raylets (rpc) ─┐                 ┌─▶ storage: rows of the turn, one batch
    a raylet in this process ─┼─▶ Head ─▶ out ──┤        (writer thread; the next batch gathers)
    unary calls (rpc) ────────┤                 └─▶ then, in order: messages, answers
    timers, probes ───────────┘

A turn: feed what arrived, tick if due, take `out`. Effects that stand behind a `Persist` are
carried out when its row is durable; while the writer works, later turns gather, so one fsync
serves them all. A head that cannot write must not go on: `on_fatal` is called once.

Two forms: `GcsShell.local()` for a raylet in the same process (`join`; no storage, no gRPC), and
`GcsShell.open(storage)` behind the gRPC server of `runtime.rpc_server` (`serve`, `call`). A node whose
stream breaks is probed at its address: refused connections mean that its raylet is gone.
Everything runs on the loop's thread except `Storage.apply`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from miniray import config
from miniray._proto import gcs_pb2 as gcs
from miniray.core.contract import Persist, Send
from miniray.core.head import Answer, Head, HeadOptions, WrongTables
from miniray.core.link import STREAM, Link
from miniray.core.members import Timing
from miniray.runtime.links import HeadLink, LinkEnd, LinkEvents, Stream
from miniray.runtime.storage import Change, NoStorage, Storage, StorageError, wrong_tables

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

log = logging.getLogger(__name__)

CONGESTED_BYTES = 16 << 20
"""Publications for a node wait while more than this is queued for it."""

CLAIM_CHECK_S = 1.0
"""How often a head on a shared storage sees whether another one has taken it over."""

PROBE_EVERY_S = 0.5
PROBE_TIMEOUT_S = 1.0

_EPOCH_SHIFT = 24
"""A link's incarnation is the epoch and, below it, a count of links: it always grows."""


class GcsShell:
    """See the module head. Made on a running loop."""

    def __init__(
        self, head: Head, storage: Storage, on_fatal: Callable[[StorageError], None] | None = None
    ) -> None:
        """`head` must be restored; use `local` or `open`."""
        self.head = head
        self._storage = storage
        self._on_fatal = on_fatal
        self._loop = asyncio.get_running_loop()
        self._writer = _writer_thread() if storage.is_blocking else None
        self._writing = False
        self._effects: list[Any] = []
        self._turn_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._ends: dict[bytes, LinkEnd | LocalEnd] = {}
        self._links_made = 0
        self._congested: dict[bytes, None] = {}
        self._probes: dict[bytes, asyncio.Task[None]] = {}
        self._answers: dict[int, asyncio.Future[gcs.ControlReply]] = {}
        self._next_ticket = 1
        self._waiters: list[asyncio.Future[None]] = []
        self._closed = False
        self.on_stream_lost: Callable[[], None] = lambda: None
        for node_id in head.members.living:
            self._probe(node_id)  # nodes of the storage: some may have gone while the head was away
        self._schedule_turn()
        if self._writer is not None:
            self._loop.call_later(CLAIM_CHECK_S, self._check_claim)

    @classmethod
    def local(cls) -> GcsShell:
        """For `init()` without a cluster: one raylet in this process, nothing is kept."""
        return cls.open(NoStorage())

    @classmethod
    def open(
        cls,
        storage: Storage,
        *,
        version: str = "",
        tables_are_kept: bool = False,
        on_fatal: Callable[[StorageError], None] | None = None,
    ) -> GcsShell:
        """Claim the storage, restore the head from it. Blocks; raises StorageError.

        `tables_are_kept`: nobody empties the storage; nodes of another cluster mean that it is the wrong one.
        """
        epoch = storage.claim()
        timing = Timing(config.get("node_silent_s"), config.get("node_refused_s"))
        now = asyncio.get_running_loop().time()
        options = HeadOptions(
            epoch=epoch,
            wall_offset=time.time() - now,
            timing=timing,
            task_events_kept=config.get("task_events_kept"),
            config=config.overrides(),
            version=version,
            tables_are_kept=tables_are_kept,
        )
        head = Head(Random(os.urandom(8)), options)
        head.restore(now, storage.load())
        return cls(head, storage, on_fatal)

    # ---- raylets

    def join(self, node_id: bytes, events: LinkEvents) -> HeadLink:
        """The link of a raylet in this process; callbacks run on this loop, never inside `send`."""
        end = LocalEnd(self, node_id, events)
        self._ends[node_id] = end
        self._stimulus(self.head.node_connected, node_id)
        return end

    async def serve(self, node_id: bytes, stream: Stream) -> None:
        """A raylet's stream, until it ends; raises StreamEnded."""
        end = self._ends.get(node_id)
        if not isinstance(end, LinkEnd):
            end = self._ends[node_id] = self._new_end(node_id)
        probe = self._probes.pop(node_id, None)
        if probe is not None:
            probe.cancel()
        self._stimulus(self.head.node_connected, node_id)
        self._set_congested(node_id, False)
        try:
            await end.serve(stream)
        finally:
            if not end.is_up and not self._closed:
                self._stream_lost(node_id)

    def _new_end(self, node_id: bytes) -> LinkEnd:
        self._links_made += 1
        incarnation = (self.head.options.epoch << _EPOCH_SHIFT) + self._links_made
        events = LinkEvents(lambda message: self._stimulus(self.head.node_message, node_id, message))
        return LinkEnd(Link(incarnation, gcs.Packet, STREAM, connected=False), events)

    def _stream_lost(self, node_id: bytes) -> None:
        self._stimulus(self.head.node_disconnected, node_id, False)
        self._set_congested(node_id, True)
        self.on_stream_lost()
        if node_id in self.head.members.living:
            self._probe(node_id)

    def _probe(self, node_id: bytes) -> None:
        """See whether the node's address still answers, until the node is back or dead."""
        info = self.head.members.living[node_id].info
        if info.host and info.port and node_id not in self._probes:
            self._probes[node_id] = self._loop.create_task(self._keep_probing(node_id, info.host, info.port))

    async def _keep_probing(self, node_id: bytes, host: str, port: int) -> None:
        while node_id in self.head.members.living:
            try:
                connecting = asyncio.open_connection(host, port)
                _, writer = await asyncio.wait_for(connecting, PROBE_TIMEOUT_S)
                writer.close()
            except ConnectionRefusedError:
                self._stimulus(self.head.node_disconnected, node_id, True)
            except (OSError, asyncio.TimeoutError):
                pass  # silent: the heartbeats' deadline decides
            await asyncio.sleep(PROBE_EVERY_S)
        self._probes.pop(node_id, None)

    def has_node(self, node_id: bytes) -> bool:
        """Whether it is a living member: one that was cut off comes back with what it knew."""
        return node_id in self.head.members.living

    def has_port(self, host: str, port: int) -> bool:
        """Whether a living node has announced this port."""
        living = self.head.members.living.values()
        return port > 0 and any(
            m.info.host == host and port in (m.info.port, m.info.data_port) for m in living)

    # ---- single requests

    async def call(self, request: gcs.ControlRequest) -> gcs.ControlReply:
        """One request from outside the nodes' streams."""
        ticket = self._next_ticket
        self._next_ticket += 1
        answer: asyncio.Future[gcs.ControlReply] = self._loop.create_future()
        self._answers[ticket] = answer
        self._stimulus(self.head.request, request, ticket)
        try:
            return await answer
        finally:
            self._answers.pop(ticket, None)  # whoever asked may have gone

    # ---- for the head's keeper of secrets

    def persist(self, table: str, key: bytes, value: bytes) -> None:
        """A row of the shell's own; `drained` says when it is durable."""
        self.head.out.append(Persist(table, key, value))
        self._schedule_turn()

    def tell_nodes(self, message: gcs.NodeMessage) -> None:
        """The same message to every living node."""
        for node_id in self.head.members.living:
            self.head.out.append(Send(node_id, message))
        self._schedule_turn()

    # ---- turns

    def _stimulus(self, method: Callable[..., None], *args: Any) -> None:
        """Feed the machine. Its bug is logged and costs that one message, not the cluster."""
        if self._closed:
            return
        try:
            method(self._loop.time(), *args)
        except Exception:
            log.exception("%s failed", getattr(method, "__name__", method))
        self._schedule_turn()

    def _schedule_turn(self) -> None:
        if not self._turn_scheduled:
            self._turn_scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_scheduled = False
        if self._closed:
            return
        now = self._loop.time()
        due = self.head.next_deadline()
        if due is not None and due <= now:
            try:
                self.head.tick(now)
            except Exception:
                log.exception("tick failed")
            due = self.head.next_deadline()
        effects, self.head.out = self.head.out, []
        self._effects.extend(effects)
        self._flush()
        self._look_after_links()
        self._arm(due, now)
        self._wake_waiters()

    def _arm(self, due: float | None, now: float) -> None:
        """Wake up when the machine wants to."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._congested:
            due = min(due or now + 0.1, now + 0.1)
        if due is not None:
            self._timer = self._loop.call_at(max(due, now + 0.001), self._turn)

    # ---- effects

    def _flush(self) -> None:
        """Carry out what has gathered, behind its rows."""
        if self._writing or not self._effects:
            return
        effects, self._effects = self._effects, []
        rows = [(e.table, e.key, e.value) for e in effects if type(e) is Persist]
        if not rows:
            self._carry_out(effects)
        elif self._writer is None:
            try:
                self._storage.apply(rows)
            except StorageError as error:
                self._fail(error)
                return
            self._carry_out(effects)
        else:
            self._write(self._writer, rows, effects)

    def _write(self, writer: ThreadPoolExecutor, rows: list[Change], effects: list[Any]) -> None:
        self._writing = True
        written = self._loop.run_in_executor(writer, self._storage.apply, rows)
        written.add_done_callback(lambda future: self._written(future, effects))

    def _check_claim(self) -> None:
        """An empty batch fails when another head has taken over: then reads would be stale, too."""
        if self._closed or self._writer is None:
            return
        if not self._writing:
            self._write(self._writer, [], [])
        self._loop.call_later(CLAIM_CHECK_S, self._check_claim)

    def _written(self, future: asyncio.Future[None], effects: list[Any]) -> None:
        self._writing = False
        if self._closed:
            future.cancelled() or future.exception()
            return
        error = future.exception()
        if error is not None:
            self._fail(error if isinstance(error, StorageError) else StorageError(repr(error)))
            return
        self._carry_out(effects)
        self._flush()
        self._wake_waiters()

    def _fail(self, error: StorageError) -> None:
        """Nothing may be acknowledged any more: stop."""
        log.error("the head ends: %s", error)
        self.close()
        if self._on_fatal is not None:
            self._on_fatal(error)

    def _carry_out(self, effects: list[Any]) -> None:
        for effect in effects:
            kind = type(effect)
            if kind is Send:
                end = self._ends.get(effect.peer)
                if isinstance(end, LinkEnd):
                    end.send(effect.message)
                    if end.link.backlog_bytes > CONGESTED_BYTES:
                        self._set_congested(effect.peer, True)
                elif end is not None:
                    end.send_to_node(effect.message)
            elif kind is Answer:
                waiting = self._answers.pop(effect.ticket, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(effect.reply)
            elif kind is WrongTables:
                self._fail(wrong_tables(effect.hostname, effect.node_id))
                return

    def _look_after_links(self) -> None:
        """Go on with nodes that have caught up; forget the links of dead ones."""
        for node_id in list(self._congested):
            end = self._ends.get(node_id)
            if isinstance(end, LinkEnd) and end.is_up and end.link.backlog_bytes <= CONGESTED_BYTES // 2:
                self._set_congested(node_id, False)
        living = self.head.members.living
        if len(self._ends) <= len(living):
            return
        for node_id, end in list(self._ends.items()):
            if node_id not in living and isinstance(end, LinkEnd) and not end.is_up:
                del self._ends[node_id]
                self._congested.pop(node_id, None)
                end.close()

    def _set_congested(self, node_id: bytes, congested: bool) -> None:
        if congested == (node_id in self._congested):
            return
        if congested:
            self._congested[node_id] = None
        else:
            del self._congested[node_id]
        self._stimulus(self.head.node_congested, node_id, congested)

    # ---- end

    def close(self) -> None:
        """Stop at once: what is not yet durable is lost, and was not acknowledged."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for probe in self._probes.values():
            probe.cancel()
        for end in self._ends.values():
            end.close()
        for answer in self._answers.values():
            answer.cancel()
        self._wake_waiters()
        if self._writer is not None:
            self._writer.submit(self._storage.close)
            self._writer.shutdown(wait=True)
        else:
            self._storage.close()

    async def drained(self) -> None:
        """Wait until everything that has gathered is durable and carried out."""
        while (self._writing or self._effects or self._turn_scheduled) and not self._closed:
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def _wake_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class LocalEnd:
    """The link between the GCS and a raylet in one process: two queues on one loop."""

    def __init__(self, shell: GcsShell, node_id: bytes, events: LinkEvents) -> None:
        self._shell = shell
        self._node_id = node_id
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._to_head: list[Any] = []
        self._to_node: list[Any] = []
        self._scheduled = False
        self._closed = False

    def send(self, message: Any) -> None:
        """From the raylet (the `HeadLink` port)."""
        self._to_head.append(message)
        self._schedule()

    def send_to_node(self, message: Any) -> None:
        """From the GCS."""
        self._to_node.append(message)
        self._schedule()

    def close(self) -> None:
        """Nothing passes any more."""
        self._closed = True

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._pass_on)

    def _pass_on(self) -> None:
        """Hand over what has gathered; answers to it take the next turn."""
        self._scheduled = False
        to_head, self._to_head = self._to_head, []
        to_node, self._to_node = self._to_node, []
        for message in to_head:
            if not self._closed:
                self._shell._stimulus(self._shell.head.node_message, self._node_id, message)
        for message in to_node:
            if self._closed:
                return
            try:
                self._events.on_message(message)
            except Exception:
                log.exception("a message from the GCS could not be handled")


def _writer_thread() -> ThreadPoolExecutor:
    """The thread of a storage that blocks; a local session has none, and does not load the module."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(1, "gcs-storage")
