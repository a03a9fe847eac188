"""init and shutdown: forms, errors, contexts, forks, and that nothing outlives them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import miniray as ray


@pytest.fixture(autouse=True)
def ended():
    yield
    ray.shutdown()


def run_driver(code, *arguments, check=True, **kwargs):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=check,
        **kwargs,
    )


def test_context_ends_the_session():
    assert not ray.is_initialized()
    with ray.init(num_cpus=1) as context:
        assert ray.is_initialized()
        assert context.address_info["node_id"] == ray.get_runtime_context().get_node_id()
        assert os.path.isdir(context.address_info["session_dir"])
    assert not ray.is_initialized()
    assert not os.path.exists(context.address_info["session_dir"])


def test_second_init_is_an_error_unless_ignored():
    context = ray.init(num_cpus=1)
    with pytest.raises(RuntimeError, match="Maybe you called ray.init twice"):
        ray.init()
    assert ray.init(ignore_reinit_error=True) is context
    ray.shutdown()
    ray.shutdown()
    ray.init(num_cpus=1)
    assert ray.get(ray.put(1)) == 1


def test_what_a_session_offers():
    ray.init(
        num_cpus=3,
        num_gpus=2,
        resources={"special": 1.5},
        labels={"zone": "a"},
        object_store_memory=100 * 2**20,
    )
    total = ray.cluster_resources()
    assert (total["CPU"], total["GPU"], total["special"]) == (3, 2, 1.5)
    assert total["object_store_memory"] == 100 * 2**20
    [node] = ray.nodes()
    assert node["Alive"]
    assert node["Labels"]["zone"] == "a"
    assert node["Resources"]["CPU"] == 3
    assert ray.available_resources()["special"] == 1.5


def test_workers_are_cpus():
    ray.init(num_workers=3)
    assert ray.cluster_resources()["CPU"] == 3


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"no_such_option": 1}, RuntimeError, "Unknown keyword argument"),
        ({"address": "http://host:1"}, ValueError, "miniray://HOST:PORT"),
        ({"address": "127.0.0.1:1"}, ConnectionError, "no node of a cluster at 127.0.0.1:1"),
        ({"address": "auto"}, ConnectionError, "Could not find any running Ray instance"),
        ({"address": "127.0.0.1:1", "num_cpus": 1}, ValueError, "must not be provided"),
        ({"namespace": ""}, ValueError, "not a valid namespace"),
        ({"namespace": 1}, TypeError, "namespace must be"),
        ({"object_store_memory": 1000}, ValueError, "minimum allowed"),
        ({"num_cpus": -1}, ValueError, "must not be negative"),
        ({"runtime_env": {"env_vars": {"A": 1}}}, TypeError, "env_vars"),
    ],
)
def test_wrong_arguments(kwargs, error, text):
    with pytest.raises(error, match=text):
        ray.init(**kwargs)
    assert not ray.is_initialized()


def test_private_options_are_ignored(tmp_path):
    ray.init(num_cpus=1, _system_config={"x": 1}, _temp_dir=str(tmp_path), include_dashboard=False)
    assert ray.get(ray.put(1)) == 1


def test_first_use_connects():
    assert ray.get(ray.put(5)) == 5
    assert ray.is_initialized()


def test_namespace_from_init_and_environment(monkeypatch):
    with ray.init(num_cpus=1, namespace="mine"):
        assert ray.get_runtime_context().namespace == "mine"
    monkeypatch.setenv("RAY_NAMESPACE", "theirs")
    with ray.init(num_cpus=1):
        assert ray.get_runtime_context().namespace == "theirs"
    monkeypatch.delenv("RAY_NAMESPACE")
    with ray.init(num_cpus=1):
        assert len(ray.get_runtime_context().namespace) == 36


def test_arrays_outlive_the_session():
    ray.init(num_cpus=1)
    array = ray.get(ray.put(np.arange(200_000)))
    ray.shutdown()
    assert array.sum() == np.arange(200_000).sum()


def test_handles_and_references_of_an_earlier_session_are_refused():
    @ray.remote
    class A:
        def f(self):
            return 1

    ray.init(num_cpus=1)
    actor = A.remote()
    assert ray.get(actor.f.remote()) == 1
    ray.shutdown()
    ray.init(num_cpus=1)
    with pytest.raises(ValueError, match="It might be dead or it's from a different cluster"):
        actor.f.remote()
    with pytest.raises(ValueError, match="not valid across Ray sessions"):
        ray.kill(actor)


def test_functions_and_classes_work_in_every_session():
    @ray.remote
    def f():
        return ray.get_runtime_context().get_job_id()

    @ray.remote
    class A:
        def f(self):
            return 2

    for _ in range(2):
        with ray.init(num_cpus=1):
            assert ray.get(f.remote()) == ray.get_runtime_context().get_job_id()
            assert ray.get(A.remote().f.remote()) == 2


def test_another_driver_attaches_by_session_directory():
    context = ray.init(num_cpus=2, namespace="shared")

    @ray.remote
    class Keeper:
        def value(self):
            return "kept"

    keeper = Keeper.options(name="keeper").remote()
    ray.get(keeper.value.remote())
    done = run_driver(
        """
        import sys
        import miniray as ray
        ray.init(sys.argv[1], namespace="shared")
        print(ray.get(ray.get_actor("keeper").value.remote()))
        """,
        context.address_info["address"],
    )
    assert done.stdout.strip() == "kept"
    assert ray.get(keeper.value.remote()) == "kept"


def test_forked_child_cannot_act_for_its_parent():
    ray.init(num_cpus=1)
    array = ray.get(ray.put(np.arange(200_000)))
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def child():
        try:
            ray.put(1)
        except ray.exceptions.RaySystemError as error:
            queue.put((str(error), int(array[7])))

    process = context.Process(target=child)
    process.start()
    process.join(20)
    text, value = queue.get()
    assert "forked" in text
    assert value == 7
    assert ray.get(ray.put(2)) == 2


KILLED = """
import os, signal, sys, time
import miniray as ray
ray.init(num_cpus=2)

@ray.remote
def spawn():
    import subprocess
    child = subprocess.Popen(["sleep", "1000"])
    return os.getpid(), child.pid

worker, child = ray.get(spawn.remote())
print(ray.get_runtime_context().worker.session_dir, worker, child, flush=True)
os.kill(os.getpid(), getattr(signal, sys.argv[1]))
time.sleep(10)
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_nothing_is_left_when_the_driver_is_killed(name, wait_until):
    done = run_driver(KILLED, name, check=False)
    directory, worker, child = done.stdout.split()
    wait_until(lambda: not os.path.exists(directory))
    for pid in (worker, child):
        wait_until(lambda pid=pid: not os.path.exists(f"/proc/{pid}"))


def test_driver_exits_by_itself_with_its_own_status():
    done = run_driver(
        "import miniray as ray, sys; ray.init(num_cpus=1); ray.put(1); sys.exit(3)", check=False
    )
    assert done.returncode == 3


def test_init_and_shutdown_are_quick():
    start = time.monotonic()
    with ray.init(num_cpus=1):
        ready = time.monotonic()
    assert ready - start < 30
    assert time.monotonic() - ready < 15


def test_sigterm_ends_a_driver_in_order():
    done = run_driver(
        """
        import atexit, os, signal, time
        import miniray as ray
        ray.init(num_cpus=1)
        atexit.register(lambda: print("hooks ran", flush=True))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        """,
        check=False,
    )
    assert done.returncode == signal.SIGTERM
    assert "hooks ran" in done.stdout


def test_runtime_env_reaches_tasks_and_their_tasks():
    @ray.remote
    def read(*names):
        return [os.environ.get(name) for name in names]

    @ray.remote
    def nested(*names):
        return ray.get(read.remote(*names))

    with ray.init(num_cpus=2, runtime_env={"env_vars": {"JOB": "j", "BOTH": "j"}}):
        assert ray.get(read.remote("JOB", "BOTH")) == ["j", "j"]
        mine = {"env_vars": {"BOTH": "t", "TASK": "t"}}
        assert ray.get(read.options(runtime_env=mine).remote("JOB", "BOTH", "TASK")) == ["j", "t", "t"]
        assert ray.get(nested.options(runtime_env=mine).remote("JOB", "BOTH", "TASK")) == ["j", "t", "t"]
        assert ray.get_runtime_context().runtime_env["env_vars"]["JOB"] == "j"


def test_a_jobs_actors_are_detached_when_its_configuration_says_so():
    ray.init(num_cpus=2, job_config=ray.job_config.JobConfig(default_actor_lifetime="detached"))

    @ray.remote(num_cpus=0)
    class Child:
        def ready(self):
            return True

    @ray.remote(num_cpus=0)
    class Parent:
        def make(self):
            self.children = [Child.remote(), Child.options(lifetime="non_detached").remote()]
            ray.get([child.ready.remote() for child in self.children])
            return self.children

        def pid(self):
            return os.getpid()

    parent = Parent.remote()
    stays, goes = ray.get(parent.make.remote())
    os.kill(ray.get(parent.pid.remote()), signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError):
        for _ in range(1000):
            ray.get(goes.ready.remote())
            time.sleep(0.01)
    assert ray.get(stays.ready.remote())


LOGGED = """
    import logging, sys
    import miniray as ray
    config = ray.LoggingConfig(encoding=sys.argv[1], log_level="INFO", additional_log_standard_attrs=["name"])
    ray.init(num_cpus=1, logging_config=config)
    logging.getLogger("here").info("of the driver %d", 1)

    @ray.remote
    def task():
        logging.getLogger("there").debug("unheard")
        try:
            [][0]
        except IndexError:
            logging.getLogger("there").exception("of the task")
        return ray.get_runtime_context().get_task_id()

    print(ray.get(task.remote()))
    ray.shutdown()
    logging.getLogger("here").warning("afterwards")
"""


def test_records_are_json_and_say_where_they_were_written():
    done = run_driver(LOGGED, "JSON")
    lines = [line[line.index("{") :] for line in done.stderr.splitlines() if "{" in line]
    started, driver, task = (json.loads(line) for line in lines)
    assert started["name"] == "miniray" and started["message"].startswith("Started a local Ray instance.")
    assert (driver["message"], driver["levelname"], driver["name"]) == ("of the driver 1", "INFO", "here")
    assert (task["message"], task["task_name"]) == ("of the task", "task")
    assert task["task_id"] == done.stdout.strip()
    assert "IndexError" in task["exc_text"]
    assert driver["job_id"] == task["job_id"] and driver["worker_id"] != task["worker_id"]


def test_records_are_text_with_a_traceback_below():
    done = run_driver(LOGGED, "TEXT")
    [line] = [line for line in done.stderr.splitlines() if "of the task" in line]
    assert f"task_id={done.stdout.strip()}" in line and "name=there" in line and "timestamp_ns=" in line
    assert "pid=" not in done.stderr    # the records say where they were written
    assert "IndexError" in done.stderr and "unheard" not in done.stderr


def test_a_logging_configuration_that_makes_no_sense_is_refused():
    for wrong in ({"encoding": "XML"}, {"log_level": "LOUD"}, {"additional_log_standard_attrs": ["mood"]}):
        with pytest.raises(ValueError):
            ray.LoggingConfig(**wrong)
