"""The worker pool of one node: which processes there are, whose they are, and who waits for one.

A *key* says what a worker is for: a job, a runtime environment and a use. A worker that has served
one keeps to it: what tasks have put and what CUDA has set up in a process must not end with an
actor, or be met by tasks without GPUs. Prestarted workers are `FOR_ANYTHING` and serve the first
key with an empty runtime_env.
A *grant* (a lease or an actor that already holds its resources; see `core.leases`) asks with
`acquire` and gets an idle worker at once, or waits until `worker_registered` hands it one.

::

    StartWorker ─▶ starting ─▶ idle ◀──▶ busy ─▶ stopping ─▶ gone
                      │         ▲└─▶ asked ─────────────────────┘
                      │         └──────┘ refused: it owns what others hold
                      └── died or silent for 60 s: `worker_start_failed`, retried, then refused

Pure; runs inside `core.node.Node`. Limits: at most `start_limit` processes start at one time, so
a burst of actors does not starve the heartbeat (and as many more whose runtime environment has to
be made, with its own time limit); idle workers beyond the number of CPUs are asked to end after
`IDLE_KEEP_S`. There is no limit on blocked workers; runnable ones are bounded by resources.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from miniray._proto import common_pb2 as common
from miniray._proto import worker_pb2
from miniray.core import environments
from miniray.core.node_effects import StartWorker, StopWorker, to_client

ANY_JOB = b""
IDLE_KEEP_S = 1.0
REFUSED_KEEP_S = 10.0
"""A worker that is needed for what it owns is asked again after this."""
REGISTER_WITHIN_S = 60.0
START_ATTEMPTS = 3

TASKS, GPU_TASKS, ACTORS = "tasks", "gpu tasks", "actors"
"""Uses of a worker."""


class Key(NamedTuple):
    """What a worker is for. `environment` is canonical JSON, empty for none."""

    job_id: bytes
    environment: str = ""
    use: str = TASKS


FOR_ANYTHING = Key(ANY_JOB, "", "")

IDLE = "idle"
BUSY = "busy"
ASKED = "asked"
STOPPING = "stopping"
DRIVER = "driver"


@dataclass(slots=True)
class Worker:
    """One registered client process of this node; drivers too."""

    worker_id: bytes
    pid: int
    key: Key
    state: str
    client_slot: int = 0
    grant_id: int = 0
    """The lease or actor it serves; 0 when none."""
    blocked: bool = False
    idle_since: float = 0.0
    depth: int = 0
    """Nesting of what it runs: 0 for a driver, one more than the requester's for a task."""
    intended: bool = False
    """Its end was asked for: not a crash."""
    reason: str = ""
    """Why its end was asked for."""
    ended_by: common.EndedBy = common.BY_NOBODY
    kill_at: float | None = None
    current_task: str = ""
    out_of_memory: bool = False
    """The memory guard ended it."""
    registered_at: float = 0.0
    outlives: bool = False
    """It hosts a detached actor, or runs tasks of one: the job's end is not its own."""
    assigned_job: bytes = b""
    """The job whose `AssignJob` it has been sent."""

    @property
    def job_id(self) -> bytes:
        return self.key.job_id


@dataclass(slots=True)
class Starting:
    """A process that was asked for and has not registered."""

    token: bytes
    key: Key
    deadline: float
    stopping: bool = False
    slow: bool = False
    """Its runtime environment may have to be made first."""


@dataclass(slots=True)
class Pool:
    """See the module head. `out` is the node's effect list."""

    out: list[Any]
    rng: random.Random
    cpus: int
    workers: dict[bytes, Worker] = field(default_factory=dict)
    starting: dict[bytes, Starting] = field(default_factory=dict)
    waiting: dict[Key, deque[int]] = field(default_factory=dict)
    idle: dict[Key, dict[bytes, None]] = field(default_factory=dict)
    failures: dict[int, int] = field(default_factory=dict)
    """Failed starts per waiting grant."""

    @property
    def start_limit(self) -> int:
        return max(4, 2 * self.cpus)

    # ---- stimuli ----

    def prestart(self, now: float) -> None:
        """Start one worker per CPU for whichever job comes first."""
        while len(self.starting) + self._idle_count() < min(self.cpus, self.start_limit):
            self._start(now, FOR_ANYTHING)

    def acquire(self, now: float, key: Key, grant_id: int) -> Worker | None:
        """An idle worker for `grant_id`, or None: then it waits, and a process may be started."""
        worker = self._take_idle(key)
        if worker is not None:
            self._assign(worker, key, grant_id)
            return worker
        self.waiting.setdefault(key, deque()).append(grant_id)
        self._start_for_waiting(now)
        return None

    def withdraw(self, key: Key, grant_id: int) -> None:
        """`grant_id` does not want a worker any more."""
        self.failures.pop(grant_id, None)
        queue = self.waiting.get(key)
        if queue is not None and grant_id in queue:
            queue.remove(grant_id)
            if not queue:
                del self.waiting[key]

    def token_known(self, token: bytes) -> bool:
        """Whether a worker with this startup token is expected."""
        entry = self.starting.get(token)
        return entry is not None and not entry.stopping

    def worker_registered(self, now: float, worker_id: bytes, token: bytes, pid: int, slot: int) -> int:
        """A process that we started is up. Returns the grant that gets it, 0 for none."""
        entry = self.starting.pop(token)
        worker = Worker(
            worker_id, pid, entry.key, IDLE, client_slot=slot, idle_since=now, registered_at=now
        )
        self.workers[worker_id] = worker
        return self._offer(now, worker)

    def driver_registered(self, now: float, worker_id: bytes, pid: int, slot: int) -> Worker:
        """A driver is a client that is never leased."""
        worker = Worker(worker_id, pid, FOR_ANYTHING, DRIVER, client_slot=slot, registered_at=now)
        self.workers[worker_id] = worker
        return worker

    def worker_start_failed(self, now: float, token: bytes, fatal: bool = False) -> int:
        """The process ended before it registered. Returns a grant that must be refused, or 0.

        The waiting grant is given `START_ATTEMPTS` processes before it is refused, one if `fatal`.
        """
        entry = self.starting.pop(token, None)
        if entry is None or entry.stopping:
            self._start_for_waiting(now)
            return 0
        queue = self.waiting.get(entry.key)
        refused = 0
        if queue:
            first = queue[0]
            count = self.failures.get(first, 0) + 1
            self.failures[first] = count
            if fatal or count >= START_ATTEMPTS:
                self.withdraw(entry.key, first)
                refused = first
        self._start_for_waiting(now)
        return refused

    def released(self, now: float, worker: Worker) -> int:
        """A busy worker has finished its lease. Returns the grant that gets it next, or 0."""
        assert worker.state == BUSY
        worker.grant_id = 0
        worker.blocked = False
        worker.state = IDLE
        worker.idle_since = now
        return self._offer(now, worker)

    def stop(self, now: float, worker: Worker, reason: str, *, force: bool, within_s: float = 5.0) -> None:
        """End a worker on purpose. Without `force` it gets SIGTERM and `within_s` to obey."""
        if worker.state == IDLE:
            self._forget_idle(worker)
        worker.state = STOPPING if worker.state != DRIVER else DRIVER
        worker.intended = True
        worker.reason = worker.reason or reason
        worker.kill_at = None if force else now + within_s
        self.out.append(StopWorker(worker_id=worker.worker_id, force=force))

    def _ask_to_leave(self, worker: Worker) -> None:
        self._forget_idle(worker)
        worker.state = ASKED
        message = worker_pb2.Exit(graceful=True, reason="it was idle", if_unneeded=True)
        self.out.append(to_client(worker.worker_id, exit=message))

    def leave_refused(self, now: float, worker: Worker) -> int:
        """It owns what others hold, and stays. Returns the grant that gets it, 0 for none."""
        if worker.state != ASKED:
            return 0
        return self._offer(now, worker, now + REFUSED_KEEP_S)

    def expect_exit(self, now: float, worker: Worker, reason: str, within_s: float) -> None:
        """The worker was asked by message to end itself; after `within_s` it is killed."""
        if worker.state == IDLE:
            self._forget_idle(worker)
        worker.state = STOPPING
        worker.intended = True
        worker.reason = worker.reason or reason
        worker.kill_at = now + within_s

    def retire(self, worker: Worker, reason: str) -> None:
        """It has done its last task: no more work, and it goes when nobody needs what it owns."""
        worker.state = ASKED
        worker.intended = True
        worker.reason = worker.reason or reason
        leave = worker_pb2.Exit(graceful=True, reason=worker.reason, when_unneeded=True)
        self.out.append(to_client(worker.worker_id, exit=leave))

    def worker_exited(self, now: float, worker_id: bytes) -> Worker | None:
        """The process is gone. Returns its record, now forgotten."""
        worker = self.workers.pop(worker_id, None)
        if worker is None:
            return None
        if worker.state == IDLE:
            self._forget_idle(worker)
        self._start_for_waiting(now)
        return worker

    def job_ended(self, now: float, job_id: bytes, keep: dict[bytes, None]) -> None:
        """Stop the job's workers, but those in `keep` (they host detached actors)."""
        for worker in list(self.workers.values()):
            ours = worker.job_id == job_id and worker.worker_id not in keep
            if ours and worker.state in (IDLE, BUSY, ASKED):
                self.stop(now, worker, "its job has ended", force=True)
        for entry in self.starting.values():
            if entry.key.job_id == job_id and not entry.stopping and not self.waiting.get(entry.key):
                entry.stopping = True
                self.out.append(StopWorker(startup_token=entry.token))

    # ---- time ----

    def next_deadline(self) -> float | None:
        """The next start time-out, kill or end of an idle worker."""
        times = [entry.deadline for entry in self.starting.values() if not entry.stopping]
        surplus = self._idle_count() - self.cpus
        for worker in self.workers.values():
            if worker.kill_at is not None:
                times.append(worker.kill_at)
            elif worker.state == IDLE and surplus > 0:
                times.append(worker.idle_since + IDLE_KEEP_S)
        return min(times, default=None)

    def tick(self, now: float) -> None:
        """Kill what did not obey or register, end surplus idle workers."""
        for entry in self.starting.values():
            if entry.deadline <= now and not entry.stopping:
                # Its exit arrives as worker_start_failed, which must still count: not `stopping`.
                entry.deadline = now + REGISTER_WITHIN_S
                self.out.append(StopWorker(startup_token=entry.token))
        for worker in list(self.workers.values()):
            if worker.kill_at is not None and worker.kill_at <= now:
                worker.kill_at = None
                self.out.append(StopWorker(worker_id=worker.worker_id, force=True))
        surplus = self._idle_count() - self.cpus
        if surplus > 0:
            due = [w for w in self.workers.values() if w.state == IDLE and w.idle_since + IDLE_KEEP_S <= now]
            for worker in sorted(due, key=lambda worker: worker.idle_since)[:surplus]:
                self._ask_to_leave(worker)

    # ---- inside ----

    def _offer(self, now: float, worker: Worker, idle_since: float | None = None) -> int:
        """Give a free worker to the longest waiting compatible grant, else keep it idle."""
        for key in self._served_by(worker):
            queue = self.waiting.get(key)
            if queue:
                grant_id = queue.popleft()
                if not queue:
                    del self.waiting[key]
                self.failures.pop(grant_id, None)
                self._assign(worker, key, grant_id)
                self._start_for_waiting(now)
                return grant_id
        worker.state = IDLE
        worker.idle_since = now if idle_since is None else idle_since
        self.idle.setdefault(worker.key, {})[worker.worker_id] = None
        self._start_for_waiting(now)
        return 0

    def _served_by(self, worker: Worker) -> list[Key]:
        if worker.key == FOR_ANYTHING:
            return [key for key in self.waiting if not key.environment]
        return [worker.key]

    def _take_idle(self, key: Key) -> Worker | None:
        for candidate in (key, FOR_ANYTHING) if not key.environment else (key,):
            group = self.idle.get(candidate)
            if group:
                worker_id, _ = group.popitem()  # the warmest
                if not group:
                    del self.idle[candidate]
                return self.workers[worker_id]
        return None

    def _assign(self, worker: Worker, key: Key, grant_id: int) -> None:
        worker.key = key
        worker.state = BUSY
        worker.grant_id = grant_id

    def _forget_idle(self, worker: Worker) -> None:
        group = self.idle[worker.key]
        del group[worker.worker_id]
        if not group:
            del self.idle[worker.key]

    def _idle_count(self) -> int:
        return sum(len(group) for group in self.idle.values())

    def _start_for_waiting(self, now: float) -> None:
        """Start as many processes as there are waiting grants, within the start limit."""
        if not self.waiting:
            return
        coming: dict[Key, int] = {}
        for entry in self.starting.values():
            if not entry.stopping:
                coming[entry.key] = coming.get(entry.key, 0) + 1
        spare = coming.get(FOR_ANYTHING, 0)
        for key, queue in self.waiting.items():
            missing = len(queue) - coming.get(key, 0)
            if not key.environment:
                used = max(0, min(spare, missing))
                spare -= used
                missing -= used
            while missing > 0 and self._may_start(key):
                self._start(now, key)
                missing -= 1

    def _may_start(self, key: Key) -> bool:
        """Within the limit; workers whose environment has to be made do not hold up the others."""
        slow = _setup_limit_s(key) > 0
        return sum(entry.slow == slow for entry in self.starting.values()) < self.start_limit

    def _start(self, now: float, key: Key) -> None:
        token = self.rng.randbytes(16)
        limit_s = _setup_limit_s(key)
        self.starting[token] = Starting(token, key, now + REGISTER_WITHIN_S + limit_s, slow=limit_s > 0)
        self.out.append(StartWorker(token, key.job_id, key.environment))

    # ---- for people and tests ----

    def check(self) -> None:
        """Idle groups, states and waiting queues agree."""
        listed = [worker_id for group in self.idle.values() for worker_id in group]
        states = [w.worker_id for w in self.workers.values() if w.state == IDLE]
        assert sorted(listed) == sorted(states), "idle groups disagree with worker states"
        for key, group in self.idle.items():
            assert group, f"empty idle group {key}"
            assert not (self.waiting.get(key)), f"idle workers while grants wait for {key}"
        for worker in self.workers.values():
            assert (worker.state == BUSY) <= (worker.grant_id != 0), "busy worker without a grant"

    def dump(self) -> dict[str, Any]:
        """The pool as plain values."""
        return {
            "workers": [
                {"worker_id": w.worker_id.hex(), "pid": w.pid, "state": w.state, "job": w.job_id.hex(),
                 "blocked": w.blocked, "task": w.current_task, "depth": w.depth}
                for w in self.workers.values()
            ],
            "starting": len(self.starting),
            "waiting": {
                f"{key.job_id.hex()}:{key.environment}:{key.use}": len(q) for key, q in self.waiting.items()
            },
        }


def _setup_limit_s(key: Key) -> float:
    return environments.setup_limit_s(environments.parse(key.environment)) if key.environment else 0.0


def start_refusal(key: Key, last: common.Failure | None) -> common.Failure:
    """The failure told to whoever waited for a worker that would not start."""
    if last is not None and last.kind == common.RUNTIME_ENV_FAILED:
        return last  # it says what could not be made
    detail = last.message if last is not None and last.message else "no reason was given"
    env = f" with runtime_env {environments.shown(key.environment)}" if key.environment else ""
    failure = common.Failure(
        kind=common.RUNTIME_ENV_FAILED if key.environment else common.WORKER_DIED,
        message=f"a worker process{env} ended {START_ATTEMPTS} times before it was ready: {detail}",
    )
    if last is not None:
        failure.stderr_tail = last.stderr_tail
        failure.exit_detail = last.exit_detail
    return failure
