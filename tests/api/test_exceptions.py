"""Errors: their tree, their texts, and that every one survives the way through bytes."""

from __future__ import annotations

import pickle
import sys
import threading

import pytest

from miniray import exceptions
from miniray._proto import common_pb2 as pb
from miniray.runtime import errors


def travelled(error):
    return errors.raised(errors.unpack_exception(errors.pack_exception(error)))


def task_error_of(function):
    try:
        function()
    except BaseException as error:
        return errors.task_error(error, "f", pid=7, ip="10.0.0.1")
    raise AssertionError("it did not raise")


def boom():
    raise ValueError("boom")


def test_task_error_is_also_the_users_type():
    error = travelled(task_error_of(boom))
    assert isinstance(error, exceptions.RayTaskError)
    assert isinstance(error, ValueError)
    assert type(error).__name__ == "RayTaskError(ValueError)"
    assert isinstance(error.cause, ValueError)
    assert error.args == (error.cause,)


def test_task_error_shows_where_it_ran_and_user_frames_only():
    text = str(travelled(task_error_of(boom)))
    assert text.splitlines()[0] == "ray::f() (pid=7, ip=10.0.0.1)"
    assert "in boom" in text
    assert text.endswith("ValueError: boom")
    assert "/miniray/runtime/" not in text


def test_dual_error_stays_picklable():
    error = travelled(task_error_of(boom))
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, ValueError)
    assert isinstance(again, exceptions.RayTaskError)
    assert str(again) == str(error)


class TwoArguments(Exception):
    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")
        self.code = code


class KeywordOnly(Exception):
    def __init__(self, *, code):
        super().__init__(code)
        self.code = code


@pytest.mark.parametrize("make", [lambda: TwoArguments(3, "x"), lambda: KeywordOnly(code=3)])
def test_odd_constructor_survives(make):
    def fail():
        raise make()

    error = travelled(task_error_of(fail))
    assert isinstance(error, type(make()))
    assert error.code == 3
    assert str(error.cause) == str(make())


@pytest.mark.parametrize(
    ("error", "field"),
    [
        (OSError(2, "none"), "errno"),
        (SystemExit(3), "code"),
        (UnicodeDecodeError("utf8", b"a", 0, 1, "bad"), "reason"),
        (ImportError("no", name="m"), "name"),
        (StopIteration(5), "value"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_fields_of_builtin_errors_survive(error, field):
    def fail():
        raise error

    dual = travelled(task_error_of(fail))
    assert isinstance(dual, type(error))
    assert getattr(dual, field) == getattr(error, field)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups")
def test_exception_group_survives():
    def fail():
        raise ExceptionGroup("two", [ValueError(1), KeyError(2)])  # noqa: F821

    error = travelled(task_error_of(fail))
    assert isinstance(error, ExceptionGroup)  # noqa: F821
    assert [type(inner) for inner in error.exceptions] == [ValueError, KeyError]


class Unpicklable(Exception):
    def __init__(self):
        self.lock = threading.Lock()


def test_unpicklable_cause_degrades_to_text():
    def fail():
        raise Unpicklable

    error = travelled(task_error_of(fail))
    assert isinstance(error, exceptions.RayTaskError)
    assert "isn't serializable" in str(error.cause)
    assert "Unpicklable" in str(error)


class Unreadable(OSError):
    def __init__(self, needed):
        pass


def test_unreadable_pickle_gives_the_text():
    def fail():
        raise Unreadable("x")

    error = travelled(task_error_of(fail))
    assert isinstance(error, exceptions.UnserializableException)
    assert "Unreadable" in str(error)


class Final(Exception):
    def __init_subclass__(cls):
        raise TypeError("final")


def test_final_cause_is_raised_as_task_error_only(caplog):
    def fail():
        raise Final("x")

    with caplog.at_level("WARNING", logger="miniray.exceptions"):
        caplog.handler.setLevel("WARNING")
        error = errors.raised(task_error_of(fail))
    assert type(error) is exceptions.RayTaskError
    assert isinstance(error.cause, Final)


class ReadOnlyArgs(Exception):
    @property
    def args(self):
        return ("fixed",)


def test_cause_with_read_only_args():
    def fail():
        raise ReadOnlyArgs

    error = travelled(task_error_of(fail))
    assert isinstance(error, ReadOnlyArgs)
    assert error.args == (error.cause,)


def test_error_of_a_nested_task_keeps_the_first_cause():
    inner = travelled(task_error_of(boom))

    def outer():
        raise inner

    error = travelled(task_error_of(outer))
    assert type(error.cause) is ValueError
    assert "RayTaskError(ValueError): ray::f()" in str(error)


def test_dependency_error_says_so():
    error = travelled(errors.dependency_error(task_error_of(boom), "g"))
    assert isinstance(error, ValueError)
    assert "At least one of the input arguments for this task could not be computed" in str(error)
    assert str(error).startswith("ray::g()")


@pytest.mark.parametrize("kind", exceptions.RAY_EXCEPTION_TYPES, ids=lambda kind: kind.__name__)
def test_every_type_is_a_ray_error_and_pickles(kind):
    assert issubclass(kind, exceptions.RayError)
    error = kind.__new__(kind)
    error.__dict__["message"] = "text"
    again = pickle.loads(pickle.dumps(error)) if kind is not exceptions.RayTaskError else error
    assert type(again) is kind


def test_get_timeout_is_a_timeout_error():
    assert issubclass(exceptions.GetTimeoutError, TimeoutError)


def failure(kind, message="why", **fields):
    return pb.Failure(kind=kind, message=message, **fields)


TASK_OBJECT = bytes(8) + b"\xff" * 12 + bytes(8)
ACTOR_OBJECT = bytes(8) + b"\x01" * 16 + bytes(4)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (pb.WORKER_DIED, exceptions.WorkerCrashedError),
        (pb.NODE_DIED, exceptions.NodeDiedError),
        (pb.ACTOR_DIED, exceptions.ActorDiedError),
        (pb.ACTOR_UNSCHEDULABLE, exceptions.ActorUnschedulableError),
        (pb.OBJECT_LOST, exceptions.ObjectLostError),
        (pb.OWNER_DIED, exceptions.OwnerDiedError),
        (pb.TASK_CANCELLED, exceptions.TaskCancelledError),
        (pb.RUNTIME_ENV_FAILED, exceptions.RuntimeEnvSetupError),
        (pb.OUT_OF_MEMORY, exceptions.OutOfMemoryError),
        (pb.STORE_FULL, exceptions.ObjectStoreFullError),
        (pb.OUT_OF_DISK, exceptions.OutOfDiskError),
        (pb.INFEASIBLE, exceptions.TaskUnschedulableError),
        (pb.PLACEMENT_GROUP_REMOVED, exceptions.TaskPlacementGroupRemoved),
        (pb.ALREADY_EXISTS, exceptions.ActorAlreadyExistsError),
        (pb.NOT_FOUND, ValueError),
        (pb.INTERNAL, exceptions.RaySystemError),
    ],
)
def test_failures_have_their_types(kind, expected):
    error = errors.exception_of(failure(kind), object_id=TASK_OBJECT, task_name="f")
    assert type(error) is expected
    if expected not in (exceptions.TaskPlacementGroupRemoved,):
        assert "why" in str(error)


def test_actor_failures_name_the_actor():
    error = errors.exception_of(failure(pb.ACTOR_DIED, pid=5), object_id=ACTOR_OBJECT, task_name="A.f")
    assert error.actor_id == (b"\x01" * 16).hex()
    assert "class_name: A" in str(error)
    error = errors.exception_of(failure(pb.UNAVAILABLE), object_id=ACTOR_OBJECT)
    assert type(error) is exceptions.ActorUnavailableError
    assert "why" in str(error)


def test_failed_constructor_is_shown_with_its_traceback():
    cause = errors.task_error(ValueError("3"), "A.__init__", actor_id=b"\x01" * 16)
    error = errors.exception_of(
        failure(pb.ACTOR_DIED, payload=errors.pack_exception(cause)), object_id=ACTOR_OBJECT
    )
    assert type(error) is exceptions.ActorDiedError
    assert error.actor_init_failed
    assert "error raised in its creation task, ray::A.__init__()" in str(error)


def test_death_details_are_shown():
    error = errors.exception_of(
        failure(pb.WORKER_DIED, exit_detail="signal SIGKILL", stderr_tail="last words\n"),
        object_id=TASK_OBJECT,
    )
    assert "signal SIGKILL" in str(error)
    assert "last words" in str(error)


def test_lost_object_says_why_it_cannot_be_rebuilt():
    error = errors.exception_of(failure(pb.OBJECT_LOST, "PUT: it was put"), object_id=TASK_OBJECT)
    assert type(error) is exceptions.ObjectReconstructionFailedError
    assert "OBJECT_UNRECONSTRUCTABLE_PUT" in str(error)


def test_cancelled_task_is_named():
    error = errors.exception_of(failure(pb.TASK_CANCELLED), object_id=TASK_OBJECT)
    assert TASK_OBJECT[:24].hex() in str(error)
    assert "was cancelled" in str(error)


def test_to_bytes_and_back():
    error = exceptions.RayError.from_bytes(exceptions.ActorUnavailableError("busy", b"\x01" * 16).to_bytes())
    assert type(error) is exceptions.ActorUnavailableError
    assert "busy" in str(error)
