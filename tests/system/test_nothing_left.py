"""Whatever ends, and however: no process, directory, socket or shared memory stays behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from miniray.runtime import agent
from tests.system.support import Script, alive, eventually, kill, zygote_of

WITHIN_S = 10.0
"""On a quiet machine it takes a tenth of a second."""

SESSION = """
ray.init(num_cpus=2, object_store_memory=100 << 20, configure_logging=False)

@ray.remote
class Parent:
    def spawn(self):
        sleep = ["sleep", "1000"]
        subprocess.Popen(sleep)
        subprocess.Popen(["setsid", "-f", *sleep]).wait()
        # forked twice, in a session of its own, with nothing of ours in its environment
        twice = "setsid sh -c 'sleep 1000 & sh -c \\"sleep 1000 & wait\\" & exit' &"
        subprocess.run(["sh", "-c", twice], env={"PATH": os.environ["PATH"]}, check=True)
        return os.getpid()

    def stay(self):
        time.sleep(1000)

parent = Parent.remote()
big = ray.put(bytes(10_000_000))
worker = ray.get(parent.spawn.remote())
pending = [parent.stay.options(num_returns=2).remote() for _ in range(3)]
from miniray import session
say(daemon=session._daemon.pid, directory=session._daemon.session_dir, worker=worker)
"""


def sleepers(below: int) -> list[int]:
    """The user's grandchildren below a process."""
    return [pid for pid in agent.descendants_of(below) if "sleep\0001000" in _command(pid)]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


class Tree:
    """The processes and names of one session."""

    def __init__(self, driver: Script) -> None:
        said = driver.hear()
        self.daemon: int = said["daemon"]
        self.worker: int = said["worker"]
        self.directory = Path(said["directory"])
        self.zygote = zygote_of(self.daemon)
        (self.guardian,) = agent.children_of(self.daemon)
        eventually(lambda: len(sleepers(self.daemon)) >= 4, "the user's grandchildren run")
        self.members = [self.daemon, *agent.descendants_of(self.daemon)]
        assert self.worker in self.members and (self.directory / "raylet.sock").exists()

    def gone(self) -> bool:
        """Nothing of it is left."""
        return not self.directory.exists() and not [pid for pid in self.members if alive(pid)]


VICTIMS = ("driver", "daemon", "zygote", "daemon zygote", "daemon guardian", "zygote guardian",
           "daemon zygote guardian", "group")


@pytest.mark.parametrize("victims", VICTIMS)
def test_kill_9_ends_the_session_and_all_that_ran_in_it(victims: str) -> None:
    """One process of the session, several at the same moment, or the daemon's process group."""
    with Script(SESSION + "time.sleep(1000)") as driver:
        tree = Tree(driver)
        pids = {"driver": driver.process.pid, "daemon": tree.daemon, "zygote": tree.zygote,
                "guardian": tree.guardian, "group": -tree.daemon}
        for victim in victims.split():
            kill(pids[victim])
        eventually(tree.gone, "the session is gone", WITHIN_S)


def kill_together(*pids: int) -> None:
    """As if at one moment: none of them acts between the deaths of the others."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        kill(pid)


def test_what_daemons_leave_when_all_are_killed_is_cleared_away_by_those_connected_to_them() -> None:
    """The head does it for a node, and the nodes for the head."""
    import miniray as ray
    from miniray.cluster_utils import Cluster
    from miniray.runtime import sessions

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        ray.init(cluster.address, configure_logging=False)
        node = cluster.add_node(num_cpus=1, resources={"there": 1})

        @ray.remote(resources={"there": 1})
        def escape() -> int:
            import subprocess

            return subprocess.Popen(["sleep", "1000"], env={}, start_new_session=True).pid

        escaped = ray.get(escape.remote(), timeout=60)
        (guardian,) = agent.children_of(node.pid)
        kill_together(guardian, zygote_of(node.pid), node.pid)
        eventually(lambda: not alive(escaped), "what the user had started ends")
        eventually(lambda: not Path(node.session_dir).exists(), "the node's directory goes")
        (head,) = [session for session in sessions.living() if session.pid == cluster._head_pid]
        (janitor,) = agent.children_of(head.pid)
        kill_together(janitor, head.pid)
        eventually(lambda: not Path(head.directory).exists(), "the head's directory goes")
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_a_session_goes_on_without_its_guardian_and_is_gone_at_its_end() -> None:
    with Script(SESSION + "input(); say(after=ray.get(ray.remote(lambda: 7).remote()))") as driver:
        tree = Tree(driver)
        kill(tree.guardian)
        driver.go_on()
        assert driver.hear() == {"after": 7}
        assert driver.wait() == 0
        eventually(tree.gone, "the session is gone", WITHIN_S)


@pytest.mark.parametrize("victim", ["daemon", "zygote"])
def test_what_a_session_had_logged_outlives_the_kill_of_its_daemon_or_zygote(victim: str) -> None:
    from miniray.runtime import kept_logs

    code = SESSION + """
        @ray.remote
        def speak():
            print("last words", flush=True)

        ray.get(speak.remote())
        say(spoken=True)
        time.sleep(1000)
    """.replace("\n        ", "\n")
    with Script(code) as driver:
        tree = Tree(driver)
        assert driver.hear() == {"spoken": True}
        kill({"daemon": tree.daemon, "zygote": tree.zygote}[victim])
        eventually(tree.gone, "the session is gone", WITHIN_S)
        place = Path(kept_logs.place_of(str(tree.directory)))
        texts = [path.read_text() for path in place.iterdir()] if place.exists() else []
        assert any("last words" in text for text in texts)


def test_kill_9_of_a_worker_ends_what_it_had_started_and_nothing_else() -> None:
    with Script(SESSION + "time.sleep(1000)") as driver:
        tree = Tree(driver)
        every = len(sleepers(tree.daemon))
        eventually(lambda: len(sleepers(tree.worker)) == every, "all are below the worker")
        kill(tree.worker)
        eventually(lambda: not alive(tree.worker) and not sleepers(tree.daemon), "no orphans", WITHIN_S)
        assert alive(tree.daemon) and alive(tree.zygote) and tree.directory.exists()


ENDS: dict[str, tuple[str, int]] = {
    "returns": ("", 0),
    "calls shutdown twice": ("ray.shutdown(); ray.shutdown()", 0),
    "calls sys.exit": ("sys.exit(3)", 3),
    "raises": ("raise ValueError('on purpose')", 1),
    "calls os._exit": ("os._exit(4)", 4),
    "is terminated": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(1000)", 15),  # as in Ray
    "leaves a thread in get": (
        "import threading; threading.Thread(target=ray.get, args=(pending[0][0],), daemon=True).start()", 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_a_driver_that_ends_takes_its_session_along(end: str) -> None:
    code, status = ENDS[end]
    with Script(f"{SESSION}\ninput()\n{code}", merge=True) as driver:
        tree = Tree(driver)
        driver.go_on()
        assert driver.wait() == status
        eventually(tree.gone, "the session is gone", WITHIN_S)
        left: Any = driver.process.stdout and driver.process.stdout.read()
        assert ("ValueError: on purpose" in left) == (end == "raises"), left
        if end != "raises":
            assert "Traceback" not in left, left


def test_ctrl_c_in_a_get_reaches_the_driver_only_and_ends_in_order() -> None:
    """As a terminal does it: SIGINT to the whole process group of the driver."""
    code = """
        @ray.remote
        def forever():
            time.sleep(1000)

        refs = [forever.remote() for _ in range(4)]
        try:
            say(waiting=True)
            ray.get(refs)
        except KeyboardInterrupt:
            say(interrupted=True, alive=ray.get(ray.put(1)))
            raise
    """
    import textwrap

    with Script(SESSION + textwrap.dedent(code), merge=True) as driver:
        tree = Tree(driver)
        assert driver.hear() == {"waiting": True}
        os.killpg(driver.process.pid, signal.SIGINT)
        assert driver.hear() == {"interrupted": True, "alive": 1}
        assert driver.wait() == -signal.SIGINT
        eventually(tree.gone, "the session is gone", WITHIN_S)


def test_ctrl_c_at_any_moment_leaves_a_session_that_works() -> None:
    """The signal may come while a call is being submitted, or the right to drain is handed over."""
    code = """
        import random, threading

        @ray.remote
        class Echo:
            def say(self, value):
                return value

        ray.init(num_cpus=2, object_store_memory=100 << 20, configure_logging=False)
        echo = Echo.remote()
        square = ray.remote(lambda n: n * n)
        ray.get([echo.say.remote(0), square.remote(0)])
        main, over = threading.main_thread().ident, threading.Event()

        def interrupt():
            for _ in range(300):
                time.sleep(random.random() * 0.008)
                signal.pthread_kill(main, signal.SIGINT)
            over.set()

        thread = threading.Thread(target=interrupt)
        counts, results = [0, 0], []
        thread.start()
        while not over.is_set():
            try:
                while not over.is_set():
                    results.append(ray.get([echo.say.remote(1), square.remote(2), ray.put(3)]))
                    counts[0] += 1
            except KeyboardInterrupt:
                counts[1] += 1
        is_quiet = False
        while not is_quiet:
            try:
                thread.join()
                time.sleep(0.1)         # the last one may have been put off
                is_quiet = True
            except KeyboardInterrupt:
                counts[1] += 1
        assert all(values == [1, 4, 3] for values in results)
        say(counts=counts, last=ray.get([echo.say.remote(7), square.remote(7)], timeout=60))
    """
    with Script(code, merge=True) as driver:
        said = driver.hear()
        assert said["last"] == [7, 49]
        assert said["counts"][0] > 10 and said["counts"][1] > 10, said
        assert driver.wait() == 0


def test_the_next_session_in_the_same_process_starts_clean() -> None:
    """Sessions in a row leave no thread, descriptor or mapping of the segment behind."""
    code = """
        import threading
        for round in range(5):
            ray.init(num_cpus=1, object_store_memory=100 << 20, configure_logging=False)
            view = ray.get(ray.put(bytearray(1_000_000)))
            assert ray.get(ray.remote(lambda: 7).remote()) == 7
            ray.shutdown()
            del view
            counts = (len(os.listdir("/proc/self/fd")), threading.active_count(),
                      open("/proc/self/maps").read().count("memfd:"))
            say(counts=counts)
    """
    with Script(code) as driver:
        counts = [driver.hear()["counts"] for _ in range(5)]
        assert counts[1:] == [counts[1]] * 4, "descriptors, threads, mappings after each session"
        assert driver.wait() == 0
