"""`util.state.explain` and `miniray why` in a real session: the cause is named, with its chain."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from typing import Any

import pytest

from miniray import exceptions
from miniray.util import state
from tests.system.support import eventually


def text(thing: Any) -> str:
    return str(state.explain(thing))


def says(thing: Any, *parts: str) -> None:
    """The explanation comes to have all these parts."""
    eventually(lambda: all(part in text(thing) for part in parts), f"{parts} in what is said of {thing}")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "miniray", "why", *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_what_is_pending_names_what_it_waits_for(ray: Any) -> None:
    @ray.remote
    def slow(*_: Any) -> None:
        time.sleep(600)

    @ray.remote(num_gpus=4)
    def wants_gpus() -> None: ...

    @ray.remote(num_gpus=1)
    class WantsGpu:
        def call(self) -> None: ...

    first = slow.remote()
    behind = slow.remote(first)
    says(behind, "is not ready", f"waits for argument {first.hex()}", "task slow runs", "worker")
    impossible = wants_gpus.remote()
    says(impossible, "task wants_gpus waits for a worker", "'GPU' (asked 4)")
    actor = WantsGpu.remote()
    says(actor, "actor WantsGpu", "is not alive yet", "'GPU' (asked 1)", "registered: WantsGpu")
    says(actor.call.remote(), "waits for its actor, which is PENDING_CREATION")
    group = ray.util.placement_group([{"CPU": 50}])
    says(group, "waits for room", "no node has 50 CPU")
    with pytest.raises(exceptions.GetTimeoutError) as caught:
        ray.get(behind, timeout=0.01)
    assert f"waits for argument {first.hex()}\n  because task slow runs" in str(caught.value)

    asked = command(behind.hex())       # another process: the driver is asked
    assert asked.returncode == 0 and "task slow runs" in asked.stdout, asked
    asked = command(impossible.task_id().hex())
    assert "has not ended" in asked.stdout and "'GPU' (asked 4)" in asked.stdout
    asked = command(actor._actor_id.hex()[:10])
    assert "is not alive yet" in asked.stdout
    ray.util.remove_placement_group(group)
    for ref in (behind, first):
        ray.cancel(ref, force=True)


def test_what_is_dead_or_done_names_its_end(ray: Any) -> None:
    @ray.remote(max_retries=1)
    def dies() -> None:
        os._exit(3)

    @ray.remote(max_retries=0)
    def fine() -> int:
        return 1

    @ray.remote
    class Mortal:
        def die(self) -> None:
            os._exit(4)

    bad = dies.remote()
    with pytest.raises(exceptions.WorkerCrashedError):
        ray.get(bad)
    says(bad, "is an error", "exit status 3")
    says(bad.task_id().hex(), "task dies", "failed", "attempt 2", "exit status 3")
    actor = Mortal.remote()
    with pytest.raises(exceptions.ActorDiedError):
        ray.get(actor.die.remote())
    says(actor, "is dead", "exit status 4", "ALIVE on")
    good = fine.remote()
    assert ray.get(good) == 1
    says(good, "is ready", "held by 1 reference of this process")
    says(good.task_id().hex(), "task fine", "has finished")


def test_a_function_that_failed_is_found_by_its_name(ray: Any) -> None:
    @ray.remote(max_retries=0)
    def falls_over() -> None:
        raise KeyError("no such column")

    with pytest.raises(KeyError):
        ray.get(falls_over.remote())
    eventually(lambda: "no such column" in command("falls_over").stdout, "it is found, with what it raised")


def test_ids_that_nobody_knows_are_said_to_be_unknown(ray: Any) -> None:
    asked = command("ff" * 28)
    assert asked.returncode == 1 and "nothing is known of this id" in asked.stdout
    asked = command("no-such-name")
    assert asked.returncode == 1 and "nothing here has the id or name 'no-such-name'" in asked.stderr
    assert not state.explain("ff" * 24).kind
    with pytest.raises(TypeError, match="has no id"):
        state.explain(3.5)
    node = ray.get_runtime_context().get_node_id()
    assert "is alive" in command(node[:12]).stdout


def test_what_a_task_has_submitted_is_explained_from_anywhere(ray: Any) -> None:
    @ray.remote
    def outer() -> Any:
        @ray.remote(num_gpus=3)
        def inner() -> None: ...

        return ray.get(inner.remote())

    ref = outer.remote()
    says(ref, "task outer runs", "waits for object", "test_why.py", "task inner waits for a worker",
         "'GPU' (asked 3)")
    asked = command("inner")        # by its name, from another process; a worker owns it
    assert asked.returncode == 0 and "task inner" in asked.stdout and "'GPU' (asked 3)" in asked.stdout, asked
    ray.cancel(ref, force=True)


def test_a_deadlock_is_named_as_a_cycle(ray: Any) -> None:
    @ray.remote
    class Actor:
        def ask(self, others: list[Any]) -> Any:
            return ray.get(others[0].ask.remote(others[1:])) if others else 1

    first, second = Actor.remote(), Actor.remote()
    ref = first.ask.remote([second, first])
    says(ref, "this is a cycle, and none of them can ever end: Actor.ask")
    ray.kill(first)
    ray.kill(second)


def test_holders_are_named_with_the_line_where_it_is_recorded() -> None:
    code = """
import os, time, subprocess, sys
import miniray as ray
from miniray.util import state
ray.init(num_cpus=2)
@ray.remote
class Keeper:
    def keep(self, refs): self.refs = refs
ref = ray.put(b"x" * 200_000)        # the line
keeper = Keeper.remote()
ray.get(keeper.keep.remote([ref]))
deadline = time.monotonic() + 30
while "actor Keeper" not in str(state.explain(ref)) and time.monotonic() < deadline:
    time.sleep(0.05)
print(state.explain(ref))
"""
    environment = {**os.environ, "MINIRAY_RECORD_REF_CREATION_SITES": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          env=environment, check=False)  # fmt: skip
    assert done.returncode == 0, done
    assert "held by worker" in done.stdout and "actor Keeper" in done.stdout
    assert "the reference was made by put at <string>:9" in done.stdout
    assert "the reference came inside a value that was loaded" in done.stdout


def test_a_get_that_times_out_tells_what_other_processes_know(ray: Any) -> None:
    @ray.remote
    def outer() -> Any:
        @ray.remote(num_gpus=3)
        def inner() -> None: ...

        return ray.get(inner.remote())

    ref = outer.remote()
    says(ref, "'GPU' (asked 3)")
    with pytest.raises(exceptions.GetTimeoutError, match=r"task inner waits for a worker\n  because .*GPU"):
        ray.get(ref, timeout=2)
    ray.cancel(ref, force=True)


class NeedsADisplay:
    """Pickles, and does not unpickle."""

    def __reduce__(self) -> Any:
        return int, ("no display",)


def test_mistakes_of_user_code_are_told_in_its_own_terms(ray: Any) -> None:
    @ray.remote(max_retries=0)
    def draw(size: int, window: Any = None) -> Any:
        return NeedsADisplay()

    @ray.remote(concurrency_groups={"io": 1})
    class Actor:
        @ray.method(concurrency_group="io")
        def sleeps(self) -> None:
            time.sleep(600)

        @ray.method(concurrency_group="io")
        def waits(self) -> None: ...

    for call in (draw.remote(1, NeedsADisplay()), draw.remote(1, window=NeedsADisplay())):
        with pytest.raises(ValueError, match="argument 'window' of draw was unpickled on the worker"):
            ray.get(call)
        says(call, "task draw", "failed", "'no display' (while argument 'window' of draw")
    put = ray.put(NeedsADisplay())
    with pytest.raises(ValueError, match=f"an argument of draw, object {put.hex()}, was unpickled"):
        ray.get(draw.remote(1, put))
    result = draw.remote(1)
    with pytest.raises(ValueError) as caught:
        ray.get(result)
    assert f"(while object {result.hex()}, the result of draw, was unpickled)" in caught.value.__notes__

    @ray.remote(max_retries=0)
    def replaces() -> None:
        os.execvp("sleep", ["sleep", "600"])

    with pytest.raises(exceptions.WorkerCrashedError, match="closed its connection to its node"):
        ray.get(replaces.remote())

    threads = Actor.remote()
    says(threads.sleeps.remote(), "sleeps", "runs here")
    says(threads.waits.remote(), "of concurrency group 'io', which runs 1 at a time, and while sleeps")
    ray.kill(threads)

    @ray.remote(max_retries=0)
    def stubborn() -> None:
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(600)

    deaf = stubborn.remote()
    says(deaf, "stubborn", "test_why.py")
    ray.cancel(deaf)
    says(deaf, "was told to end by ray.cancel()", "ago, and runs on at", "in stubborn", "(force=True)")
    ray.cancel(deaf, force=True)
    says(deaf, "task stubborn", "was cancelled")
