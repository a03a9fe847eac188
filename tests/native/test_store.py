"""The contract of Store, seen by one process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from miniray._native import Buffer, ObjectExists, Store, StoreFull
from tests.native.support import Child, client, eventually, oid, payload


def test_put_joins_parts_and_get_returns_them(store: Store) -> None:
    parts = [b"abc", bytearray(b"def"), memoryview(b"ghi"), np.arange(3, dtype=np.uint8), b""]
    assert store.put(oid(1), parts) == 12
    assert bytes(store.get(oid(1))) == b"abcdefghi\x00\x01\x02"
    assert store.contains(oid(1)) and store.size_of(oid(1)) == 12


def test_put_takes_many_parts(store: Store) -> None:
    parts = [payload(n, n) for n in range(200)]
    store.put(oid(1), parts)
    assert bytes(store.get(oid(1))) == b"".join(parts)


def test_absent_objects(store: Store) -> None:
    assert store.get(oid(1)) is None
    assert not store.contains(oid(1))
    assert store.size_of(oid(1)) is None
    assert store.pins(oid(1)) == []
    assert store.delete(oid(1)) is False
    for method in (store.seal, store.abort, store.mark_secondary, store.is_primary):
        with pytest.raises(KeyError, match=oid(1).hex()):
            method(oid(1))


@pytest.mark.parametrize("wrong", [b"", b"x" * 27, b"x" * 29])
def test_ids_have_28_bytes(store: Store, wrong: bytes) -> None:
    for call in (store.get, store.contains, store.delete, store.seal, store.size_of):
        with pytest.raises(ValueError, match="length 28"):
            call(wrong)
    with pytest.raises(ValueError, match="length 28"):
        store.put(wrong, [b"x"])
    with pytest.raises(ValueError, match="length 28"):
        store.wait([wrong], 1, 0)
    with pytest.raises(TypeError, match="bytes, not str"):
        store.get("x" * 28)  # type: ignore[arg-type]


def test_wrong_arguments_raise_and_leave_no_trace(store: Store) -> None:
    with pytest.raises(TypeError):
        store.put(oid(1), [b"x", 5])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        store.put(oid(1), 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="primry"):
        store.put(oid(1), [b"x"], primry=True)  # type: ignore[call-arg]
    with pytest.raises((OverflowError, TypeError)):
        store.create_object(oid(1), -1)
    assert store.list() == [] and store.stats()["used"] == 0


def test_an_id_is_taken_until_deleted(store: Store) -> None:
    store.put(oid(1), [b"a"])
    with pytest.raises(ObjectExists, match=oid(1).hex()):
        store.put(oid(1), [b"b"])
    view = store.create_object(oid(2), 1)
    with pytest.raises(ObjectExists):
        store.put(oid(2), [b"b"])
    del view
    store.abort(oid(2))
    assert store.delete(oid(1))
    store.put(oid(1), [b"b"])
    assert bytes(store.get(oid(1))) == b"b"


def test_zero_size_objects(store: Store) -> None:
    store.put(oid(1), [])
    store.put(oid(2), [b""])
    view = store.create_object(oid(3), 0)
    assert len(view) == 0
    store.seal(oid(3))
    assert [len(store.get(oid(n))) for n in (1, 2, 3)] == [0, 0, 0]
    assert store.stats()["used"] == 0
    assert store.delete(oid(1)) and store.get(oid(1)) is None


def test_unsealed_objects_are_invisible(store: Store) -> None:
    view = store.create_object(oid(1), 5)
    assert store.get(oid(1)) is None and not store.contains(oid(1))
    assert not store.delete(oid(1))
    view[:] = b"hello"
    store.seal(oid(1))
    assert bytes(store.get(oid(1))) == b"hello"
    with pytest.raises(ValueError):
        store.seal(oid(1))
    with pytest.raises(ValueError):
        store.abort(oid(1))


def test_abort_waits_for_the_writer(store: Store) -> None:
    view = store.create_object(oid(1), 100)
    store.abort(oid(1))
    assert store.list() == [(oid(1), 100, "deleting", 0, True)]
    view[:] = b"x" * 100  # still ours to write
    del view
    assert store.list() == [] and store.stats()["used"] == 0


def test_only_the_creator_seals_or_aborts(store: Store) -> None:
    view = store.create_object(oid(1), 4)

    def other(_peer: object, theirs: Store) -> None:
        for call in (theirs.seal, theirs.abort):
            with pytest.raises(ValueError, match="not an unsealed object of this client"):
                call(oid(1))

    child, _ = client(store, other)
    assert child.join() == 0
    del view
    store.abort(oid(1))


def test_data_is_aligned_to_64_bytes(store: Store) -> None:
    for n in range(20):
        store.put(oid(n), [payload(n, n * 7 + 1)])
        assert np.frombuffer(store.get(oid(n)), np.uint8).ctypes.data % 64 == 0


def test_primary_flag(store: Store) -> None:
    store.put(oid(1), [b"x"])
    store.put(oid(2), [b"x"], primary=False)
    assert store.is_primary(oid(1)) and not store.is_primary(oid(2))
    store.mark_secondary(oid(1))
    assert not store.is_primary(oid(1))
    assert [row[4] for row in store.list()] == [False, False]


def test_list_is_in_order_of_last_use(store: Store) -> None:
    for n in range(4):
        store.put(oid(n), [payload(n, 10 * n)])
    store.get(oid(0))
    store.get(oid(2))
    assert [(row[0], row[1], row[2]) for row in store.list()] == [
        (oid(n), 10 * n, "sealed") for n in (1, 3, 0, 2)
    ]


def test_a_full_store_says_what_was_needed(store: Store) -> None:
    with pytest.raises(StoreFull, match="more than the whole store has") as error:
        store.put(oid(1), [bytes(2 << 20)])
    assert error.value.needed == 2 << 20 and error.value.capacity == 1 << 20
    store.put(oid(2), [bytes(600 << 10)])
    with pytest.raises(StoreFull, match="no free block") as error:
        store.create_object(oid(3), 600 << 10)
    assert error.value.needed == 600 << 10
    assert len(store.list()) == 1
    store.delete(oid(2))
    store.put(oid(3), [bytes(600 << 10)])


def test_an_object_may_have_the_whole_capacity(store: Store) -> None:
    store.put(oid(1), [bytes(1 << 20)])
    store.delete(oid(1))
    with pytest.raises(StoreFull):
        store.put(oid(1), [bytes((1 << 20) + 4097)])


def test_a_full_table_raises_store_full() -> None:
    store = Store.create(1 << 20, slots=4)
    for n in range(4):
        store.put(oid(n), [b""])
    with pytest.raises(StoreFull, match="table is full"):
        store.put(oid(4), [b""])
    store.delete(oid(2))
    store.put(oid(4), [b""])
    store.check()


def test_a_huge_store_costs_nothing_until_used() -> None:
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    before = resident()
    started = time.perf_counter()
    store = Store.create(8 << 30)
    took = time.perf_counter() - started
    store.put(oid(1), [b"x" * 1000])
    assert resident() - before < 1 << 20
    assert took < 0.05, f"{took * 1000:.1f} ms"
    assert store.stats()["cold"] > (8 << 30) - (1 << 20)


def test_a_million_objects_fit_a_big_store() -> None:
    store = Store.create(8 << 30)
    ids = [oid(n) for n in range(100_000)]
    for each in ids:
        store.put(each, [b""])
    assert store.stats()["objects"] == 100_000
    with pytest.raises(OSError):
        Store.create(1 << 30, slots=1 << 31)
    store.check()


def test_large_puts_use_threads_and_are_whole() -> None:
    store = Store.create(128 << 20)
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 256, size, np.uint8) for size in (17 << 20, 3, 0, (9 << 20) + 5, 1 << 20)]
    size = store.put(oid(1), parts)
    assert size == sum(part.nbytes for part in parts)
    assert np.array_equal(np.frombuffer(store.get(oid(1)), np.uint8), np.concatenate(parts))


def test_wait_returns_what_is_sealed(store: Store) -> None:
    store.put(oid(1), [b"x"])
    store.put(oid(3), [b"x"])
    assert store.wait([oid(1), oid(2), oid(3)], 2, 10) == [oid(1), oid(3)]
    assert store.wait([oid(1), oid(2)], 2, 0) == [oid(1)]
    assert store.wait([oid(2)], 0, None) == []
    assert store.wait([], 1, None) == []
    started = time.monotonic()
    assert store.wait([oid(2)], 1, 0.05) == []
    assert 0.04 < time.monotonic() - started < 5


def test_wait_is_woken_by_a_seal(store: Store) -> None:
    result: list[list[bytes]] = []
    threads = [
        threading.Thread(target=lambda n=n: result.append(store.wait([oid(n), oid(0)], 2, 20)))
        for n in range(1, 5)
    ]
    for thread in threads:
        thread.start()
    for n in range(5):
        time.sleep(0.01)
        store.put(oid(n), [b"x"])
    for thread in threads:
        thread.join()
    assert sorted(result) == sorted([oid(n), oid(0)] for n in range(1, 5))


def test_wait_runs_signal_handlers(store: Store) -> None:
    class Interrupt(Exception): ...

    def handler(_signal: int, _frame: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Interrupt):
            store.wait([oid(1)], 1, 20)
    finally:
        signal.signal(signal.SIGALRM, before)
    store.put(oid(1), [b"x"])


def test_attach_refuses_what_is_no_segment(store: Store) -> None:
    with pytest.raises(OSError):
        Store.attach(store.fd, 5)  # not reserved
    with pytest.raises(OSError):
        Store.attach(store.fd, 1 << 20)
    slot = store.open_client()
    plain = os.memfd_create("plain")
    os.ftruncate(plain, 1 << 20)
    with pytest.raises(OSError):
        Store.attach(plain, slot)
    os.close(plain)
    other = Store.attach(store.fd, slot)
    with pytest.raises(OSError):
        Store.attach(store.fd, slot)  # taken
    assert other.client_slot == slot and other.capacity == store.capacity
    assert other.fd != store.fd
    store.put(oid(1), [b"x"])
    assert bytes(other.get(oid(1))) == b"x"


def test_client_records_run_out_and_come_back() -> None:
    store = Store.create(1 << 20, max_clients=64)
    slots = [store.open_client() for _ in range(63)]
    assert sorted(slots) == list(range(1, 64))
    with pytest.raises(RuntimeError, match="all 64"):
        store.open_client()
    store.reap_client(7)
    assert store.open_client() == 7
    for wrong in (0, 64):
        with pytest.raises(ValueError):
            store.reap_client(wrong)


def test_the_segment_cannot_be_truncated(store: Store) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(store.fd, 10)


def test_a_closed_store_refuses_calls() -> None:
    store = Store.create(1 << 20)
    store.close()
    store.close()
    for call in (store.list, store.stats, store.check, store.open_client):
        with pytest.raises(RuntimeError, match="closed"):
            call()
    with pytest.raises(RuntimeError, match="closed"):
        store.get(oid(1))
    with pytest.raises(RuntimeError, match="closed"):
        store.fd  # noqa: B018


def test_close_waits_for_calls_in_other_threads() -> None:
    """The mapping stays until the last of them is back."""
    store = Store.create(64 << 20)
    data = bytes(20 << 20)
    results: list[object] = []

    def call(function: Callable[[], object]) -> None:
        try:
            results.append(function())
        except RuntimeError as error:
            results.append(str(error))

    calls = [lambda: store.wait([oid(9)], 1, 0.1), lambda: store.put(oid(1), [data])]
    threads = [threading.Thread(target=call, args=(function,)) for function in calls]
    for thread in threads:
        thread.start()
    time.sleep(0.002)
    store.close()
    for thread in threads:
        thread.join()
    assert len(results) == 2 and set(map(str, results)) <= {"[]", str(len(data)), "the store is closed"}


def test_stats_add_up(store: Store) -> None:
    store.put(oid(1), [bytes(1000)])
    store.put(oid(2), [bytes(64)])
    held = store.get(oid(1))
    stats = store.stats()
    assert stats["used"] == 64 + 1024 + 64 + 64
    assert stats["used"] + stats["free"] >= stats["capacity"] == 1 << 20
    assert stats["objects"] == 2 and stats["pinned_bytes"] == 1000 and stats["clients"] == 1
    assert stats["largest_free"] == stats["free"]
    del held


def test_prefault_and_punch_move_memory() -> None:
    store = Store.create(64 << 20)

    def backed() -> int:
        return os.fstat(store.fd).st_blocks * 512

    warmed = store.prefault(20 << 20)
    assert 20 << 20 <= warmed < 21 << 20
    assert backed() >= 20 << 20
    assert store.stats()["cold"] <= (64 << 20) - warmed + 8192
    store.put(oid(1), [payload(1, 4 << 20)])
    given = store.punch(keep=2 << 20)
    assert given >= 12 << 20
    assert backed() < 9 << 20
    assert bytes(store.get(oid(1))) == payload(1, 4 << 20)
    assert store.punch(keep=64 << 20) == 0
    store.delete(oid(1))
    store.check()
    store.put(oid(2), [payload(2, 40 << 20)])
    assert bytes(store.get(oid(2))) == payload(2, 40 << 20)
    assert store.prefault(1 << 40) > 0
    assert store.stats()["cold"] == 0 and store.prefault(1 << 20) == 0
    store.check()


def test_threads_of_one_process_share_a_store(store: Store) -> None:
    errors: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for n in range(first, first + 300):
                store.put(oid(n), [payload(n, n % 900)])
                assert bytes(store.get(oid(n))) == payload(n, n % 900)
                assert store.delete(oid(n))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(1000 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and store.stats()["used"] == 0


def test_buffer_cannot_be_made_by_hand() -> None:
    with pytest.raises(TypeError):
        Buffer()
    with pytest.raises(TypeError):
        Store()


def test_a_daemon_thread_in_wait_does_not_disturb_the_exit() -> None:
    """The process ends while a thread sleeps natively, without the GIL."""

    def body(peer: object) -> None:
        import subprocess
        import sys

        program = (
            "import threading, time\n"
            "from miniray._native import Store, Mailbox\n"
            "store = Store.create(1 << 20)\n"
            "mailbox = Mailbox(store)\n"
            "for call in (lambda: store.wait([bytes(28)], 1, None), lambda: mailbox.wait(None, 0)):\n"
            "    threading.Thread(target=call, daemon=True).start()\n"
            "time.sleep(0.05)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=20)
        assert (done.returncode, done.stderr) == (0, b"")

    assert Child(body).join() == 0


def test_the_mutex_is_not_waited_for_beyond_its_timeout(store: Store) -> None:
    """A client stopped inside the mutex does not stop the raylet."""
    from miniray._native import StoreBusy

    def churn(peer: object, theirs: Store) -> None:
        data = [b"x" * 10]
        peer.send(b".")  # type: ignore[attr-defined]
        n = 0
        while True:
            n += 1
            theirs.put(oid(n), data)
            theirs.delete(oid(n))

    child, slot = client(store, churn)
    child.hear()
    store.set_lock_timeout(0.02)

    def stopped_inside() -> bool:
        os.kill(child.pid, signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        try:
            store.stats()
        except StoreBusy as busy:
            assert busy.holder in (slot, -1) and isinstance(busy, TimeoutError)
            assert busy.pid in (child.pid, 0)
            return True
        os.kill(child.pid, signal.SIGCONT)
        return False

    store.put(oid(0), [payload(0, 1000)])
    view = store.get(oid(0))
    store.delete(oid(0))
    eventually(stopped_inside)
    del view  # cannot free the object now; the next call that gets the mutex does
    child.kill()
    store.reap_client(slot)
    store.set_lock_timeout(None)
    # What the view kept is gone; a small object whose put was just done may be there.
    assert store.stats()["used"] < 1000 and store.stats()["rebuilds"] == 1
