"""Public ids: sizes, forms, nesting, equality."""

from __future__ import annotations

import pickle

import pytest

import miniray as ray
from miniray import ids

CLASSES = [
    (ray.JobID, 4),
    (ray.ActorID, 16),
    (ray.TaskID, 24),
    (ray.NodeID, 28),
    (ray.WorkerID, 28),
    (ray.UniqueID, 28),
    (ray.ClusterID, 28),
    (ray.FunctionID, 28),
    (ray.ActorClassID, 28),
    (ray.PlacementGroupID, 18),
]


@pytest.mark.parametrize(("kind", "size"), CLASSES)
def test_forms_agree(kind, size):
    one = kind.from_random()
    assert len(one.binary()) == kind.size() == size
    assert kind.from_hex(one.hex()) == kind.from_binary(one.binary()) == one
    assert hash(kind(one.binary())) == hash(one)
    assert pickle.loads(pickle.dumps(one)) == one
    assert repr(one) == f"{kind.__name__}({one.hex()})"
    assert bytes(one) == one.binary()
    assert not one.is_nil()
    assert kind.nil().is_nil()


@pytest.mark.parametrize(("kind", "size"), CLASSES)
def test_wrong_length_is_an_error(kind, size):
    with pytest.raises(ValueError, match=f"needs to have length {size}, got 3"):
        kind(b"abc")
    with pytest.raises(TypeError):
        kind("abc")


def test_ids_of_different_classes_differ():
    raw = ray.NodeID.from_random().binary()
    assert ray.NodeID(raw) != ray.WorkerID(raw)


def test_lineage_is_read_off_an_id():
    job = ray.JobID.from_int(7)
    actor = ray.ActorID.of(job)
    assert job.int() == 7
    assert actor.job_id == job
    task = ray.TaskID(bytes(8) + actor.binary())
    assert task.actor_id() == actor
    assert task.job_id() == job
    ref = ray.ObjectRef(task.binary() + bytes(4))
    assert ref.task_id() == task
    assert ref.job_id() == job


def test_bare_reference():
    ref = ray.ObjectRef.from_random()
    assert len(ref.binary()) == 28
    assert ray.ObjectRef(ref.binary()) == ref
    assert hash(ray.ObjectRef(ref.binary())) == hash(ref)
    assert str(ref) == f"ObjectRef({ref.hex()})"
    assert ray.ObjectRef.nil().is_nil()
    assert ray.ObjectID is ray.ObjectRef
    assert {ref: 1}[ray.ObjectRef(ref.binary())] == 1
    with pytest.raises(ValueError):
        ray.ObjectRef(b"0123456789")


def test_reference_is_generic():
    assert ids.ObjectRef[int] is not None
