"""The raylet's shell: one event loop around `core.node.Node`.

::

    clients (unix socket) ─┐                    ┌─▶ clients
    GCS, other raylets ────┼─▶ Node ─▶ out ─────┼─▶ GCS, other raylets (links)
    zygote, pidfds ────────┤   (drained once    ├─▶ zygote (start, stop)
    store, spill, fetches ─┘    per turn)       └─▶ store, spill files, fetches (`objects`)

Everything runs on the loop's thread, but file I/O of spilling, which uses the loop's executor.
The store record of a client is reaped when its *process* has ended (pidfd, or the zygote's
report), never on the end of its connection alone: a living process may still read its views.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from miniray import _native
from miniray._proto import common_pb2 as common
from miniray._proto import raylet_pb2, worker_pb2
from miniray.core.contract import HEAD, Send
from miniray.core.environments import Result
from miniray.core.node import Node
from miniray.core.node_effects import (
    STORE_FD,
    CloseFd,
    ConnectWorkers,
    DeleteObjects,
    DropClient,
    DropSpilled,
    ForgetPeer,
    LookAtProcess,
    Notice,
    RestoreObject,
    SpillObjects,
    StartFetch,
    StartWorker,
    StopFetch,
    StopNode,
    StopWorker,
    SurveyStore,
    ToClient,
    to_client,
)
from miniray.runtime import agent
from miniray.runtime.access import Access
from miniray.runtime.clients import Client, ClientEvents, ClientServer
from miniray.runtime.environments import Environments
from miniray.runtime.logs import Logs, without_marks
from miniray.runtime.node_store import NodeStore
from miniray.runtime.objects import Objects
from miniray.runtime.own_code import without_entrance
from miniray.runtime.upkeep import Upkeep
from miniray.runtime.workers import (
    CUT_OFF,
    KILLED,
    WorkerEvents,
    WorkerProcesses,
    WorkerSpec,
    describe_exit,
)

log = logging.getLogger(__name__)

LOST_SOCKET_GRACE_S = 0.5
"""A worker whose connection ended gets so long to end by itself; then it is killed."""


class HeadPort(Protocol):
    """The link to the GCS, in this process or over gRPC."""

    def send(self, message: Any) -> None:
        """Queue one NodeMessage."""


class PeersPort(Protocol):
    """The links to other raylets."""

    def send(self, node_id: bytes, message: Any) -> None:
        """Queue one PeerMessage."""

    def forget(self, node_id: bytes) -> None:
        """The peer is dead."""


class NoPeers:
    """The peers of a local session: there are none."""

    def send(self, node_id: bytes, message: Any) -> None:
        """Drop the message: its addressee cannot exist."""

    def forget(self, node_id: bytes) -> None:
        """Nothing to forget."""


@dataclass(slots=True)
class Process:
    """One registered client process."""

    client: Client
    client_slot: int
    startup_token: bytes = b""
    pidfd: int = -1
    gone: bool = False
    """The node was told of its end; only the store record is left to reap."""
    cut_off: bool = False
    """Its connection ended while it lived, so it was killed."""


class Raylet:
    """See the module head. Made on a running loop; `start` when the links are set."""

    def __init__(self, node: Node, store: _native.Store, zygote: Any, *, session_dir: str,
                 token: str | Access, socket_path: str, nice: int, spill_dir: str,
                 on_stop: Callable[[str, bool], None] = lambda reason, failed: None) -> None:
        self.node = node
        self._store = NodeStore(store)
        self.head: HeadPort | None = None
        self.peers: PeersPort = NoPeers()
        self.connect_port: Callable[[ConnectWorkers], None] = lambda effect: None
        """Dials for two workers; `connection_made` if it succeeds."""
        self._on_stop = on_stop
        self._loop = asyncio.get_running_loop()
        self._processes: dict[bytes, Process] = {}
        self._by_token: dict[bytes, bytes] = {}
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self.access = Access.of(token)
        spec = WorkerSpec(session_dir, socket_path, self.access, node.node_id, nice)
        self._workers = WorkerProcesses(zygote, spec, WorkerEvents(
            self._worker_ended, self._zygote_lost, self._zygote_ready, self._worker_started))
        self._clients = ClientServer(socket_path, self.access, ClientEvents(
            self._register, self._message, self._connection_ended, self._congested))
        self.environments = Environments(
            session_dir, node.info.host, self._workers, node.bridge.ask, self.turn)
        self.objects = Objects(store, node, spill_dir, self.turn)
        self._logs = Logs(self._lines_read, self._title_of, node.info.host)
        self._upkeep = Upkeep(node, store, self._logs, self._pid_of, self.turn)
        self._effects: dict[type, Callable[[Any], None]] = {
            Send: self._do_send, ToClient: self._do_to_client, CloseFd: lambda e: os.close(e.fd),
            DropClient: self._do_drop_client, StartWorker: self._do_start_worker,
            StopWorker: self._do_stop_worker, SurveyStore: self._do_survey,
            DeleteObjects: self._do_delete, SpillObjects: self.objects.spill,
            RestoreObject: self.objects.restore, DropSpilled: self.objects.drop_spilled,
            StartFetch: self.objects.start_fetch, StopFetch: self.objects.stop_fetch,
            ForgetPeer: lambda e: self.peers.forget(e.node_id),
            ConnectWorkers: self._do_connect_workers,
            Notice: lambda e: log.warning("%s", e.text), LookAtProcess: self._do_look,
            StopNode: lambda e: self._on_stop(e.reason, e.failed),
        }  # fmt: skip

    def start(self) -> None:
        """Introduce the node to the GCS. `head` must be set."""
        assert self.head is not None
        self.node.started(self._loop.time())
        self.turn()

    def fence(self, silent_s: float) -> None:
        """The GCS gives this node up when it is silent for so long: see `runtime.fence`."""
        self._workers.fence(silent_s)

    def close(self) -> None:
        """End everything below this node; the zygote kills the workers."""
        if self._stopped:
            return
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        self._upkeep.close()
        self._logs.close()
        self._clients.close()
        self.objects.close()
        self._workers.close()
        for process in self._processes.values():
            self._unwatch(process)

    # ---- turns ----

    def turn(self) -> None:
        """Something was fed to the node: carry out its effects at the end of this loop turn."""
        if not self._scheduled and not self._stopped:
            self._scheduled = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._scheduled = False
        out = self.node.out
        at = 0
        while at < len(out) and not self._stopped:  # effects may feed the node and add more
            effect = out[at]
            at += 1
            try:
                self._effects[type(effect)](effect)
            except Exception:
                log.exception("effect %s could not be carried out", type(effect).__name__)
        del out[:at]
        if not self._stopped:
            self._clients.flush()
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self.node.next_deadline()
        if deadline is not None and not self._stopped:
            self._timer = self._loop.call_at(deadline, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.node.tick(self._loop.time())
        self.turn()

    # ---- messages ----

    def head_message(self, message: Any) -> None:
        """From the link to the GCS."""
        self.node.head_message(self._loop.time(), message)
        self.turn()

    def head_restarted(self, undelivered: Iterable[Any] = ()) -> None:
        """The GCS has a new incarnation, which never saw `undelivered`."""
        self.node.head_restarted(self._loop.time(), undelivered)
        self.turn()

    def peer_message(self, node_id: bytes, message: Any) -> None:
        """From the link to another raylet."""
        self.node.peer_message(self._loop.time(), node_id, message)
        self.turn()

    def peer_restarted(self, node_id: bytes) -> None:
        """Another raylet has started afresh: all that was there is gone."""
        self.node.peer_restarted(self._loop.time(), node_id)
        self.turn()

    def connection_came(self, hello: raylet_pb2.ChannelHello, fd: int, encrypted: bool = False) -> None:
        """A worker of another node has dialled one of ours; `fd` is this end."""
        self.node.connection_came(self._loop.time(), hello, fd, encrypted)
        self.turn()

    def connection_made(self, wanted: ConnectWorkers, fd: int, encrypted: bool = False) -> None:
        """Our client's connection to a worker of another node."""
        source = common.Address(node_id=wanted.node_id, worker_id=wanted.target_worker_id)
        offer = worker_pb2.ChannelOffer(
            source=source, connection=True, encrypted=encrypted, dialled=True)
        self._do_to_client(to_client(wanted.worker_id, fd, channel_offer=offer))
        self._clients.flush()

    def _register(self, client: Client, register: worker_pb2.Register) -> None:
        try:
            slot = self._store.open_client(client.worker_id)
        except Exception as error:
            failure = common.Failure(kind=common.UNAVAILABLE, message=f"this node is full: {error}")
            self._clients.send(client, worker_pb2.ToWorker(
                registered=worker_pb2.Registered(failure=failure)))
            self._clients.drop(client)
            self._clients.flush()
            return
        process = Process(client, slot, register.startup_token)
        self._processes[client.worker_id] = process
        if self.node.pool.token_known(register.startup_token) and not register.is_driver:
            self._by_token[register.startup_token] = client.worker_id
        else:
            self._watch(process)
        self.node.worker_registered(self._loop.time(), client.worker_id, client.pid, slot, register)
        self.turn()

    def _message(self, client: Client, message: worker_pb2.ToRaylet, fd: int | None) -> None:
        if message.WhichOneof("body") == "exiting" and client.worker_id not in self._by_token.values():
            self._logs.read_all(to_the_end=True)  # what a driver's tasks have printed precedes its goodbye
        self.node.worker_message(self._loop.time(), client.worker_id, message, fd)
        self.turn()

    def _congested(self, client: Client, congested: bool) -> None:
        self.node.relay.client_congested(client.worker_id, congested)
        self.turn()

    # ---- the end of processes ----

    def _watch(self, process: Process) -> None:
        """Drivers are not our children: their end is seen through a pidfd."""
        fd = agent.pidfd(process.client.pid)
        if fd is None:
            self._loop.call_soon(self._driver_ended, process)
            return
        process.pidfd = fd
        self._loop.add_reader(fd, self._driver_ended, process)

    def _unwatch(self, process: Process) -> None:
        if process.pidfd >= 0:
            self._loop.remove_reader(process.pidfd)
            os.close(process.pidfd)
            process.pidfd = -1

    def _driver_ended(self, process: Process) -> None:
        self._unwatch(process)
        self._tell_exit(process, f"driver (pid {process.client.pid}) has ended", "", "")
        self._reap(process)

    def _connection_ended(self, client: Client) -> None:
        process = self._processes.get(client.worker_id)
        if process is None:
            return
        if process.startup_token in self._by_token:
            self._loop.call_later(LOST_SOCKET_GRACE_S, self._end_disconnected, process)
        else:  # a driver that shut down lives on, with its views: its record stays for now
            self._tell_exit(process, f"driver (pid {client.pid}) has disconnected", "", "")

    def _end_disconnected(self, process: Process) -> None:
        if process.startup_token in self._by_token and not self._stopped:
            from miniray.runtime import process_look

            process.cut_off = process_look.lives(process.client.pid)
            self._workers.stop(process.startup_token, force=True)

    def _worker_ended(self, startup_token: bytes, pid: int, status: int, problem: str) -> None:
        self._logs.closed(startup_token)
        self.environments.released(startup_token)
        worker_id = self._by_token.pop(startup_token, None)
        tail = agent.last_words(self._workers.log_path(startup_token, "err"))
        tail = without_entrance(without_marks(tail))
        if worker_id is None:
            message, detail = describe_exit("a new worker", pid, status, problem)
            kind = common.WORKER_DIED if pid else common.RUNTIME_ENV_FAILED
            self.node.worker_start_failed(self._loop.time(), startup_token, common.Failure(
                kind=kind, message=message, exit_detail=detail, stderr_tail=tail))
            self.turn()
            return
        process = self._processes[worker_id]
        name = f"worker {worker_id.hex()[:8]}"
        message, detail = describe_exit(name, pid, status, problem)
        if process.cut_off and detail == KILLED:
            message, detail = f"{name} (pid {pid}) {CUT_OFF}", ""
        self._reap(process)
        self._tell_exit(process, message, detail, tail)

    def _tell_exit(self, process: Process, message: str, detail: str, tail: str) -> None:
        if process.gone:
            return
        process.gone = True
        self._clients.drop(process.client)
        self.node.worker_exited(self._loop.time(), process.client.worker_id, common.Failure(
            kind=common.WORKER_DIED, message=message, exit_detail=detail, stderr_tail=tail))
        self.turn()

    def _reap(self, process: Process) -> None:
        """Give back the pins and unsealed objects of a process that has ended."""
        self._processes.pop(process.client.worker_id, None)
        self._unwatch(process)
        self._store.reap_client(process.client_slot)

    def _worker_started(self, startup_token: bytes, pid: int) -> None:
        self._logs.opened(startup_token, pid, self._workers.log_path(startup_token, "out"),
                          self._workers.log_path(startup_token, "err"))

    def _lines_read(self, startup_token: bytes, batch: bytes) -> None:
        worker = self.node.pool.workers.get(self._by_token.get(startup_token, b""))
        if worker is not None and worker.job_id:
            self.node.lines_read(worker.job_id, batch)
            self.turn()

    def _title_of(self, startup_token: bytes) -> str:
        """What a worker runs, for the prefix of its lines."""
        worker = self.node.pool.workers.get(self._by_token.get(startup_token, b""))
        grant = self.node.leases.grants.get(worker.grant_id) if worker is not None else None
        return grant.cls.function_name if grant is not None else ""

    def _pid_of(self, worker_id: bytes) -> int:
        process = self._processes.get(worker_id)
        return process.client.pid if process is not None else 0

    def _zygote_lost(self) -> None:
        self._on_stop("its zygote has ended", True)

    def _zygote_ready(self, problems: list[str]) -> None:
        for problem in problems:
            log.warning("workers start without %s", problem)

    # ---- effects ----

    def _do_send(self, effect: Send) -> None:
        if effect.peer == HEAD:
            assert self.head is not None
            self.head.send(effect.message)
        else:
            self.peers.send(effect.peer, effect.message)

    def _do_to_client(self, effect: ToClient) -> None:
        process = self._processes.get(effect.worker_id)
        fd = effect.fd
        if process is None:
            if fd is not None and fd != STORE_FD:
                os.close(fd)
            return
        if fd == STORE_FD:
            fd = os.dup(self._store.native.fd)
        self._clients.send(process.client, effect.message, fd)

    def _do_connect_workers(self, effect: ConnectWorkers) -> None:
        self.connect_port(effect)

    def _do_drop_client(self, effect: DropClient) -> None:
        process = self._processes.get(effect.worker_id)
        if process is not None:
            self._clients.drop(process.client)

    def _do_start_worker(self, effect: StartWorker) -> None:
        token = effect.startup_token

        def prepared(made: Result | None, problem: str) -> None:
            if made is None:
                self._worker_ended(token, 0, 256, problem)
            else:
                self._workers.start(token, effect.job_id, effect.runtime_env, made)

        self.environments.prepare(token, effect.job_id, effect.runtime_env, prepared)

    def _do_stop_worker(self, effect: StopWorker) -> None:
        startup_token = effect.startup_token
        if effect.worker_id:
            process = self._processes.get(effect.worker_id)
            startup_token = process.startup_token if process is not None else b""
        if startup_token and self.environments.withdraw(startup_token):
            self._worker_ended(startup_token, 0, 256, "it was not wanted any more")
        elif startup_token:
            self._workers.stop(startup_token, effect.force)

    def _do_look(self, effect: LookAtProcess) -> None:
        from miniray.runtime import process_look

        def seen(state: str, stack: str) -> None:
            self.node.process_seen(effect.ticket, effect.worker_id, state, stack)
            self.turn()

        process_look.look(self._loop, effect.pid, effect.stack, seen)

    def _do_delete(self, effect: DeleteObjects) -> None:
        self._store.delete(effect.object_ids)
        self.objects.deleted(effect)

    def _do_survey(self, effect: SurveyStore) -> None:
        self.node.store_surveyed(self._loop.time(), self._store.survey())
