"""Requests that ask for too much are refused with the field, the figure and the limit."""

from __future__ import annotations

import pytest
from head_world import World

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray._proto import worker_pb2 as wire
from miniray.core.head import Answer
from miniray.core.limits import MAX_AMOUNT, MAX_ID_BYTES, MAX_ITEMS, MAX_RESOURCES, MAX_TEXT, problem


def register(**amounts: int) -> gcs.ControlRequest:
    spec = pb.ActorSpec(actor_id=b"a" * 16, class_name="A")
    for name, amount in amounts.items():
        spec.creation_class.resources.amounts[name] = amount
    return gcs.ControlRequest(actor_register=gcs.ActorRegister(spec=spec))


def test_what_programs_ask_is_nothing_to_speak_of() -> None:
    assert problem(register(CPU=10_000, memory=64 * 2**30 * 10_000)) == ""
    assert problem(gcs.ControlRequest(kv_put=gcs.KvPut(key=b"k", value=bytes(10 << 20)))) == ""
    assert problem(gcs.ControlRequest()) == ""


@pytest.mark.parametrize("amount", [-1, -(2**63), 2**63 - 1, MAX_AMOUNT + 1])
def test_amounts_that_cannot_be_are_named(amount: int) -> None:
    found = problem(register(special=amount))
    assert "actor_register.spec.creation_class.resources" in found and "'special'" in found


def test_so_many_resources_are_counted_not_looked_at() -> None:
    found = problem(register(**{f"r{n}": 1 for n in range(MAX_RESOURCES + 1)}))
    assert f"{MAX_RESOURCES + 1} resources" in found


def test_ids_have_a_length() -> None:
    assert problem(gcs.ControlRequest(actor_lookup=gcs.ActorLookup(actor_id=bytes(MAX_ID_BYTES)))) == ""
    long = gcs.ControlRequest(actor_lookup=gcs.ActorLookup(actor_id=bytes(10 << 20)))
    assert f"actor_lookup.actor_id has {10 << 20} bytes" in problem(long)
    assert "job_id" in problem(gcs.ControlRequest(job_id=bytes(1000), status=gcs.StatusQuery()))
    many = gcs.NodeList(node_ids=[b"n"] * (MAX_ITEMS + 1))
    assert f"node_list.node_ids has {MAX_ITEMS + 1} items" in problem(gcs.ControlRequest(node_list=many))
    assert "node_ids" in problem(gcs.ControlRequest(node_list=gcs.NodeList(node_ids=[bytes(1000)])))


def test_keys_names_and_texts_have_one_too() -> None:
    assert "kv_put.key" in problem(gcs.ControlRequest(kv_put=gcs.KvPut(key=bytes(1 << 20))))
    assert "kv_keys.prefix" in problem(gcs.ControlRequest(kv_keys=gcs.KvKeys(prefix=bytes(1 << 20))))
    lookup = gcs.ActorLookup(name="x" * (1 << 20))
    assert "actor_lookup.name" in problem(gcs.ControlRequest(actor_lookup=lookup))
    job = gcs.JobStart(entrypoint="x" * (MAX_TEXT + 1))
    assert "job_start.entrypoint" in problem(gcs.ControlRequest(job_start=job))
    job = gcs.JobStart(metadata={"a": "x" * (MAX_TEXT + 1)})
    assert "job_start.metadata" in problem(gcs.ControlRequest(job_start=job))


def test_leases_too() -> None:
    request = wire.LeaseRequest()
    request.scheduling_class.resources.amounts["CPU"] = -5
    assert "scheduling_class.resources asks for" in problem(request)


def test_the_head_refuses_before_anything_else_looks() -> None:
    world = World(CPU=1)
    ticket = world.next_request = world.next_request + 1
    world.head.request(world.now, register(special=-1), ticket)
    (answer,) = [effect.reply for effect in world.head.out if isinstance(effect, Answer)]
    assert answer.failure.kind == pb.INVALID_ARGUMENT and "'special'" in answer.failure.message
    assert not world.head.actors.registry.records
