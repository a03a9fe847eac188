"""Tasks"""

from __future__ import annotations

import time

import pytest


def test_results_by_reference(session):
    """`f.remote(…)` returns an ObjectRef at once, `get` its value, and `get` of a list keeps the order."""

    @session.remote
    def square(x):
        return x * x

    refs = [square.remote(i) for i in range(10)]
    assert all(isinstance(ref, session.ObjectRef) for ref in refs)
    assert session.get(refs[3]) == 9
    assert session.get(refs) == [i * i for i in range(10)]


def test_a_direct_call_is_an_error(session):
    """Calling a remote function without `.remote` is a TypeError that says so."""

    @session.remote
    def f():
        return 1

    with pytest.raises(TypeError, match="remote"):
        f()


def test_arguments(session):
    """Defaults, keywords, `*args` and `**kwargs` work; a wrong call is a TypeError before anything runs."""

    @session.remote
    def f(a, b=2, *rest, c=3, **more):
        return a, b, rest, c, more

    assert session.get(f.remote(1)) == (1, 2, (), 3, {})
    assert session.get(f.remote(1, 5, 6, c=7, d=8)) == (1, 5, (6,), 7, {"d": 8})
    with pytest.raises(TypeError):
        f.remote()


def test_references_as_arguments(session):
    """A reference given directly arrives as its value; inside a container it stays a reference."""

    @session.remote
    def kind(x):
        return type(x).__name__

    ref = session.put([1])
    assert session.get(kind.remote(ref)) == "list"

    @session.remote
    def inside(x):
        return type(x[0]).__name__, session.get(x[0])

    assert session.get(inside.remote([ref])) == ("ObjectRef", [1])


def test_several_results(session):
    """`num_returns=n` gives n references; the wrong number of values is a ValueError at `get`."""

    @session.remote(num_returns=3)
    def three(n):
        return tuple(range(n))

    a, b, c = three.remote(3)
    assert session.get([a, b, c]) == [0, 1, 2]
    with pytest.raises(ValueError):
        session.get(three.remote(2))
    assert three.options(num_returns=0).remote(0) is None


def test_generators(session):
    """A generator function streams its values as references, in order, while it runs."""

    @session.remote
    def count(n):
        for i in range(n):
            yield i + 0

    assert [session.get(ref) for ref in count.remote(5)] == [0, 1, 2, 3, 4]


@pytest.mark.differs("Ray 2.60 sends into the inner iterator, which only generators can take.")
def test_generators_of_iterators(session):
    """A generator may `yield from` any iterable."""

    @session.remote
    def count(n):
        yield from range(n)

    assert [session.get(ref) for ref in count.remote(3)] == [0, 1, 2]


def test_errors_midway_in_generators(session):
    """What a generator yields before it raises is there; the error comes as the next reference."""

    @session.remote
    def broken():
        yield 1
        raise ValueError("midway")

    stream = broken.remote()
    assert session.get(next(stream)) == 1
    with pytest.raises(ValueError, match="midway"):
        session.get(next(stream))
    with pytest.raises(StopIteration):
        next(stream)


def test_nested_tasks(session):
    """Tasks start tasks and wait for them; who waits lends its CPU, so recursion does not deadlock."""

    @session.remote
    def fib(n):
        return n if n < 2 else sum(session.get([fib.remote(n - 1), fib.remote(n - 2)]))

    assert session.get(fib.remote(6), timeout=60) == 8


def test_retries_after_a_death(session, tmp_path):
    """A task whose worker dies runs again, up to `max_retries`; then WorkerCrashedError."""

    @session.remote(max_retries=1)
    def dies(path, times):
        import os

        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) <= times:
            os._exit(1)
        return os.path.getsize(path)

    assert session.get(dies.remote(str(tmp_path / "once"), 1)) == 2
    with pytest.raises(session.exceptions.WorkerCrashedError):
        session.get(dies.remote(str(tmp_path / "twice"), 5))


def test_retries_after_an_exception(session, tmp_path):
    """Exceptions are retried only if asked for: `retry_exceptions` True, or a list of types."""

    @session.remote(max_retries=2)
    def fails(path):
        import os

        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) < 3:
            raise KeyError("again")
        return os.path.getsize(path)

    with pytest.raises(KeyError):
        session.get(fails.remote(str(tmp_path / "a")))
    assert session.get(fails.options(retry_exceptions=True).remote(str(tmp_path / "b"))) == 3
    assert session.get(fails.options(retry_exceptions=[KeyError]).remote(str(tmp_path / "c"))) == 3
    with pytest.raises(KeyError):
        session.get(fails.options(retry_exceptions=[ValueError]).remote(str(tmp_path / "d")))


def test_cancelling(session, tmp_path):
    """`cancel` ends a task that waits or runs; `get` raises TaskCancelledError."""

    @session.remote(max_retries=0)
    def slow(path):
        with open(path, "w"):
            pass
        while True:
            time.sleep(0.05)

    running = slow.remote(str(tmp_path / "running"))
    while not (tmp_path / "running").exists():
        time.sleep(0.05)
    waiting = slow.options(num_cpus=4).remote(str(tmp_path / "waiting"))
    for ref in (waiting, running):
        session.cancel(ref)
        with pytest.raises((session.exceptions.TaskCancelledError, session.exceptions.RayTaskError)):
            session.get(ref, timeout=60)
    assert not (tmp_path / "waiting").exists()


def test_option_checks(session):
    """Unknown options, and values of the wrong type or range, are refused where they are given."""
    with pytest.raises(ValueError):
        session.remote(colour="red")(lambda: None)
    with pytest.raises(TypeError):
        session.remote(num_cpus="one")(lambda: None)
    with pytest.raises(ValueError):
        session.remote(num_cpus=-1)(lambda: None)
    with pytest.raises(ValueError):
        session.remote(max_retries=-2)(lambda: None)


def test_closures_and_globals(session):
    """Functions carry their closure by value; lambdas and inner classes travel."""
    factor = 3

    class Box:
        def __init__(self, value):
            self.value = value

    f = session.remote(lambda box: box.value * factor)
    assert session.get(f.remote(Box(5))) == 15


def test_names(session, state):
    """A task has the name of its function, or the one of `name=`, in the state listings."""

    @session.remote
    def named():
        return session.get_runtime_context().get_task_id()

    task_id = session.get(named.options(name="given").remote())
    for _ in range(100):
        row = state.get_task(task_id)
        if row:
            break
        time.sleep(0.1)
    row = row[0] if isinstance(row, list) else row
    assert (row.name, row.type) == ("given", "NORMAL_TASK")


def test_titles(session):
    """A process is titled `ray::` and the function or method that it runs."""

    def title():
        with open("/proc/self/cmdline") as file:
            return file.read().split("\0")[0]

    @session.remote
    def task():
        return title()

    @session.remote(num_cpus=0)
    class Actor:
        def method(self):
            return title()

    assert session.get(task.remote()) == "ray::task"
    assert session.get(task.options(name="other").remote()) == "ray::other"
    assert session.get(Actor.remote().method.remote()) == "ray::Actor.method"


def test_forced_cancel(session, tmp_path):
    """`cancel(force=True)` ends the worker, and is TaskCancelledError as well."""

    @session.remote(max_retries=0)
    def sleeps(path):
        open(path, "w").close()
        time.sleep(600)

    ref = sleeps.remote(str(tmp_path / "begun"))
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    session.cancel(ref, force=True)
    with pytest.raises(session.exceptions.TaskCancelledError):
        session.get(ref, timeout=60)


def test_last_calls(session):
    """A worker that has reached `max_calls` stays while what it owns is needed."""

    @session.remote
    def child():
        time.sleep(0.2)
        return "done"

    @session.remote(max_calls=1)
    def parent():
        return [child.remote()]

    lists = session.get([parent.remote() for _ in range(3)], timeout=60)
    assert session.get([one for (one,) in lists], timeout=60) == ["done"] * 3
