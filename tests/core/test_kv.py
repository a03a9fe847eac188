"""The key-value store: what a client reads is what was last acknowledged, across restarts too."""

from __future__ import annotations

import pytest

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core import ids, kv
from tests.core.head_world import World


@pytest.fixture
def world() -> World:
    return World(CPU=1)


def put(
    world: World, key: bytes, value: bytes, *, overwrite: bool = True, space: bytes = b"", request_id: int = 0
) -> bool:
    message = gcs.KvPut(namespace=space, key=key, value=value, overwrite=overwrite)
    return world.ask(request_id=request_id, kv_put=message).kv.added


def get(world: World, key: bytes, space: bytes = b"") -> bytes | None:
    reply = world.ask(kv_get=gcs.KvGet(namespace=space, key=key)).kv
    return reply.value if reply.found else None


def keys(world: World, prefix: bytes = b"", space: bytes = b"") -> list[bytes]:
    return list(world.ask(kv_keys=gcs.KvKeys(namespace=space, prefix=prefix)).kv_names.keys)


def delete(world: World, key: bytes, *, prefix: bool = False, request_id: int = 0) -> int:
    return world.ask(request_id=request_id, kv_delete=gcs.KvDelete(key=key, prefix=prefix)).count


def test_put_says_whether_the_key_is_new_and_overwrites_only_when_asked(world: World) -> None:
    assert put(world, b"k", b"1")
    assert not put(world, b"k", b"2")
    assert get(world, b"k") == b"2"
    assert not put(world, b"k", b"3", overwrite=False)
    assert get(world, b"k") == b"2" and get(world, b"other") is None


def test_an_empty_value_is_a_value(world: World) -> None:
    put(world, b"k", b"")
    assert get(world, b"k") == b""


def test_namespaces_are_apart(world: World) -> None:
    put(world, b"k", b"a", space=b"x")
    assert get(world, b"k") is None and get(world, b"k", b"x") == b"a"
    assert keys(world, space=b"x") == [b"k"] and keys(world) == []


def test_keys_and_deletion_by_prefix(world: World) -> None:
    for key in (b"b2", b"a", b"b1"):
        put(world, key, b"")
    assert keys(world) == [b"a", b"b1", b"b2"] and keys(world, b"b") == [b"b1", b"b2"]
    assert delete(world, b"b", prefix=True) == 2
    assert delete(world, b"a") == 1 and delete(world, b"a") == 0
    assert keys(world) == []


def test_everything_survives_a_restart(world: World) -> None:
    put(world, b"k", b"1", space=b"name\x00space")
    put(world, b"gone", b"1")
    delete(world, b"gone")
    world.start()
    world.join(1, CPU=1)
    assert get(world, b"k", b"name\x00space") == b"1" and get(world, b"gone") is None


def test_a_repeated_request_gets_its_first_answer_even_after_a_restart(world: World) -> None:
    """The raylet repeats what was not answered: a second `added` or count would be a lie."""
    assert put(world, b"lock", b"me", overwrite=False, request_id=500)
    assert put(world, b"lock", b"me", overwrite=False, request_id=500)
    world.start()
    world.join(1, CPU=1)
    assert put(world, b"lock", b"me", overwrite=False, request_id=500)
    assert not put(world, b"lock", b"you", overwrite=False, request_id=501)
    assert delete(world, b"lock", request_id=502) == 1
    assert delete(world, b"lock", request_id=502) == 1


def test_a_huge_value_is_refused_with_figures(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv, "MAX_VALUE_BYTES", 10)
    refused = world.ask(kv_put=gcs.KvPut(key=b"k", value=b"x" * 11)).failure
    assert refused.kind == pb.INVALID_ARGUMENT and "has 11 bytes, at most 10" in refused.message


def test_a_jobs_own_namespace_goes_with_its_last_actor(world: World) -> None:
    job = world.job()
    space = kv.JOB_PREFIX + job
    put(world, b"function", b"code", space=space)
    actor = world.make_actor(world.spec(1, detached=True))
    world.ask(job_finish=gcs.JobFinish(job_id=job))
    assert get(world, b"function", space) == b"code", "a detached actor may still need it"
    world.ask(actor_kill=gcs.ActorKill(actor_id=actor, no_restart=True))
    assert get(world, b"function", space) is None
    other = world.job(driver=2)
    assert other != job == ids.job_id(1)
