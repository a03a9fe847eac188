"""Runtime environments, context and utilities"""

from __future__ import annotations

import os
import zipfile

import pytest


def test_variables(session):
    """`env_vars` of tasks and actors, merged with those of whoever starts them; `${NAME}` is filled in."""

    @session.remote
    def see(*names):
        return [os.environ.get(name) for name in names]

    @session.remote
    def outer():
        return session.get(see.options(runtime_env={"env_vars": {"B": "2"}}).remote("A", "B"))

    one = {"env_vars": {"A": "1"}}
    assert session.get(outer.options(runtime_env=one).remote(), timeout=120) == ["1", "2"]
    more = {"env_vars": {"PATH": "${PATH}:/more"}}
    [path] = session.get(see.options(runtime_env=more).remote("PATH"), timeout=120)
    assert path.endswith(":/more") and len(path) > len(":/more")


def test_environments_are_not_shared(session):
    """A worker of one environment runs no task of another."""

    @session.remote
    def see():
        return os.environ.get("ONLY_HERE")

    assert session.get(see.options(runtime_env={"env_vars": {"ONLY_HERE": "x"}}).remote(), timeout=120) == "x"
    assert session.get(see.remote()) is None


def test_archives_by_uri(session, tmp_path):
    """A task's `working_dir` may be the URI of a zip; local paths are only for `init`."""
    with zipfile.ZipFile(tmp_path / "code.zip", "w") as archive:
        archive.writestr("top/extra_compat.py", "VALUE = 5\n")

    @session.remote
    def use():
        import extra_compat

        return extra_compat.VALUE

    env = {"working_dir": f"file://{tmp_path}/code.zip"}
    assert session.get(use.options(runtime_env=env).remote(), timeout=120) == 5
    with pytest.raises(ValueError):
        use.options(runtime_env={"working_dir": "."})


def test_wrong_environments(session):
    """Fields of the wrong type are refused where they are given."""
    f = session.remote(lambda: None)
    with pytest.raises(TypeError):
        f.options(runtime_env={"env_vars": {"A": 1}})
    with pytest.raises(ValueError):
        f.options(runtime_env={"pip": ["a"], "conda": "b"})
    with pytest.raises((TypeError, ValueError)):
        f.options(runtime_env={"py_modules": "."})


@pytest.mark.slow
def test_failing_installers(session):
    """An environment that cannot be made is RuntimeEnvSetupError, and other tasks go on."""
    env = {"pip": {"packages": ["no-such-package-at-all"], "pip_install_options": ["--no-index"]}}
    f = session.remote(lambda: 1)
    with pytest.raises(session.exceptions.RuntimeEnvSetupError):
        session.get(f.options(runtime_env=env).remote(), timeout=120)
    assert session.get(f.remote()) == 1


@pytest.mark.differs("Ray runs conda where it is installed; here it is refused by name, as containers are.")
def test_conda(session):
    """`conda`, `container` and `image_uri` are refused with RuntimeEnvSetupError that names the field."""
    f = session.remote(lambda: 1)
    with pytest.raises(session.exceptions.RuntimeEnvSetupError, match="'conda' is not supported"):
        session.get(f.options(runtime_env={"conda": "base"}).remote(), timeout=60)


def test_context(session):
    """`get_runtime_context()` knows job, node, worker, task and actor ids, and assigned resources."""

    @session.remote(num_cpus=2)
    def ids():
        context = session.get_runtime_context()
        return (context.get_job_id(), context.get_node_id(), context.get_task_id(), context.get_worker_id(),
                context.get_actor_id(), context.get_assigned_resources())

    job, node, task, worker, actor, resources = session.get(ids.remote())
    own = session.get_runtime_context()
    assert (job, node) == (own.get_job_id(), own.get_node_id())
    assert len(task) == 48 and len(worker) == 56 and actor is None
    assert resources == {"CPU": 2.0}


def test_states(session, state):
    """`util.state` lists nodes, actors, jobs and placement groups with Ray's fields and states."""

    @session.remote
    class Listed:
        def ping(self):
            return True

    listed = Listed.options(name="compat-listed").remote()
    session.get(listed.ping.remote())
    [row] = [row for row in state.list_actors() if row.name == "compat-listed"]
    assert (row.state, row.class_name.rpartition(".")[2]) == ("ALIVE", "Listed")
    assert [node.state for node in state.list_nodes()] == ["ALIVE"]
    assert state.list_jobs()


def test_actor_pool(session):
    """`util.ActorPool` maps over actors, ordered and unordered."""

    @session.remote
    class Doubler:
        def double(self, x):
            return 2 * x

    pool = session.util.ActorPool([Doubler.remote(), Doubler.remote()])
    assert list(pool.map(lambda actor, x: actor.double.remote(x), range(6))) == [0, 2, 4, 6, 8, 10]
    unordered = pool.map_unordered(lambda actor, x: actor.double.remote(x), range(6))
    assert sorted(unordered) == [0, 2, 4, 6, 8, 10]


def test_queue(session):
    """`util.queue.Queue` has a size, blocks, raises Full and Empty, and moves batches."""
    import importlib

    queue = importlib.import_module(f"{session.__name__}.util.queue")
    line = queue.Queue(maxsize=2)
    line.put(1)
    line.put_nowait(2)
    with pytest.raises(queue.Full):
        line.put_nowait(3)
    assert (line.qsize(), line.full(), line.get(), line.get_nowait()) == (2, True, 1, 2)
    with pytest.raises(queue.Empty):
        line.get(timeout=0.1)
    line.put_nowait_batch([5, 6])
    assert line.get_nowait_batch(2) == [5, 6]
    line.shutdown()


def test_second_init(session):
    """A second `init` is a RuntimeError unless `ignore_reinit_error` is set."""
    with pytest.raises(RuntimeError):
        session.init()
    session.init(ignore_reinit_error=True)


def test_inspect_serializability(session):
    """`util.inspect_serializability` names the member that cannot be pickled."""
    import threading

    lock = threading.Lock()

    def holds():
        return lock

    works, failures = session.util.inspect_serializability(holds, name="holds")
    assert not works
    assert any("lock" in repr(failure) for failure in failures)


@pytest.mark.differs("Ray's names the time only.")
def test_reasons_in_timeouts(session):
    """GetTimeoutError says what the task waits for."""

    @session.remote(resources={"nowhere_compat": 1})
    def f():
        return 1

    with pytest.raises(session.exceptions.GetTimeoutError, match="nowhere_compat"):
        session.get(f.remote(), timeout=2)
