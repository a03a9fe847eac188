"""The storage contract, over every implementation; what a Redis goes through is at the end.

Damage to a file, and its repair: test_storage_damage.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from miniray.runtime import storage as st
from miniray.runtime import storage_care
from miniray.runtime.sqlite_storage import SqliteStorage
from tests.runtime.redis_server import RedisServer

Factory = Callable[[], st.Storage]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    directory = Path(tempfile.mkdtemp(prefix="miniray-redis-"))     # a socket's path must be short
    made = RedisServer(directory)
    yield made
    made.kill()
    shutil.rmtree(directory)


@pytest.fixture(params=["memory", "sqlite", "redis"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Factory:
    """Opens the same storage again, as another head would."""
    if request.param == "memory":
        tables = st.MemoryTables()
        return lambda: st.MemoryStorage(tables)
    if request.param == "redis":
        url = request.getfixturevalue("server").url
        return lambda: st.open_storage(url)
    return lambda: SqliteStorage(str(tmp_path / "dir" / "gcs.db"))


def rows(storage: st.Storage) -> list[st.Row]:
    return sorted(storage.load())


def test_what_was_applied_is_loaded_by_the_next_head(reopen: Factory) -> None:
    first = reopen()
    first.claim()
    first.apply([("kv", b"a", b"1"), ("kv", b"b", b""), ("job", b"a", b"\x00\xff")])
    first.apply([("kv", b"a", b"2"), ("job", b"a", None), ("job", b"never", None)])
    first.close()
    second = reopen()
    assert rows(second) == [("kv", b"a", b"2"), ("kv", b"b", b"")]
    second.close()


def test_the_last_change_of_a_row_in_a_batch_counts(reopen: Factory) -> None:
    storage = reopen()
    storage.claim()
    storage.apply([("kv", b"a", b"1"), ("kv", b"a", None), ("kv", b"a", b"3")])
    storage.apply([("kv", b"b", b"1"), ("kv", b"b", None)])
    assert rows(storage) == [("kv", b"a", b"3")]
    storage.close()


def test_epochs_grow_with_every_claim(reopen: Factory) -> None:
    epochs = [reopen().claim() for _ in range(3)]
    assert epochs == sorted(set(epochs))


def test_heads_on_new_tables_are_later_than_those_on_tables_that_were_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = SqliteStorage(str(tmp_path / "lost.db"))
    last = [lost.claim() for _ in range(10)][-1]
    now = time.time() + 10      # so much later, and four a second
    monkeypatch.setattr(st.time, "time", lambda: now)
    new = SqliteStorage(str(tmp_path / "new.db")).claim()
    assert last < new < 1 << 32 and new == st.NoStorage().claim()
    monkeypatch.setattr(st.time, "time", lambda: now + 1)
    assert lost.claim() > new, "and those of tables that were found again are later than both"


def test_a_head_that_was_taken_over_cannot_write(reopen: Factory) -> None:
    old, new = reopen(), reopen()
    old.claim()
    old.apply([("kv", b"a", b"old")])
    new.claim()
    with pytest.raises(st.StorageFenced, match="another head"):
        old.apply([("kv", b"a", b"stale"), ("kv", b"b", b"stale")])
    new.apply([("kv", b"c", b"new")])
    assert rows(new) == [("kv", b"a", b"old"), ("kv", b"c", b"new")]


def test_an_empty_batch_is_harmless(reopen: Factory) -> None:
    storage = reopen()
    storage.claim()
    storage.apply([])
    assert storage.load() == []


def test_keys_and_values_are_any_bytes(reopen: Factory) -> None:
    storage = reopen()
    storage.claim()
    odd = [("kv", bytes(range(256)), bytes(range(256)) * 500), ("kv", b"", b""), ("job", b"\0", b"\0")]
    storage.apply(odd)
    storage.close()
    assert rows(reopen()) == sorted(odd)


def test_a_large_batch_is_written_whole(reopen: Factory) -> None:
    storage = reopen()
    storage.claim()
    many = [("kv", b"%06d" % index, b"x" * 100) for index in range(20_000)]
    storage.apply(many)
    storage.apply([("kv", key, None) for _, key, _ in many[1:]])
    assert rows(storage) == many[:1]
    storage.close()


def test_a_batch_survives_kill_9_right_after_apply(tmp_path: Path) -> None:
    path = tmp_path / "gcs.db"
    program = (
        "import os, sys; from miniray.runtime.sqlite_storage import SqliteStorage\n"
        "s = SqliteStorage(sys.argv[1]); s.claim()\n"
        "s.apply([('kv', b'k%d' % i, b'v') for i in range(100)]); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)]).returncode == -9
    assert len(SqliteStorage(str(path)).load()) == 100


def test_the_file_is_private(tmp_path: Path) -> None:
    SqliteStorage(str(tmp_path / "gcs.db"))
    assert (tmp_path / "gcs.db").stat().st_mode & 0o777 == 0o600


def test_urls_pick_the_implementation(tmp_path: Path) -> None:
    assert isinstance(st.open_storage(""), st.NoStorage)
    assert isinstance(st.open_storage("none:"), st.NoStorage)
    assert isinstance(st.open_storage(f"sqlite:{tmp_path}/a.db"), SqliteStorage)
    assert isinstance(st.open_storage(f"{tmp_path}/b.db"), SqliteStorage)
    with pytest.raises(st.StorageError, match="not known"):
        st.open_storage("oracle://x")


# ---- Redis


def client(server: RedisServer) -> Any:
    import redis

    return redis.Redis(unix_socket_path=str(server.socket))


def test_what_redis_acknowledged_survives_its_kill_and_a_batch_waits_for_it(server: RedisServer) -> None:
    storage = st.open_storage(server.url)
    storage.claim()
    storage.apply([("kv", b"a", b"1")])
    server.kill()
    server.start()
    storage.apply([("kv", b"b", b"2")])
    assert rows(storage) == [("kv", b"a", b"1"), ("kv", b"b", b"2")]
    storage.close()


def test_a_redis_that_answers_before_it_writes_is_refused_with_what_to_do(server: RedisServer) -> None:
    with client(server) as one:
        one.config_set("appendfsync", "everysec")
    with pytest.raises(st.StorageError, match="config set appendfsync always"):
        st.open_storage(server.url)
    storage = st.open_storage(server.url + "?durability=memory")
    storage.claim()
    storage.apply([("kv", b"a", b"1")])
    assert rows(storage) == [("kv", b"a", b"1")]
    storage.close()


def test_damage_in_redis_is_refused_by_kind(server: RedisServer) -> None:
    storage = st.open_storage(server.url)
    storage.claim()
    storage.apply([("kv", b"a", b"1"), ("kv", b"b", b"2")])
    with client(server) as one:
        one.hset("miniray:rows", b"kv\0a", b"garbage")
        with pytest.raises(st.StorageCorrupted, match="storage repair unix:"):
            storage.load()
        storage.close()
        assert "has changed" in storage_care.check(server.url).problem
        here = os.getcwd()
        os.chdir(tempfile.gettempdir())
        try:
            done = storage_care.repair(server.url)
        finally:
            os.chdir(here)
        assert done.kept == {"kv": 1} and os.path.exists(done.aside)
        os.unlink(done.aside)
        assert rows(st.open_storage(server.url)) == [("kv", b"b", b"2")]
        one.hset("miniray:state", "format", 99)
        with pytest.raises(st.StorageVersion, match="later miniray"):
            st.open_storage(server.url)
        one.delete("miniray:state")
        with pytest.raises(st.StorageCorrupted, match="is there without"):
            st.open_storage(server.url)
        one.flushdb()
        one.set("miniray:state", "somebody else's")
        with pytest.raises(st.StorageForeign, match="another program"):
            st.open_storage(server.url)
        one.flushdb()
        full = st.open_storage(server.url)
        full.claim()
        one.config_set("maxmemory", 1)
        with pytest.raises(st.StorageFull, match="no room"):
            full.apply([("kv", b"a", b"1")])


def test_a_redis_that_is_not_there_and_a_bad_url_are_said_without_the_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    redis_storage = pytest.importorskip("miniray.runtime.redis_storage")
    pytest.importorskip("redis")
    monkeypatch.setattr(redis_storage, "AWAY_S", 0.2)
    with pytest.raises(st.StorageError, match="cannot be reached") as caught:
        st.open_storage("redis://me:secret@127.0.0.1:1/0")
    assert "secret" not in str(caught.value)
    with pytest.raises(st.StorageError, match="durability=soon"):
        st.open_storage("redis://127.0.0.1:1/0?durability=soon")
