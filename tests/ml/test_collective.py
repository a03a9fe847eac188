"""util.collective: every operation between two and three processes, and what goes wrong."""

from __future__ import annotations

import uuid

import numpy as np
import pytest

import miniray as ray
from miniray.util import collective
from miniray.util.collective import ReduceOp

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("ray_shared")


@ray.remote(num_cpus=0)
class Member:
    def join(self, size, rank, name="default", timeout=60_000):
        collective.init_collective_group(size, rank, "gloo", name, timeout)
        return collective.get_rank(name), collective.get_collective_group_size(name)

    def run(self, function, *args):
        return function(*args)


def members(size: int, name: str = "default"):
    actors = [Member.remote() for _ in range(size)]
    joined = ray.get([actor.join.remote(size, rank, name) for rank, actor in enumerate(actors)])
    assert joined == [(rank, size) for rank in range(size)]
    return actors


def on_each(actors, function):
    return ray.get([actor.run.remote(function, rank) for rank, actor in enumerate(actors)])


def reduced(rank, op):
    value = np.array([1.0 + rank, 4.0 - rank])
    collective.allreduce(value, op=op)
    return value.tolist()


def every_operation(rank):
    import torch

    out = {}
    for op in ReduceOp:
        out[op.name] = reduced(rank, op)
    tensor = torch.full((2,), float(rank))
    collective.broadcast(tensor, src_rank=2)
    out["broadcast"] = tensor.tolist()
    total = np.array([rank], np.int64)
    collective.reduce(total, dst_rank=1)
    out["reduce"] = total.tolist() if rank == 1 else None
    gathered = [np.zeros(1) for _ in range(3)]
    collective.allgather(gathered, np.array([10.0 * rank]))
    out["allgather"] = [part.item() for part in gathered]
    share = np.zeros(1)
    collective.reducescatter(share, [np.array([float(rank + r)]) for r in range(3)])
    out["reducescatter"] = share.item()
    passed = np.zeros(1)
    if rank == 0:
        collective.send(np.array([7.0]), 2)
    elif rank == 2:
        collective.recv(passed, 0)
    out["sent"] = passed.item()
    collective.barrier()
    return out


def test_every_operation_among_three():
    found = on_each(members(3), every_operation)
    for rank, out in enumerate(found):
        assert out["SUM"] == [6.0, 9.0] and out["PRODUCT"] == [6.0, 24.0]
        assert out["MIN"] == [1.0, 2.0] and out["MAX"] == [3.0, 4.0]
        assert out["broadcast"] == [2.0, 2.0]
        assert out["allgather"] == [0.0, 10.0, 20.0]
        assert out["reducescatter"] == 3.0 + 3 * rank
        assert out["sent"] == (7.0 if rank == 2 else 0.0)
    assert found[1]["reduce"] == [3]


@pytest.mark.slow
def test_a_group_is_left_and_made_again_under_its_name():
    actors = members(2)

    def leave(rank):
        collective.destroy_collective_group()
        return collective.is_group_initialized(), collective.get_rank()

    for _ in range(2):
        assert on_each(actors, lambda rank: reduced(rank, ReduceOp.SUM)) == [[3.0, 7.0]] * 2
        assert on_each(actors, leave) == [(False, -1)] * 2
        ray.get([actor.join.remote(2, rank) for rank, actor in enumerate(actors)])
    on_each(actors, leave)


@pytest.mark.slow
def test_a_declared_group_is_joined_at_the_first_operation():
    name = f"declared-{uuid.uuid4().hex}"
    actors = [Member.remote() for _ in range(2)]
    collective.create_collective_group(actors, 2, [1, 0], "gloo", name)
    with pytest.raises(RuntimeError, match="twice"):
        collective.create_collective_group(actors, 2, [1, 0], "gloo", name)

    def summed(rank):
        value = np.ones(1)
        collective.allreduce(value, name)
        return value.item(), collective.get_rank(name)

    assert on_each(actors, summed) == [(2.0, 1), (2.0, 0)]


@pytest.mark.slow
def test_two_groups_of_one_process_do_not_mix():
    names = [uuid.uuid4().hex for _ in range(2)]
    actors = members(2, names[0])
    ray.get([actor.join.remote(2, 1 - rank, names[1]) for rank, actor in enumerate(actors)])

    def both(rank):
        values = [np.array([float(rank)]), np.array([float(rank)])]
        for value, name in zip(values, names):
            collective.broadcast(value, 0, name)
        return [value.item() for value in values]

    assert on_each(actors, both) == [[0.0, 1.0]] * 2


# ---- what goes wrong


@pytest.mark.slow
def test_a_rank_that_does_not_come_is_named():
    alone = Member.remote()
    with pytest.raises(TimeoutError, match="rank 0 cannot join .*: rank 1 of 2 did not come within 0.2 s"):
        ray.get(alone.join.remote(2, 0, uuid.uuid4().hex, 200))


def test_the_death_of_a_member_ends_the_operation():
    name = uuid.uuid4().hex
    actors = members(2, name)
    ray.kill(actors[1])

    def summed(rank):
        collective.allreduce(np.ones(1), name)

    with pytest.raises(RuntimeError, match=f"allreduce of rank 0 in collective group '{name}' failed"):
        ray.get(actors[0].run.remote(summed, 0))


def test_wrong_calls():
    with pytest.raises(RuntimeError, match="inside a Ray actor or task"):
        collective.init_collective_group(1, 0, "gloo")
    assert not collective.is_backend_available("carrier pigeon")
    with pytest.raises(RuntimeError, match="correspond to one rank"):
        collective.create_collective_group([], 1, [0], "gloo")

    def wrong(rank):
        name = uuid.uuid4().hex
        errors = []
        for call in (
            lambda: collective.allreduce(np.ones(1), name),
            lambda: collective.init_collective_group(1, 1, "gloo", name),
            lambda: collective.init_collective_group(1, 0, "carrier pigeon", name),
            lambda: collective.init_collective_group(1, 0, "gloo", name),
            lambda: collective.init_collective_group(1, 0, "gloo", name),
            lambda: collective.allreduce([1.0], name),
            lambda: collective.broadcast(np.ones(1), 1, name),
            lambda: collective.send(np.ones(1), 0, name),
            lambda: collective.allgather([np.ones(1)] * 2, np.ones(1), name),
            lambda: collective.allreduce(np.frombuffer(b"12345678"), name),
        ):
            try:
                call()
                errors.append("")
            except Exception as error:
                errors.append(str(error))
        return errors

    (errors,) = on_each([Member.remote()], wrong)
    expected = [
        "is not initialized in the process", "ranks are 0 to 0", "Unrecognized backend", "",
        "a second time", "Unrecognized tensor type", "must be less than world size", "is self",
        "2 tensors, 1 ranks", "read-only",
    ]  # fmt: skip
    assert len(errors) == len(expected)
    for error, part in zip(errors, expected):
        assert part in error and bool(error) == bool(part), (part, error)
