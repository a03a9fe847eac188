"""A worker or driver process: the real `Owner` machine in the shell that `runtime.worker` is.

What the product does with threads and a lock is done here in turns: a message, a frame or a step
of a program feeds the machine, then `end_turn` carries its effects out. Whatever blocks is a
coroutine (`yield` a `Future` or seconds).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray._proto import worker_pb2 as wire
from miniray.core import ids
from miniray.core.calls import ActorClient, ActorInDoubt, HandleGone
from miniray.core.directory import FAILED, FREED, INLINE, PENDING, STORED, UNKNOWN, Address, ObjectEntry
from miniray.core.owner import Ask, Owner
from miniray.core.ownership import BorrowAdd, BorrowDrop, Free, Watch
from miniray.core.submission import LeaseDone, LeaseUnwanted, LeaseWanted, Paused, places
from miniray.core.subscribers import News
from miniray.core.tasks import STREAMING, TaskRecord

from .actors import Actors
from .executor import Executor, Run
from .peers import Peers
from .streams import SimStream
from .values import INLINE_LIMIT, Arguments, Failed, Inside, Loaded, Ref, Value
from .world import Coroutine, Future, Timer

if TYPE_CHECKING:
    from .cluster import Cluster
    from .node import SimNode

BLOCKED_AFTER_S = 0.002


class Waiter:
    """Somebody who waits for `remaining` things."""

    def __init__(self, remaining: int) -> None:
        self.remaining = remaining
        self.future = Future()
        if remaining <= 0:
            self.future.set()

    def notify(self, entry: ObjectEntry | None) -> None:
        """One of them happened."""
        self.remaining -= 1
        if self.remaining <= 0:
            self.future.set()


class Asker:
    """A borrower that waits for one of our objects."""

    def __init__(self, worker: SimWorker, address: Address) -> None:
        self._worker = worker
        self._address = address

    def notify(self, entry: ObjectEntry) -> None:
        """It is ready."""
        self._worker.send_answer(self._address, entry)


LAST_FRAMES_S = 1.0


def cancellation(record: TaskRecord) -> pb.Failure:
    """The error of a task that was given up."""
    return pb.Failure(kind=pb.TASK_CANCELLED, message="cancelled")


class SimWorker:
    """See the module head. A driver has no executor."""

    def __init__(self, cluster: Cluster, node: SimNode, worker_id: bytes, name: str, is_driver: bool) -> None:
        self.cluster = cluster
        self.world = node.world
        self.node = node
        self.id = worker_id
        self.name = name
        self.address: Address = (node.id, worker_id)
        self.alive = True
        self.job_id = b""
        self.ready = Future()
        self.owner = Owner(self.address, cluster.lineage_bytes)
        self.owner.cancelled_error = cancellation
        self.peers = Peers(self)
        self.actors = Actors(self)
        self.executor = None if is_driver else Executor(self)
        self._timer = Timer(self.world, self._tick)
        self._put_task = b""
        self._puts = 0
        self._next_request = 0
        self._replies: dict[int, Future] = {}
        self._stimuli = 0
        self._turning = False
        self._departing: dict[Address, pb.Failure] = {}

    # ---- life

    @property
    def actor(self) -> pb.ActorSpec | None:
        """The actor that lives in this process."""
        return self.executor.spec if self.executor is not None else None

    def register(self, token: bytes) -> None:
        """The process has started."""
        self.tell_raylet(wire.ToRaylet(register=wire.Register(startup_token=token, pid=1)))

    def exit(self, how: str) -> None:
        """The process ends, on purpose or by a signal."""
        if self.alive:
            self.die()
            self.node.process_ended(self, how)

    def leave(self, reason: str) -> None:
        """End on purpose, and say so."""
        if self.alive:
            self.tell_raylet(wire.ToRaylet(exiting=wire.Exiting(reason=reason, intended=True)))
            self.exit(f"has left: {reason}")

    def die(self) -> None:
        """Nothing of it goes on from here."""
        if not self.alive:
            return
        self.world.note(self.name, "ends")
        self.alive = False
        self._timer.set(None)
        self.peers.close()
        self.cluster.oracle.worker_ended(self)

    def _adopt(self, job_id: bytes) -> None:
        self.job_id = job_id
        self._put_task = self.new_task_id(f"{self.name}.puts")

    # ---- ids and references

    def new_task_id(self, name: str, actor: bytes | None = None) -> bytes:
        """A fresh TaskID."""
        number = self.cluster.next_number()
        return self.world.call_it(ids.task_id(number.to_bytes(8, "little"), self.job_id, actor), name)

    def restored(self, inside: Inside, source: Address) -> Ref:
        """A reference arrived in a message or a value; `source` keeps the object till its owner knows us."""
        directory = self.owner.directory
        is_mine = inside.owner == self.address
        entry = directory.find(inside.oid)
        if entry is None:
            entry = directory.know(inside.oid, None if is_mine else inside.owner)
            if is_mine:
                self.cluster.oracle.came_home_freed(self, inside.oid, source)
                failure = pb.Failure(kind=pb.OBJECT_LOST, message="it was freed")
                self.owner.complete(self.world.now, entry, FAILED, failure)
        if inside.actor:
            self.actors.client(inside.actor)
        return Ref(self, entry, inside.actor, source)

    def released(self, entry: ObjectEntry) -> None:
        """A reference of this process died."""
        if self.alive:
            entry.local -= 1
            self.owner.ownership.released([entry])
            self.end_turn()

    # ---- tasks

    def submit(
        self,
        template: Any,
        arguments: Arguments,
        parent: bytes,
        lane: Any = None,
        client: ActorClient | None = None,
        retries: int = 0,
        name: str = "",
    ) -> list[Ref]:
        """Submit a task, or with `client` an actor call; returns its references."""
        tid = self.new_task_id(name, client.id if client is not None else None)
        is_stream = template.num_returns == STREAMING
        count = 1 if is_stream else template.num_returns
        entries = [self.owner.directory.own(ids.object_id(tid, i + 1)) for i in range(count)]
        refs = [Ref(self, entry) for entry in entries]
        record = TaskRecord(
            tid, template, arguments, list(arguments.slots) or None, list(arguments.held) or None, entries,
            retries, lane, client, parent, self.world.now,
        )  # fmt: skip
        for entry in entries:
            entry.task = record
        if is_stream:
            record.stream = SimStream(self, record)
        self.cluster.oracle.task_submitted(self, record, retries)
        self.owner.submitted(self.world.now, record)
        self.end_turn()
        return refs

    def cancel(self, ref: Ref) -> None:
        """Give the task behind a reference up."""
        record: TaskRecord | None = ref.entry.task
        if record is None:
            return
        self.world.note(self.name, f"cancels {self.world.name(record.id)}")
        if not self.owner.cancelled(self.world.now, record, cancellation(record)):
            self.peers.send(record.remote.address, ("cancel", record.call))
        self.end_turn()

    # ---- objects

    def put(self, size: int, refs: list[Ref]) -> Coroutine:
        """Store a value of our own that contains `refs`; gives its reference."""
        self._puts += 1
        oid = ids.object_id(self._put_task, ids.PUT_INDEX + self._puts)
        value = Value(oid, size, tuple(ref.inside() for ref in refs))
        entry = self.owner.directory.own(oid)
        ref = Ref(self, entry)
        if refs:
            self.owner.ownership.contains(entry, [one.entry for one in refs])
        if size > INLINE_LIMIT:
            yield from self.store(oid, value, self.address)
            entry.more().locations[self.address[0]] = None
            self.owner.complete(self.world.now, entry, STORED, None, size)
        else:
            self.owner.complete(self.world.now, entry, INLINE, value, size)
        self.end_turn()
        return ref

    def store(self, oid: bytes, value: Value, owner: Address) -> Coroutine:
        """Create and seal an object in the node's store; waits for room."""
        while not self.node.put(oid, value, value.size, self.id):
            reply, number = self._expect()
            room = wire.MakeRoom(request_id=number, bytes=value.size, object_id=oid)
            self.tell_raylet(wire.ToRaylet(make_room=room))
            yield reply
        sealed = wire.ObjectSealed(object_id=oid, size=value.size)
        sealed.owner.node_id, sealed.owner.worker_id = owner
        self.tell_raylet(wire.ToRaylet(object_sealed=sealed))

    def get(self, refs: list[Ref], run: Run | None = None) -> Coroutine:
        """The values: a list of `Loaded` and `Failed`. `run` is the task that waits."""
        entries = [ref.entry for ref in refs]
        yield from self.await_entries([entry for entry in entries if not entry.ready], run)
        values = []
        for entry in entries:
            values.append((yield from self.read(entry, run)))
        return values

    def wait(self, refs: list[Ref], count: int, timeout_s: float, run: Run | None = None) -> Coroutine:
        """Wait until `count` are ready, or the time is over; gives those that are."""
        missing = [ref.entry for ref in refs if not ref.entry.ready]
        waiter = Waiter(count - (len(refs) - len(missing)))
        if not waiter.future.is_set:
            for entry in missing:
                self.owner.await_entry(entry, waiter)
            self.end_turn()
            self.world.after(timeout_s, waiter.future.set)
            yield from self.waiting(waiter.future, run)
            for entry in missing:
                if entry.waiters is not None and waiter in entry.waiters:
                    entry.waiters.remove(waiter)
        return [ref for ref in refs if ref.entry.ready]

    def await_entries(self, missing: list[ObjectEntry], run: Run | None) -> Coroutine:
        """Wait until all are ready."""
        waiter = Waiter(len(missing))
        for entry in missing:
            self.owner.await_entry(entry, waiter)
        self.end_turn()
        yield from self.waiting(waiter.future, run)

    def waiting(self, future: Future, run: Run | None) -> Coroutine:
        """Wait; a task that waits long gives its CPU and its queue back meanwhile."""
        if run is not None and not future.is_set:
            self.world.after(BLOCKED_AFTER_S, run.still_waits, future)
        value = yield future
        if run is not None:
            run.goes_on()
        return value

    def read(self, entry: ObjectEntry, run: Run | None) -> Coroutine:
        """The value of an entry, wherever it is: `Loaded` or `Failed`."""
        while True:
            assert entry.state != FREED, f"{entry} was freed under its reader"
            if entry.state in (PENDING, UNKNOWN):
                yield from self.await_entries([entry], run)
            elif entry.state == FAILED:
                return Failed(entry.value)
            elif entry.state == INLINE:
                return self.load(entry, entry.value)
            elif entry.id in self.node.store:
                return self.load(entry, self.node.store[entry.id].value)
            else:
                yield from self._pull(entry, run)

    def load(self, entry: ObjectEntry, value: Value) -> Loaded:
        refs = [self.restored(inside, entry.owner or self.address) for inside in value.inside]
        for ref in refs:
            if ref.entry.owner is not None:
                self.owner.ownership.borrow(ref.entry, entry)
        self.end_turn()
        return Loaded(value, refs)

    def _pull(self, entry: ObjectEntry, run: Run | None) -> Coroutine:
        reply, number = self._expect()
        message = wire.PullRequest(
            request_id=number, object_id=entry.id, locations=entry.locations, size=entry.size
        )
        message.owner.node_id, message.owner.worker_id = entry.owner or self.address
        self.tell_raylet(wire.ToRaylet(pull=message))
        answer = yield from self.waiting(reply, run)
        if answer.failure.kind and entry.state == STORED:
            nodes = list(answer.failed_nodes) or entry.locations
            if entry.owner is None:
                for node in nodes:
                    self.copy_lost(entry.id, node)
            else:
                entry.more().locations.clear()
                entry.state = PENDING
                *others, last = nodes or [bytes(28)]
                for node in others:
                    self.peers.send(entry.owner, ("lost", entry.id, node, False))
                self.peers.send(entry.owner, ("lost", entry.id, last, True))
            self.end_turn()

    def copy_lost(self, oid: bytes, node: bytes, teller: Address | None = None) -> None:
        """A copy that should be on `node` is not there: another one, or run its task again."""
        owner, now = self.owner, self.world.now
        if owner.location_removed(now, oid, node):
            entry = owner.directory.find(oid)
            assert entry is not None
            refusal = owner.rebuild(now, entry)
            what = "rebuilds" if refusal is None else f"for good: {refusal.reason}"
            self.world.note(self.name, f"{self.world.name(oid)} is lost, {what}")
            if refusal is not None:
                failure = pb.Failure(kind=pb.OBJECT_LOST, message=f"all copies lost: {refusal.reason}")
                owner.lost(entry, failure)
        if teller is not None:
            self.answer(teller, oid)

    def answer(self, asker: Address, oid: bytes) -> None:
        """A borrower asks for one of our objects."""
        entry = self.owner.directory.find(oid)
        if entry is None:
            self.cluster.oracle.asked_for_freed(self, oid, asker)
            entry = ObjectEntry(oid)
            entry.state = FAILED
            entry.value = pb.Failure(kind=pb.OBJECT_LOST, message="its owner has freed it")
        if entry.ready:
            self.send_answer(asker, entry)
        else:
            self.owner.await_entry(entry, Asker(self, asker))

    def send_answer(self, asker: Address, entry: ObjectEntry) -> None:
        """Tell a borrower what became of an object."""
        self.peers.send(asker, (
            "answer", entry.id, entry.state, entry.value, entry.size, tuple(entry.locations),
        ))  # fmt: skip

    # ---- turns

    def end_turn(self) -> None:
        """Carry out what the machine decided."""
        if not self.alive or self._turning:
            return
        self._turning = True
        out = self.owner.out
        at = 0
        while at < len(out):
            effect = out[at]
            at += 1
            if type(effect) is tuple:
                effect[0].notify(effect[1])
            else:
                _EFFECTS[type(effect)](self, effect)
        out.clear()
        self._turning = False
        self.peers.end_turn()
        self._stimuli += 1
        if self._stimuli % self.cluster.check_every == 0:
            self.owner.check()
        self._timer.set(self.owner.next_deadline())

    def _tick(self) -> None:
        if self.alive:
            self.owner.tick(self.world.now)
            self.end_turn()

    def _push(self, record: TaskRecord) -> None:
        if record.remote is not None:
            self.world.note(
                self.name,
                f"pushes {self.world.name(record.id)} to "
                f"{self.world.name(record.remote.address[1])} attempt {record.attempt}",
            )
            self.peers.push(record)

    def _lease_wanted(self, effect: LeaseWanted) -> None:
        lane = effect.lane
        request = wire.LeaseRequest(request_id=effect.request_id, backlog=len(lane.queue))
        request.requester.node_id, request.requester.worker_id = self.address
        request.scheduling_class.CopyFrom(lane.spec)
        for node_id, size in places(effect.record).items():
            request.arguments.add(node_id=node_id, bytes=size)
        self.tell_raylet(wire.ToRaylet(lease_request=request))

    def _lease_unwanted(self, effect: LeaseUnwanted) -> None:
        cancel = wire.LeaseCancel(request_id=effect.request_id)
        cancel.requester.node_id, cancel.requester.worker_id = self.address
        self.tell_raylet(wire.ToRaylet(lease_cancel=cancel))

    def _lease_done(self, effect: LeaseDone) -> None:
        back = wire.LeaseReturn(lease_id=effect.lease_id, node_id=effect.remote.address[0])
        self.tell_raylet(wire.ToRaylet(lease_return=back))

    def _free(self, effect: Free) -> None:
        self.cluster.oracle.freed(self, effect.object_id)
        free = wire.FreeObjects(object_ids=[effect.object_id], node_ids=effect.nodes)
        self.tell_raylet(wire.ToRaylet(free_objects=free))

    def _borrow_add(self, effect: BorrowAdd) -> None:
        name = self.world.name
        self.world.note(self.name, f"enters {name(effect.borrower[1])} for {name(effect.object_id)}")
        self.peers.send(effect.owner, ("add", effect.object_id, effect.borrower))

    def _borrow_drop(self, effect: BorrowDrop) -> None:
        self.world.note(self.name, f"lets go of {self.world.name(effect.object_id)}")
        self.peers.send(effect.owner, ("drop", effect.object_id))

    def _watch(self, effect: Watch) -> None:
        watch = wire.WatchWorker()
        watch.address.node_id, watch.address.worker_id = effect.borrower
        self.tell_raylet(wire.ToRaylet(watch=watch))

    def _news(self, effect: News) -> None:
        news = wire.CopiesNews(
            object_id=effect.object_id, subscribers=effect.subscribers, added=effect.added,
            removed=effect.removed, is_nowhere=effect.is_nowhere, over=effect.over)  # fmt: skip
        self.tell_raylet(wire.ToRaylet(copies_news=news))

    def _handle_gone(self, effect: HandleGone) -> None:
        self.request("actor_handle_gone", gcs.ActorHandleGone(actor_id=effect.actor_id))

    # ---- the raylet

    def tell_raylet(self, message: wire.ToRaylet, carried: Any = None) -> None:
        """Send on the socket; `carried` is what a descriptor stands for."""
        process = self.node.processes.get(self.id)
        if process is not None and self.alive:
            process.to_raylet.write((message, carried))

    def request(self, field: str, message: Any) -> Future:
        """One control-plane request; gives its ControlReply."""
        reply, number = self._expect()
        control = gcs.ControlRequest(request_id=number, job_id=self.job_id)
        getattr(control, field).CopyFrom(message)
        getattr(control, field).SetInParent()
        self.tell_raylet(wire.ToRaylet(control=control))
        return reply

    def _expect(self) -> tuple[Future, int]:
        self._next_request += 1
        reply = self._replies[self._next_request] = Future()
        return reply, self._next_request

    def _answered(self, message: Any) -> None:
        self._replies.pop(message.request_id).set(message)

    def raylet_message(self, message: wire.ToWorker, carried: Any) -> None:
        """One message from the socket."""
        if not self.alive:
            return
        kind = message.WhichOneof("body")
        if carried is not None:
            assert kind == "channel_offer"
            source = message.channel_offer.source
            if message.channel_offer.connection:
                self.peers.connected_to((source.node_id, source.worker_id), carried)
            else:
                self.peers.offered((source.node_id, source.worker_id), carried)
        elif kind is not None:
            _MESSAGES[kind](self, getattr(message, kind))
        self.end_turn()

    def _registered(self, message: wire.Registered) -> None:
        if message.failure.kind:
            self.exit(f"was refused: {message.failure.message}")
            return
        if message.job_id:
            self._adopt(message.job_id)
        self.ready.set()

    def _assign_job(self, message: wire.AssignJob) -> None:
        self._adopt(message.job.job_id)

    def _lease_reply(self, message: wire.LeaseReply) -> None:
        submission, now = self.owner.submission, self.world.now
        if message.HasField("worker"):
            address = (message.worker.node_id, message.worker.worker_id)
            submission.lease_granted(now, message.request_id, message.lease_id, address)
        elif message.failure.kind:
            self.owner.lease_refused(now, message.request_id, message.failure)
        else:
            submission.lease_pending(message.request_id, message.pending_reason)

    def _lease_revoked(self, message: wire.LeaseRevoked) -> None:
        address = (message.worker.node_id, message.worker.worker_id)
        if message.failure.kind:
            self.gone(address, message.failure)
        else:
            self.owner.submission.lease_reclaimed(message.lease_id, address)

    def _relayed(self, message: wire.RelayBatch) -> None:
        self.peers.carried((message.source.node_id, message.source.worker_id), message.frames)

    def _worker_gone(self, message: wire.WorkerGone) -> None:
        self.gone((message.address.node_id, message.address.worker_id), message.failure)

    def _channel_refused(self, message: wire.ChannelRefused) -> None:
        self.gone((message.target.node_id, message.target.worker_id), message.failure)

    def gone(self, address: Address, failure: pb.Failure) -> None:
        """Another process has ended: its last frames first, also those that are still on a wire."""
        if failure.kind != pb.NODE_DIED and self.peers.is_connected(address):
            if address not in self._departing:
                self._departing[address] = failure
                self.world.after(LAST_FRAMES_S, self.departed, address)
            return
        self._strike_out(address, failure)

    def departed(self, address: Address) -> None:
        """The last wire to that process has ended, or has had its time."""
        failure = self._departing.pop(address, None)
        if failure is not None and self.alive:
            self._strike_out(address, failure)
            self.end_turn()

    def _strike_out(self, address: Address, failure: pb.Failure) -> None:
        self.peers.look(address)
        self.cluster.oracle.told_of_death(self, address)
        self.world.note(self.name, f"hears of the end of {self.world.name(address[1])}")
        self.owner.remote_gone(self.world.now, address, failure, replies_lost=failure.kind == pb.NODE_DIED)
        self.peers.gone(address)

    def _location(self, message: wire.LocationUpdate) -> None:
        if message.removed:
            self.copy_lost(message.object_id, message.node_id)
        else:
            self.owner.location_added(message.object_id, message.node_id)

    def _watch_copies(self, message: wire.WatchCopies) -> None:
        subscribers = self.owner.subscribers
        follow = subscribers.ended if message.ends else subscribers.subscribed
        follow(message.object_id, message.node_id)

    def _publication(self, message: gcs.Publication) -> None:
        if message.channel == "actor":
            self.actors.published(message)


_EFFECTS: dict[type, Any] = {
    TaskRecord: SimWorker._push,
    LeaseWanted: SimWorker._lease_wanted,
    LeaseUnwanted: SimWorker._lease_unwanted,
    LeaseDone: SimWorker._lease_done,
    Paused: lambda worker, e: None,     # its timer follows `next_deadline`
    Free: SimWorker._free,
    BorrowAdd: SimWorker._borrow_add,
    BorrowDrop: SimWorker._borrow_drop,
    Watch: SimWorker._watch,
    News: SimWorker._news,
    Ask: lambda worker, e: worker.peers.send(e.entry.owner, ("ask", e.entry.id)),
    HandleGone: SimWorker._handle_gone,
    ActorInDoubt: lambda worker, e: worker.actors.look_up(e.actor_id),
}

_MESSAGES: dict[str, Any] = {
    "registered": SimWorker._registered,
    "assign_job": SimWorker._assign_job,
    "lease_reply": SimWorker._lease_reply,
    "lease_revoked": SimWorker._lease_revoked,
    "relay": SimWorker._relayed,
    "worker_gone": SimWorker._worker_gone,
    "channel_refused": SimWorker._channel_refused,
    "location": SimWorker._location,
    "watch_copies": SimWorker._watch_copies,
    "publication": SimWorker._publication,
    "room": SimWorker._answered,
    "pull": SimWorker._answered,
    "control": SimWorker._answered,
    "start_actor": lambda worker, m: worker.executor.start_actor(m),
    "exit": lambda worker, m: worker.executor.exit_requested(m),
}
