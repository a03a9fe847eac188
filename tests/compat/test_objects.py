"""Objects"""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest


def test_put_and_get(session):
    """`put` and `get` return equal values of any type that pickles."""
    for value in (None, 1, "text", b"bytes", [1, {"a": (2,)}], {1, 2}, 3j):
        assert session.get(session.put(value)) == value


def test_arrays_are_read_only_views(session):
    """numpy arrays come back read-only and without a copy."""
    array = session.get(session.put(np.arange(200_000)))
    assert array.sum() == 199_999 * 100_000
    with pytest.raises(ValueError):
        array[0] = 1


def test_put_of_a_reference(session):
    """`put` of an ObjectRef is a TypeError."""
    with pytest.raises(TypeError):
        session.put(session.put(1))


def test_wait(session):
    """`wait` returns (ready, rest), at most `num_returns` ready ones; wrong arguments are refused."""
    refs = [session.put(i) for i in range(5)]
    ready, rest = session.wait(refs, num_returns=2)
    assert (len(ready), len(rest)) == (2, 3)
    assert {*ready, *rest} == set(refs)
    with pytest.raises(ValueError):
        session.wait(refs, num_returns=6)
    with pytest.raises(ValueError):
        session.wait([refs[0], refs[0]])
    with pytest.raises(TypeError):
        session.wait(refs[0])
    assert session.wait([]) == ([], [])


@pytest.mark.differs("Ray may take any of those that are ready.")
def test_wait_keeps_the_order(session):
    """`wait` takes the first of those that are ready, in the order given."""
    refs = [session.put(i) for i in range(5)]
    ready, rest = session.wait(refs, num_returns=2)
    assert ready + rest == refs


def test_get_timeout(session):
    """`get(timeout=…)` raises GetTimeoutError, which is a TimeoutError; 0 looks once."""

    @session.remote
    def never():
        import time

        time.sleep(60)

    ref = never.remote()
    with pytest.raises(session.exceptions.GetTimeoutError):
        session.get(ref, timeout=0.1)
    with pytest.raises(TimeoutError):
        session.get(ref, timeout=0)
    session.cancel(ref, force=True)


def test_references_in_values(session):
    """A reference inside a value keeps its object alive for whoever gets the value."""
    outer = session.put([session.put("inner")])
    assert session.get(session.get(outer)[0]) == "inner"


def test_references_compare(session):
    """References are equal by object, hash alike, copy, and have ids in hex and bytes."""
    ref = session.put(1)
    twin = copy.copy(ref)
    assert twin == ref and hash(twin) == hash(ref)
    assert len(ref.binary()) == 28 and ref.hex() == ref.binary().hex()
    assert ref != session.put(1)


async def test_awaiting(session):
    """`await ref` and `asyncio.gather` of references work in the driver."""
    import asyncio

    @session.remote
    def f(x):
        return x

    assert await f.remote(1) == 1
    assert await asyncio.gather(f.remote(2), f.remote(3)) == [2, 3]


def test_futures(session):
    """`ref.future()` is a concurrent future of the value."""

    @session.remote
    def f():
        return "value"

    assert f.remote().future().result(60) == "value"


def test_own_serializers(session):
    """`util.register_serializer` decides how a type travels, until it is deregistered."""

    class Odd:
        def __init__(self, value):
            self.value = value

        def __reduce__(self):
            raise TypeError("not by itself")

    session.util.register_serializer(Odd, serializer=lambda o: o.value, deserializer=Odd)
    assert session.get(session.put(Odd(5))).value == 5
    session.util.deregister_serializer(Odd)
    with pytest.raises(Exception, match="not by itself"):
        session.put(Odd(5))


def test_what_cannot_be_pickled(session):
    """A value that cannot be pickled is refused by `put` and as an argument, with a TypeError."""
    import threading

    with pytest.raises(TypeError):
        session.put(threading.Lock())
    lock = threading.Lock()

    @session.remote
    def f():
        return lock

    with pytest.raises(TypeError):
        f.remote()


def test_exceptions_as_values(session):
    """An exception is a value like any other when it is returned or put."""
    back = session.get(session.put(ValueError("kept")))
    assert isinstance(back, ValueError) and str(back) == "kept"


def test_pickled_references(session):
    """A reference survives `cloudpickle` in the same session."""
    ref = session.put("kept")
    assert session.get(pickle.loads(session.cloudpickle.dumps(ref))) == "kept"
