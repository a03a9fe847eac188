"""The head is killed and started again, and nobody who works notices; a node that was given up is fenced."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.cluster import Cluster
from tests.system.support import Script, alive, eventually, kill

pytestmark = pytest.mark.chaos

KILLS = 20


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Two nodes behind a head with a database."""
    made = Cluster(str(tmp_path), nodes=2, cpus=2)
    yield made
    made.close()


WORK = """
    import numpy as np

    @ray.remote(num_cpus=0)
    class Model:
        def __init__(self):
            self.weights, self.steps = np.zeros(1000), 0

        def step(self, gradient):
            self.weights = self.weights * 0.9 + gradient
            self.steps += 1
            return self.steps

        def read(self):
            return self.weights

    @ray.remote
    def gradient(step, seed):
        return np.random.default_rng([step, seed]).standard_normal(1000)

    def train(steps):
        model, again = Model.remote(), 0
        for step in range(steps):
            parts = [gradient.remote(step, seed) for seed in range(4)]
            total = sum(ray.get(parts, timeout=120))
            assert ray.get(model.step.remote(total), timeout=120) == step + 1
            if step % 10 == 0:      # things that need the head go on as soon as it is back
                other = Model.options(name=f"other{step}").remote()
                assert ray.get(other.step.remote(total), timeout=120) == 1
            say(step=step)
        return ray.get(model.read.remote(), timeout=120)

    ray.init(DIRECTORY, configure_logging=False)
    steps = STEPS
    weights = train(steps)
    expected = np.zeros(1000)
    for step in range(steps):
        parts = [np.random.default_rng([step, seed]).standard_normal(1000) for seed in range(4)]
        expected = expected * 0.9 + sum(parts)
    say(same=bool((weights == expected).all()))
"""


@pytest.mark.timeout(600)
def test_twenty_kills_of_the_head_leave_the_result_unchanged(cluster: Cluster) -> None:
    rng = random.Random(os.urandom(8))
    code = WORK.replace("DIRECTORY", repr(cluster.nodes[0].session_dir)).replace("STEPS", str(10 * KILLS))
    with Script(code) as driver:
        for number in range(KILLS):
            while driver.hear()["step"] < number * 10:
                pass
            time.sleep(rng.uniform(0.0, 0.2))
            kill(cluster.head_pid)
            time.sleep(rng.uniform(0.0, 0.3))
            cluster.start_head()
        said = driver.hear()
        while "same" not in said:
            said = driver.hear()
        assert said["same"]
        assert driver.wait() == 0


TICKS = """
    ray.init(DIRECTORY, configure_logging=False)

    @ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, resources={"place1": 1})
    class Ticking:
        def run(self, path):
            import threading
            def tick():
                while True:
                    with open(path, "a") as file:
                        file.write(f"{time.monotonic()} {os.getpid()}\\n")
                    time.sleep(0.02)
            threading.Thread(target=tick, daemon=True).start()
            return os.getpid()

    actor = Ticking.remote()
    say(pid=ray.get(actor.run.remote(PATH), timeout=120))
    input()
    say(pid=ray.get(actor.run.remote(PATH), timeout=120))
"""


@pytest.mark.timeout(600)
def test_of_an_actor_whose_node_was_given_up_there_are_never_two(cluster: Cluster, tmp_path: Path) -> None:
    """A raylet stands still for longer than the head waits; its actor starts elsewhere; it goes on."""
    ticks = tmp_path / "ticks"
    silent = cluster.nodes[1]
    code = TICKS.replace("DIRECTORY", repr(cluster.nodes[0].session_dir))
    code = code.replace("PATH", repr(str(ticks)))
    with Script(code) as driver:
        before = driver.hear()["pid"]
        os.kill(silent.pid, signal.SIGSTOP)
        fresh = cluster.replace(silent)     # with the resource that the actor needs
        eventually(lambda: silent.node_id not in cluster.living(), "the head gives it up", 60)
        driver.go_on()
        after = driver.hear()["pid"]
        assert after != before and after in fresh.workers
        os.kill(silent.pid, signal.SIGCONT)
        eventually(lambda: not alive(silent.pid), "the node that was given up has ended", 30)
        eventually(lambda: not alive(before), "and its workers", 10)
        lives: dict[int, list[float]] = {}
        for line in ticks.read_text().splitlines():
            at, pid = line.split()
            lives.setdefault(int(pid), []).append(float(at))
        assert max(lives[before]) < min(lives[after]), "the two lives overlap"
    cluster.nodes[1] = fresh
