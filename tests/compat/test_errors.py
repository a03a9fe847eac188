"""Errors"""

from __future__ import annotations

import pickle

import pytest


def test_both_types(session):
    """What a task raises comes out of `get` as RayTaskError and as the user's own type."""

    @session.remote
    def fail():
        raise KeyError("missing")

    with pytest.raises(KeyError) as caught:
        session.get(fail.remote())
    assert isinstance(caught.value, session.exceptions.RayTaskError)
    assert "missing" in str(caught.value) and "fail" in str(caught.value)


def test_cause(session):
    """`.cause` is the original exception."""

    @session.remote
    def fail():
        raise ValueError("why")

    with pytest.raises(session.exceptions.RayTaskError) as caught:
        session.get(fail.remote())
    assert type(caught.value.cause) is ValueError


def test_errors_pass_on(session):
    """An error of an argument is the error of the task that takes it; the task does not run."""

    @session.remote
    def fail():
        raise ZeroDivisionError("first")

    @session.remote
    def use(x):
        return x

    with pytest.raises(ZeroDivisionError, match="first"):
        session.get(use.remote(fail.remote()))


def test_odd_constructors(session):
    """Exceptions whose constructors take other arguments travel too."""

    class Odd(Exception):
        def __init__(self, a, *, b):
            super().__init__(f"{a}-{b}")
            self.a, self.b = a, b

    @session.remote
    def fail():
        raise Odd(1, b=2)

    with pytest.raises(Exception, match="1-2"):
        session.get(fail.remote())


@pytest.mark.differs("Ray's type is made when the error arrives, and only cloudpickle can pickle it.")
def test_errors_pickle(session):
    """Errors that `get` raised can be pickled with `pickle`."""

    @session.remote
    def fail():
        raise ValueError("travels")

    with pytest.raises(ValueError) as caught:
        session.get(fail.remote())
    assert "travels" in str(pickle.loads(pickle.dumps(caught.value)))


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("ActorDiedError", "RayActorError"), ("ActorUnavailableError", "RayActorError"),
        ("ObjectReconstructionFailedError", "ObjectLostError"), ("OwnerDiedError", "ObjectLostError"),
        ("ObjectFreedError", "ObjectLostError"), ("TaskCancelledError", "RayError"),
        ("WorkerCrashedError", "RayError"), ("GetTimeoutError", "RayError"),
        ("RuntimeEnvSetupError", "RayError"), ("ObjectStoreFullError", "RayError"),
        ("NodeDiedError", "RayError"), ("OutOfMemoryError", "RayError"),
        ("TaskUnschedulableError", "RayError"), ("ActorUnschedulableError", "RayError"),
    ],
)  # fmt: skip
def test_the_tree(ray, name, base):
    """The tree of `exceptions` is the same."""
    assert issubclass(getattr(ray.exceptions, name), getattr(ray.exceptions, base))


def test_system_exit(session):
    """`sys.exit` in a task ends its worker: the task fails with a RayError."""

    @session.remote(max_retries=0)
    def leave():
        import sys

        sys.exit(3)

    with pytest.raises(session.exceptions.RayError):
        session.get(leave.remote(), timeout=60)
