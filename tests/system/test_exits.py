"""What the state API says of workers that have ended: in which of Ray's ways, why, and when."""

from __future__ import annotations

import os
import signal
import sys

import pytest

import miniray as ray
from miniray.util import state


@ray.remote(num_cpus=0)
class Leaver:
    def pid(self):
        return os.getpid()

    def leave(self):
        ray.actor.exit_actor()

    def exit(self, code):
        sys.exit(code)


def kill(actor, pid):
    ray.kill(actor)


def sigkill(actor, pid):
    os.kill(pid, signal.SIGKILL)


WAYS = {
    "SYSTEM_ERROR OOM": sigkill,
    "SYSTEM_ERROR exit code 4": lambda actor, pid: actor.exit.remote(4),
    "INTENDED_USER_EXIT exit code 0": lambda actor, pid: actor.exit.remote(0),
    "INTENDED_USER_EXIT exit_actor": lambda actor, pid: actor.leave.remote(),
    "INTENDED_SYSTEM_EXIT ray.kill": kill,
}
"""The exit type, words of the detail, and what makes an actor's worker end so."""


def dead(pid):
    """The row of a worker that has ended, None while it has not."""
    rows = state.list_workers(filters=[("pid", "=", pid)], limit=1000)
    return next((row for row in rows if not row.is_alive), None)


def test_the_ways_in_which_workers_end(ray_shared, wait_until):
    actors = {way: Leaver.remote() for way in WAYS}
    pids = {way: ray.get(actor.pid.remote()) for way, actor in actors.items()}
    for way, end in WAYS.items():
        end(actors[way], pids[way])
    wait_until(lambda: all(dead(pid) for pid in pids.values()))
    for way, pid in pids.items():
        kind, words = way.split(" ", 1)
        row = dead(pid)
        assert row.exit_type == kind and words in row.exit_detail, row
        assert 0 < row.start_time_ms <= row.end_time_ms


def test_a_constructor_that_raises_is_a_user_error(ray_shared, wait_until, tmp_path):
    marks = tmp_path / "pid"

    @ray.remote(num_cpus=0)
    class Faulty:
        def __init__(self):
            marks.write_text(str(os.getpid()))
            raise ValueError("no such luck")

        def ready(self):
            pass

    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(Faulty.remote().ready.remote())
    pid = int(marks.read_text())
    wait_until(lambda: dead(pid))
    assert dead(pid).exit_type == "USER_ERROR" and "no such luck" in dead(pid).exit_detail


def test_a_forced_cancel_is_the_users_will(ray_shared, wait_until, tmp_path):
    marks = tmp_path / "pid"

    @ray.remote(num_cpus=0)
    def sleep():
        marks.write_text(str(os.getpid()))
        signal.pause()

    ref = sleep.remote()
    wait_until(lambda: marks.exists() and marks.read_text())
    ray.cancel(ref, force=True)
    with pytest.raises((ray.exceptions.TaskCancelledError, ray.exceptions.WorkerCrashedError)):
        ray.get(ref)
    pid = int(marks.read_text())
    wait_until(lambda: dead(pid))
    assert dead(pid).exit_type == "INTENDED_USER_EXIT" and "ray.cancel" in dead(pid).exit_detail
