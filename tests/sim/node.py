"""One node of the simulated cluster: the real `Node` machine, its processes and its store.

What `runtime.raylet` does with sockets, a zygote and shared memory is done here with pipes,
objects and a dict. A node's crash takes everything on it along; it never comes back under its id.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from miniray._proto import common_pb2 as common
from miniray._proto import gcs_pb2, raylet_pb2, worker_pb2
from miniray.core import ids, node_effects
from miniray.core.contract import HEAD, Send
from miniray.core.memory import NOBODY, Owner
from miniray.core.node import Node

from .copying import Copying
from .network import LinkEnd, Network, Pipe, Wire, WireEnd
from .world import Timer, Violation, World

if TYPE_CHECKING:
    from .worker import SimWorker

STORE_BYTES = 1 << 30
FORK_S = 0.004
EXIT_SEEN_S = 0.003
BYTES_PER_S = 1e9
LAST_WORDS_S = 0.1
UNREACHABLE_S = 1.5
"""How long a fetch takes to find out that its source does not answer."""


@dataclass(slots=True)
class Stored:
    """One object in a node's store."""

    value: Any
    size: int
    primary: bool
    creator: bytes
    making: int = 0
    """Copies of one making have the same bytes; those of another run of the same task may differ."""


class Process:
    """A client process as its raylet sees it: two pipes and what will be said of its end."""

    def __init__(self, node: SimNode, worker: SimWorker, token: bytes) -> None:
        self.worker = worker
        self.token = token
        self.to_raylet = Pipe(node.world)
        self.to_worker = Pipe(node.world)
        self.to_raylet.attach(lambda item: node.client_message(worker.id, *item))
        self.to_worker.attach(lambda item: worker.raylet_message(*item))


class SimNode:
    """See the module head. `make_worker(node, worker_id, name)` makes a process."""

    def __init__(
        self,
        world: World,
        network: Network,
        nodes: dict[bytes, SimNode],
        name: str,
        total: dict[str, int],
        make_worker: Callable[[SimNode, bytes, str], SimWorker],
        *,
        store_bytes: int = STORE_BYTES,
        check_every: int = 1,
    ) -> None:
        """`nodes` are all of the cluster, by id: where copies of objects come from."""
        self.world = world
        self.network = network
        self.nodes = nodes
        self.name = name
        self.id = world.id(ids.NODE_ID_SIZE, name)
        self.check_every = check_every
        self.is_up = True
        self.processes: dict[bytes, Process] = {}
        self.starting: dict[bytes, bool] = {}
        self.store: dict[bytes, Stored] = {}
        self.disk: dict[bytes, Stored] = {}
        self.store_bytes = store_bytes
        self.disk_s = 0.005
        """What writing or reading a spilled object takes."""
        self.disk_is_full = False
        self.forks_fail = False
        self._held_up: list[tuple[Callable[..., None], tuple[Any, ...]]] | None = None
        """What has reached the raylet while it is stopped."""
        self._make_worker = make_worker
        self._workers_made = 0
        self._descriptors: dict[int, Any] = {}
        self._descriptors_made = 10
        self._fetches: dict[bytes, int] = {}
        self._fetches_made = 0
        self._partly: dict[bytes, int] = {}
        """Objects of which some bytes are here: of which making."""
        self._ends: dict[bytes, LinkEnd] = {}
        self._links_made = 0
        self._stimuli = 0
        self._draining = False
        info = common.NodeInfo(node_id=self.id, node_name=name, host=name, port=1, hostname=name)
        info.total.amounts.update(total)
        self.node = Node(info, Random(world.rng.getrandbits(64)), store_bytes=store_bytes)
        self.copying = Copying(self)
        self._timer = Timer(world, self._tick)
        network.attach(self.id, self._packet)
        self.node.started(world.now)
        self._turn()

    # ---- life

    def crash(self, silent: bool) -> None:
        """The whole machine is gone; `silent`: its address does not even refuse connections."""
        self.world.note(self.name, "CRASH" + (" (silent)" if silent else ""))
        if silent:
            self.network.silent[self.id] = None
        self._down()

    def stop(self) -> None:
        """SIGSTOP of the raylet: its clock goes on, and it sees nothing of what happens."""
        if self._held_up is None:
            self._held_up = []
            for end in self._ends.values():
                end.stop()

    def go_on(self) -> None:
        """SIGCONT: all that has come is there at once."""
        held, self._held_up = self._held_up or [], None
        for end in self._ends.values():
            end.go_on()
        for call, arguments in held:
            if self.is_up:
                call(*arguments)

    @property
    def is_stopped(self) -> bool:
        """Between SIGSTOP and SIGCONT."""
        return self._held_up is not None

    def holds_up(self, call: Callable[..., None], *arguments: Any) -> bool:
        """True when the raylet is stopped: then it is called later."""
        if self._held_up is None:
            return False
        self._held_up.append((call, arguments))
        return True

    def _down(self) -> None:
        self.is_up = False
        self.network.detach(self.id)
        self._timer.set(None)
        for end in self._ends.values():
            end.close()
        for process in list(self.processes.values()):
            process.worker.die()
        self.processes.clear()
        self.copying.end()
        self.store.clear()
        self.disk.clear()

    def start_driver(self, worker: SimWorker) -> None:
        """A driver connects and introduces itself."""
        self.processes[worker.id] = Process(self, worker, b"")
        register = worker_pb2.Register(is_driver=True, pid=1)
        self.node.worker_registered(self.world.now, worker.id, 1, 1, register)
        self._turn()

    # ---- links

    def _link(self, peer: bytes) -> LinkEnd:
        end = self._ends.get(peer)
        if end is None:
            packet = gcs_pb2.Packet if peer == HEAD else raylet_pb2.PeerPacket
            on_message = self._head_message if peer == HEAD else (lambda m: self._peer_message(peer, m))
            on_reset = self._head_reset if peer == HEAD else (lambda undelivered: self._peer_reset(peer))
            self._links_made += 1
            end = self._ends[peer] = LinkEnd(
                self.network, self.id, peer, self._links_made, packet, on_message, on_reset, self.world
            )
        return end

    def _packet(self, source: bytes, packet: Any) -> None:
        if self.holds_up(self._packet, source, packet):
            return
        self._link(source).received(packet)

    def _head_message(self, message: gcs_pb2.NodeMessage) -> None:
        if self.is_up:
            self.node.head_message(self.world.now, message)
            self._turn()

    def _head_reset(self, undelivered: list[Any]) -> None:
        self.world.note(self.name, f"the head has started afresh, {len(undelivered)} messages undelivered")
        self.node.head_restarted(self.world.now)
        self._turn()

    def _peer_reset(self, peer: bytes) -> None:
        self.world.note(self.name, f"{self.world.name(peer)} has forgotten us")
        self.node.peer_restarted(self.world.now, peer)
        self._turn()

    def _peer_message(self, peer: bytes, message: raylet_pb2.PeerMessage) -> None:
        if self.is_up:
            self.node.peer_message(self.world.now, peer, message)
            self._turn()

    # ---- clients

    def client_message(self, worker_id: bytes, message: worker_pb2.ToRaylet, pipe: Pipe | None) -> None:
        """From a worker's or driver's socket; `pipe` is what a descriptor stands for."""
        if not self.is_up or self.holds_up(self.client_message, worker_id, message, pipe):
            return
        fd = self._descriptor(pipe) if pipe is not None else None
        if message.WhichOneof("body") == "register":
            process = self.processes.get(worker_id)
            if process is None:
                return  # it has ended while the raylet was stopped
            del self.starting[process.token]
            self.node.worker_registered(self.world.now, worker_id, 1, 1, message.register)
        else:
            self.node.worker_message(self.world.now, worker_id, message, fd)
        self._turn()

    def _descriptor(self, thing: Any) -> int:
        self._descriptors_made += 1
        self._descriptors[self._descriptors_made] = thing
        return self._descriptors_made

    def process_ended(self, worker: SimWorker, how: str) -> None:
        """A process of this node is gone: noticed a moment later, after its last words."""
        process = self.processes.pop(worker.id, None)
        if process is None or not self.is_up:
            return
        process.to_worker.break_()
        self.world.after(EXIT_SEEN_S * (0.5 + self.world.rng.random()), self._exit_seen, process, how)

    def _exit_seen(self, process: Process, how: str) -> None:
        if not self.is_up or self.holds_up(self._exit_seen, process, how):
            return
        process.to_raylet.read_all()
        failure = common.Failure(kind=common.WORKER_DIED, message=f"{process.worker.name} {how}")
        if process.token in self.starting:
            del self.starting[process.token]
            self.node.worker_start_failed(self.world.now, process.token, failure)
        else:
            self.node.worker_exited(self.world.now, process.worker.id, failure)
        self._turn()

    # ---- the store, as clients see it

    @property
    def used(self) -> int:
        """Bytes in the store."""
        return sum(item.size for item in self.store.values()) + self.copying.bytes

    def put(self, oid: bytes, value: Any, size: int, creator: bytes) -> bool:
        """Seal an object, or find that it exists, or is on its way here; False if there is no room."""
        if oid in self.store or oid in self.copying.landings:
            return True
        if self.used + size > self.store_bytes:
            return False
        self.store[oid] = Stored(value, size, True, creator, self.world.events)
        return True

    # ---- turns

    def _tick(self) -> None:
        if self.is_up and not self.holds_up(self._tick):
            self.node.tick(self.world.now)
            self._turn()

    def _turn(self) -> None:
        if self._draining:
            return  # an effect below has fed the machine: its loop goes on
        self._draining = True
        out = self.node.out
        at = 0
        while at < len(out) and self.is_up:
            effect = out[at]
            at += 1
            _EFFECTS[type(effect)](self, effect)
        del out[:at]
        self._draining = False
        if not self.is_up:
            return
        self._stimuli += 1
        if self._stimuli % self.check_every == 0:
            self.node.check()
        self._timer.set(self.node.next_deadline())

    # ---- effects

    def _send(self, effect: Send) -> None:
        if effect.peer != HEAD:
            kind = effect.message.WhichOneof("body")
            if kind != "relay":
                about = _about(self.world, kind, getattr(effect.message, kind))
                self.world.note(self.name, f"-> {self.world.name(effect.peer)} {kind} {about}".rstrip())
        self._link(effect.peer).send(effect.message)

    def _to_client(self, effect: node_effects.ToClient) -> None:
        process = self.processes.get(effect.worker_id)
        pipe = None
        if effect.fd is not None and effect.fd != node_effects.STORE_FD:
            pipe = self._descriptors.pop(effect.fd)
        if process is not None:
            process.to_worker.write((effect.message, pipe))
        elif pipe is not None:
            pipe.break_()

    def _close_fd(self, effect: node_effects.CloseFd) -> None:
        self._descriptors.pop(effect.fd).break_()

    def _connect_workers(self, effect: node_effects.ConnectWorkers) -> None:
        self.world.after(0.002 + self.world.rng.expovariate(500.0), self._dialled, effect)

    def _dialled(self, effect: node_effects.ConnectWorkers) -> None:
        other = self.nodes.get(effect.node_id)
        if not self.is_up or other is None or not self.network.reaches(self.id, effect.node_id):
            return  # the relay goes on
        near, far = Wire.between(self.network, self.id, other.id)
        hello = raylet_pb2.ChannelHello(target_worker_id=effect.target_worker_id)
        hello.source.node_id, hello.source.worker_id = self.id, effect.worker_id
        other.connection_came(hello, far)
        source = common.Address(node_id=effect.node_id, worker_id=effect.target_worker_id)
        offer = worker_pb2.ChannelOffer(source=source, connection=True)
        self._to_client(node_effects.to_client(effect.worker_id, self._descriptor(near), channel_offer=offer))

    def connection_came(self, hello: raylet_pb2.ChannelHello, end: WireEnd) -> None:
        """Another raylet has dialled this one for two workers."""
        if self.holds_up(self.connection_came, hello, end):
            return
        self.node.connection_came(self.world.now, hello, self._descriptor(end))
        self._turn()

    def _drop_client(self, effect: node_effects.DropClient) -> None:
        process = self.processes.get(effect.worker_id)
        if process is not None:
            self.world.after(0.001, process.worker.exit, "was disconnected")

    def _start_worker(self, effect: node_effects.StartWorker) -> None:
        self.starting[effect.startup_token] = True
        delay = FORK_S * (0.5 + self.world.rng.expovariate(1.0))
        self.world.after(delay, self._forked, effect.startup_token)

    def _forked(self, token: bytes) -> None:
        if not self.is_up or token not in self.starting or self.holds_up(self._forked, token):
            return
        if self.forks_fail:
            del self.starting[token]
            failure = common.Failure(kind=common.WORKER_DIED, message="no process could be made for it")
            self.node.worker_start_failed(self.world.now, token, failure)
            self._turn()
            return
        self._workers_made += 1
        name = f"{self.name}.w{self._workers_made}"
        worker_id = self.world.id(ids.WORKER_ID_SIZE, name)
        worker = self._make_worker(self, worker_id, name)
        self.processes[worker_id] = Process(self, worker, token)
        worker.register(token)

    def _stop_worker(self, effect: node_effects.StopWorker) -> None:
        token = effect.startup_token
        for process in list(self.processes.values()):
            if process.worker.id == effect.worker_id or (token and process.token == token):
                how = "was killed" if effect.force else "was told to end"
                process.worker.exit(how)
                return
        if token in self.starting:
            del self.starting[token]
            failure = common.Failure(kind=common.WORKER_DIED, message="was killed before it had started")
            self.node.worker_start_failed(self.world.now, token, failure)

    def _survey(self, effect: node_effects.SurveyStore) -> None:
        objects = [
            node_effects.StoredObject(oid, item.size, True, False, item.primary, False, item.creator)
            for oid, item in self.store.items()
        ]
        free = self.store_bytes - self.used
        self.node.store_surveyed(
            self.world.now, node_effects.Survey(self.store_bytes, self.used, free, objects)
        )

    def _delete(self, effect: node_effects.DeleteObjects) -> None:
        for oid in effect.object_ids:
            self.store.pop(oid, None)

    def _spill(self, effect: node_effects.SpillObjects) -> None:
        self.world.after(self.disk_s, self._spilled, effect)

    def _spilled(self, effect: node_effects.SpillObjects) -> None:
        if not self.is_up or self.holds_up(self._spilled, effect):
            return
        if self.disk_is_full:
            failure = common.Failure(kind=common.OUT_OF_DISK, message="the disk is full")
            self.node.objects_spilled(self.world.now, effect.batch, [], failure)
            self._turn()
            return
        written = [oid for oid in effect.object_ids if oid in self.store]
        for oid in written:
            self.disk[oid] = self.store.pop(oid)
        self.node.objects_spilled(self.world.now, effect.batch, written, None)
        self._turn()

    def _restore(self, effect: node_effects.RestoreObject) -> None:
        self.world.after(self.disk_s, self._restored, effect.object_id)

    def _restored(self, oid: bytes) -> None:
        if not self.is_up or self.holds_up(self._restored, oid):
            return
        item = self.disk.get(oid)
        failure = None
        if item is None:
            failure = common.Failure(kind=common.OBJECT_LOST, message="it is not on this disk")
        elif oid not in self.store:
            if self.used + item.size > self.store_bytes:
                failure = common.Failure(kind=common.STORE_FULL, message="the store is full")
            else:
                self.store[oid] = Stored(item.value, item.size, False, b"", item.making)
        self.node.object_restored(self.world.now, oid, failure)
        self._turn()

    def _drop_spilled(self, effect: node_effects.DropSpilled) -> None:
        for oid in effect.object_ids:
            self.disk.pop(oid, None)

    def unreachable_s(self) -> float:
        """How long it takes to find out that a node does not answer."""
        return UNREACHABLE_S * (0.5 + self.world.rng.random())

    def seal_copy(self, oid: bytes, item: Stored) -> None:
        """All bytes of a copy have come."""
        self.store[oid] = Stored(item.value, item.size, False, b"", item.making)

    def fetch_ended(self, oid: bytes, size: int, owner: Owner, failure: common.Failure | None,
                    elsewhere: list[bytes]) -> None:
        """A fetch of a large object is over."""
        self.node.fetch_ended(self.world.now, oid, size, owner, failure, elsewhere)
        self._turn()

    def _start_fetch(self, effect: node_effects.StartFetch) -> None:
        if self.copying.is_for(effect.object_id):
            self.copying.start(effect)
            return
        self._fetches_made += 1
        version = self._fetches[effect.object_id] = self._fetches_made
        if effect.fresh:
            self._partly.pop(effect.object_id, None)
        delay = 0.0005
        if effect.node_id != self.id and effect.object_id not in self.store:
            item = self._copy_at(effect.node_id, effect.object_id)
            delay = 0.002 + self.world.rng.random() * 0.01 + (item.size / BYTES_PER_S if item else 0)
            if not self.network.reaches(self.id, effect.node_id):
                delay = self.unreachable_s()
        self.world.after(delay, self._fetched, effect.object_id, effect.node_id, version)

    def _copy_at(self, node_id: bytes, oid: bytes) -> Stored | None:
        source = self.nodes[node_id]
        return source.store.get(oid) or source.disk.get(oid)

    def _fetched(self, oid: bytes, source_id: bytes, version: int) -> None:
        if not self.is_up or self._fetches.get(oid) != version:
            return
        if self.holds_up(self._fetched, oid, source_id, version):
            return
        del self._fetches[oid]
        failure, size, owner = None, 0, NOBODY
        if oid not in self.store:
            item = self._copy_at(source_id, oid)
            if source_id == self.id:
                failure = common.Failure(kind=common.NOT_FOUND, message="it is not in the store")
            elif not self.network.reaches(self.id, source_id):
                failure = common.Failure(kind=common.NODE_DIED, message="its source does not answer")
                if item is not None:
                    self._partly.setdefault(oid, item.making)
            elif item is None:
                failure = common.Failure(kind=common.NOT_FOUND, message="the copy is gone")
            elif self.used + item.size > self.store_bytes:
                size = item.size
                failure = common.Failure(kind=common.STORE_FULL, message="the store is full")
            else:
                held = self.nodes[source_id].node.memory.held.get(oid)
                owner = held.owner if held is not None else NOBODY
                size = item.size
                self.store[oid] = Stored(item.value, size, False, b"", item.making)
                if self._partly.pop(oid, item.making) != item.making:
                    raise Violation(f"{self.world.name(oid)}: bytes of two runs of its task put together")
        self.node.fetch_ended(self.world.now, oid, size, owner, failure, [])
        self._turn()

    def _stop_fetch(self, effect: node_effects.StopFetch) -> None:
        self.copying.stop(effect)
        self._fetches.pop(effect.object_id, None)
        if not effect.keep:
            self._partly.pop(effect.object_id, None)

    def _forget_peer(self, effect: node_effects.ForgetPeer) -> None:
        end = self._ends.pop(effect.node_id, None)
        if end is not None:
            end.close()

    def _notice(self, effect: node_effects.Notice) -> None:
        self.world.note(self.name, effect.text)

    def _stop_node(self, effect: node_effects.StopNode) -> None:
        """Its processes end at once; its last words are on their way for a moment."""
        self.world.note(self.name, f"ends: {effect.reason}")
        for process in list(self.processes.values()):
            process.worker.die()
        self.processes.clear()
        self.world.after(LAST_WORDS_S, self._down)


def _about(world: World, kind: str, message: Any) -> str:
    """What a message to another raylet is about, for the trace."""
    if kind in ("lease_request", "lease_reply", "lease_cancel"):
        text = f"{message.request_id} of {world.name(message.requester.worker_id)}"
        if kind == "lease_reply":
            outcome = message.failure.message or message.pending_reason
            text += (
                f": {world.name(message.worker.worker_id)} {message.lease_id}"
                if message.lease_id
                else f": {outcome}"
            )
        return text
    if kind == "lease_return":
        return str(message.lease_id)
    if kind == "worker_gone":
        return world.name(message.address.worker_id)
    if kind == "free_objects":
        return " ".join(world.name(oid) for oid in message.object_ids)
    return world.name(message.object_id) if kind == "location" else ""


_EFFECTS: dict[type, Callable[[SimNode, Any], None]] = {
    Send: SimNode._send,
    node_effects.ToClient: SimNode._to_client,
    node_effects.CloseFd: SimNode._close_fd,
    node_effects.ConnectWorkers: SimNode._connect_workers,
    node_effects.DropClient: SimNode._drop_client,
    node_effects.StartWorker: SimNode._start_worker,
    node_effects.StopWorker: SimNode._stop_worker,
    node_effects.SurveyStore: SimNode._survey,
    node_effects.DeleteObjects: SimNode._delete,
    node_effects.SpillObjects: SimNode._spill,
    node_effects.RestoreObject: SimNode._restore,
    node_effects.DropSpilled: SimNode._drop_spilled,
    node_effects.StartFetch: SimNode._start_fetch,
    node_effects.StopFetch: SimNode._stop_fetch,
    node_effects.Notice: SimNode._notice,
    node_effects.StopNode: SimNode._stop_node,
    node_effects.ForgetPeer: SimNode._forget_peer,
}
