"""The worker pool: who gets a process, who waits, who ends."""

from __future__ import annotations

import random
from typing import Any

from miniray._proto import common_pb2 as common
from miniray.core.node_effects import StartWorker, StopWorker, ToClient
from miniray.core.pool import (
    ACTORS,
    ANY_JOB,
    ASKED,
    GPU_TASKS,
    IDLE,
    IDLE_KEEP_S,
    REGISTER_WITHIN_S,
    START_ATTEMPTS,
    TASKS,
    Key,
    Pool,
    start_refusal,
)

A, B = Key(b"job1"), Key(b"job2")
ENV = Key(b"job1", '{"env_vars":{"X":"1"}}')


class Bench:
    def __init__(self, cpus: int = 2) -> None:
        self.out: list[Any] = []
        self.pool = Pool(self.out, random.Random(1), cpus)
        self.count = 0

    def starts(self) -> list[StartWorker]:
        found = [e for e in self.out if isinstance(e, StartWorker)]
        self.out[:] = [e for e in self.out if not isinstance(e, StartWorker)]
        return found

    def register(self, start: StartWorker, now: float = 0.0) -> tuple[bytes, int]:
        self.count += 1
        worker_id = b"w%d" % self.count
        token, number = start.startup_token, self.count
        return worker_id, self.pool.worker_registered(now, worker_id, token, number, number)


def test_prestarted_workers_serve_the_first_job_and_belong_to_it() -> None:
    bench = Bench()
    bench.pool.prestart(0.0)
    starts = bench.starts()
    assert [s.job_id for s in starts] == [ANY_JOB, ANY_JOB]
    first, granted = bench.register(starts[0])
    assert granted == 0
    worker = bench.pool.acquire(0.0, A, 7)
    assert worker is not None and worker.worker_id == first and worker.key == A
    assert bench.pool.released(1.0, worker) == 0
    assert bench.pool.acquire(1.0, B, 8) is None, "job1's worker must not serve job2"
    assert not bench.starts(), "the second prestarted worker is on its way and will do"
    _, granted = bench.register(starts[1])
    assert granted == 8
    bench.pool.check()


def test_a_runtime_env_never_shares_a_process() -> None:
    bench = Bench()
    bench.pool.prestart(0.0)
    bench.register(bench.starts()[0])
    assert bench.pool.acquire(0.0, ENV, 1) is None
    (start,) = bench.starts()
    assert start.runtime_env == ENV[1]
    assert bench.register(start)[1] == 1


def test_a_burst_starts_only_some_processes_at_a_time() -> None:
    bench = Bench()
    for grant in range(1, 101):
        bench.pool.acquire(0.0, A, grant)
    running = bench.starts()
    assert len(running) == bench.pool.start_limit
    served = []
    while running:
        served.append(bench.register(running.pop(0))[1])
        running += bench.starts()
        assert len(bench.pool.starting) <= bench.pool.start_limit
    assert served == list(range(1, 101))


def test_a_process_that_never_comes_up_is_retried_then_refused() -> None:
    bench = Bench()
    bench.pool.acquire(0.0, A, 5)
    for attempt in range(START_ATTEMPTS):
        (start,) = bench.starts()
        refused = bench.pool.worker_start_failed(0.0, start.startup_token)
        assert refused == (5 if attempt == START_ATTEMPTS - 1 else 0)
    assert not bench.starts() and not bench.pool.waiting


def test_a_broken_runtime_env_is_refused_at_once() -> None:
    bench = Bench()
    bench.pool.acquire(0.0, ENV, 5)
    assert bench.pool.worker_start_failed(0.0, bench.starts()[0].startup_token, fatal=True) == 5


def test_a_silent_start_is_killed_and_counts_as_failed() -> None:
    bench = Bench()
    bench.pool.acquire(0.0, A, 5)
    (start,) = bench.starts()
    assert bench.pool.next_deadline() == REGISTER_WITHIN_S
    bench.pool.tick(REGISTER_WITHIN_S)
    assert bench.out == [StopWorker(startup_token=start.startup_token)]
    bench.pool.worker_start_failed(REGISTER_WITHIN_S, start.startup_token)
    assert bench.pool.failures == {5: 1} and len(bench.starts()) == 1


def test_idle_workers_beyond_the_cores_end_after_a_second() -> None:
    bench = Bench(cpus=2)
    for grant in (1, 2, 3):
        bench.pool.acquire(0.0, A, grant)
    for start in bench.starts():
        bench.register(start)
    for worker in list(bench.pool.workers.values()):
        bench.pool.released(10.0, worker)
    assert bench.pool.next_deadline() == 10.0 + IDLE_KEEP_S
    bench.pool.tick(10.0 + IDLE_KEEP_S)
    assert sum(w.state == IDLE for w in bench.pool.workers.values()) == 2
    (asked,) = [w for w in bench.pool.workers.values() if w.state == ASKED]
    (message,) = [e for e in bench.out if isinstance(e, ToClient)]
    assert message.worker_id == asked.worker_id and message.message.exit.if_unneeded
    bench.pool.check()


def test_the_worker_that_has_been_idle_longest_ends_first() -> None:
    bench = Bench(cpus=1)
    for grant in (1, 2):
        bench.pool.acquire(0.0, A, grant)
    for start in bench.starts():
        bench.register(start)
    later, sooner = bench.pool.workers.values()
    bench.pool.released(10.0, sooner)
    bench.pool.released(10.5, later)
    bench.pool.tick(20.0)
    assert (sooner.state, later.state) == (ASKED, IDLE)
    bench.pool.check()


def test_a_worker_that_others_need_stays_and_is_asked_again_later() -> None:
    bench = Bench(cpus=1)
    for grant in (1, 2):
        bench.pool.acquire(0.0, A, grant)
    for start in bench.starts():
        bench.register(start)
    for worker in list(bench.pool.workers.values()):
        bench.pool.released(10.0, worker)
    bench.pool.tick(20.0)
    (asked,) = [w for w in bench.pool.workers.values() if w.state == ASKED]
    assert bench.pool.leave_refused(20.0, asked) == 0 and asked.state == IDLE
    del bench.out[:]
    bench.pool.tick(20.0 + IDLE_KEEP_S)
    assert asked.state == IDLE
    bench.pool.check()


def test_a_worker_that_ignores_sigterm_is_killed() -> None:
    bench = Bench()
    bench.pool.acquire(0.0, A, 1)
    worker_id, _ = bench.register(bench.starts()[0])
    bench.pool.stop(0.0, bench.pool.workers[worker_id], "no longer needed", force=False, within_s=5.0)
    assert bench.out == [StopWorker(worker_id=worker_id, force=False)]
    bench.pool.tick(5.0)
    assert bench.out[-1] == StopWorker(worker_id=worker_id, force=True)


def test_withdrawn_grants_get_nothing() -> None:
    bench = Bench()
    bench.pool.acquire(0.0, A, 1)
    bench.pool.withdraw(A, 1)
    worker_id, granted = bench.register(bench.starts()[0])
    assert granted == 0 and bench.pool.workers[worker_id].state == IDLE


def test_the_end_of_a_job_ends_its_workers_but_not_those_kept() -> None:
    bench = Bench()
    ids = []
    for grant, key in ((1, A), (2, A), (3, B)):
        bench.pool.acquire(0.0, key, grant)
        ids.append(bench.register(bench.starts()[0])[0])
    bench.pool.job_ended(0.0, A[0], {ids[1]: None})
    assert bench.out == [StopWorker(worker_id=ids[0], force=True)]


def test_a_worker_keeps_to_its_use() -> None:
    for first, second in ((TASKS, ACTORS), (TASKS, GPU_TASKS), (GPU_TASKS, TASKS)):
        bench = Bench(cpus=1)
        bench.pool.prestart(0.0)
        worker_id, _ = bench.register(bench.starts()[0])
        worker = bench.pool.acquire(0.0, A._replace(use=first), 1)
        assert worker is not None and worker.worker_id == worker_id, "a fresh worker serves any use"
        bench.pool.released(0.0, worker)
        assert bench.pool.acquire(0.0, A._replace(use=second), 2) is None
        assert bench.pool.acquire(0.0, A._replace(use=first), 3) is worker
        bench.pool.check()


MADE = Key(b"job1", '{"pip":{"packages":["a"]},"config":{"setup_timeout_seconds":100}}')


def test_environments_that_have_to_be_made_do_not_hold_up_other_workers() -> None:
    bench = Bench(cpus=1)
    for grant in range(1, 9):
        assert bench.pool.acquire(0.0, MADE, grant) is None
    assert len(bench.starts()) == bench.pool.start_limit
    assert bench.pool.acquire(0.0, A, 20) is None
    assert [start.runtime_env for start in bench.starts()] == [""]


def test_the_time_to_make_an_environment_counts_extra() -> None:
    bench = Bench(cpus=1)
    bench.pool.acquire(0.0, MADE, 1)
    bench.starts()
    bench.pool.tick(REGISTER_WITHIN_S + 99.0)
    assert not bench.out
    bench.pool.tick(REGISTER_WITHIN_S + 100.0)
    assert [type(effect) for effect in bench.out] == [StopWorker]


def test_the_failure_of_an_environment_is_told_as_it_is() -> None:
    last = common.Failure(kind=common.RUNTIME_ENV_FAILED, message="[Node 1.2.3.4] pip says no")
    assert start_refusal(MADE, last) == last
    crashed = common.Failure(kind=common.WORKER_DIED, message="signal SIGKILL")
    secret = Key(b"job1", '{"env_vars":{"TOKEN":"hunter2"}}')
    told = start_refusal(secret, crashed).message
    assert "TOKEN" in told and "hunter2" not in told
