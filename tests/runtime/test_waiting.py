"""The right to drain: one thread has it, a waiter never misses its wake-up, idling costs nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from miniray import _native
from miniray.runtime import waiting
from miniray.runtime.waiting import Callback, Pump, Reply, Waiter

SOON_S = 20.0
"""A wait that should end at once; reached only on failure."""


class Worker:
    """A process in miniature: a mailbox, a pump and a table of waiters by the frame that ends them."""

    def __init__(self) -> None:
        self.node = _native.Store.create(1 << 20)
        self.stores = [_native.Store.attach(self.node.fd, self.node.open_client()) for _ in range(2)]
        self.mailbox, self.far = (_native.Mailbox(store) for store in self.stores)
        self.near = self.mailbox.create_channel("peer", 1 << 16)      # a mailbox only borrows its channels
        self.peer = self.far.attach_channel("worker", self.near.fd)
        self.lock = threading.RLock()
        self.waiters: dict[bytes, Waiter] = {}
        self.handled: list[bytes] = []
        self.drainers: set[str] = set()
        self.turns = 0
        self.ticks = 0
        self._busy = threading.Lock()
        self.pump = Pump(self.mailbox, self._handle, self._tick)
        self.pump.start()

    def _handle(self, batch: list[Any]) -> None:
        assert self._busy.acquire(False), "two threads drain at once"
        try:
            self.turns += 1
            self.drainers.add(threading.current_thread().name)
            with self.lock:
                for _, frame in batch:
                    self.handled.append(frame)
                    waiter = self.waiters.pop(frame, None)
                    if waiter is not None:
                        waiter.notify(None)
                        if waiter.remaining <= 0:
                            self.pump.kick(waiter)
        finally:
            self._busy.release()

    def _tick(self) -> float:
        self.ticks += 1
        return 1.0

    def wait_for(self, *frames: bytes, timeout: float = SOON_S) -> bool:
        """Wait until all these frames have come."""
        waiter = Waiter(len(frames))
        with self.lock:
            for frame in frames:
                if frame in self.handled:
                    waiter.remaining -= 1
                else:
                    self.waiters[frame] = waiter
        return self.pump.wait(waiter, time.monotonic() + timeout)

    def close(self) -> None:
        self.pump.stop()
        assert not self.pump._helper.is_alive()
        self.mailbox.close()
        self.far.close()
        for store in (*self.stores, self.node):
            store.close()


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline, "not so in time"
        time.sleep(0.001)


def start(target: Callable[[], Any], name: str) -> threading.Thread:
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


def test_whoever_waits_drains_by_itself(worker: Worker) -> None:
    worker.peer.send(b"a")
    assert worker.wait_for(b"a") and worker.handled == [b"a"]
    assert worker.drainers <= {threading.current_thread().name, "miniray-helper"}


def test_frames_are_handled_while_nobody_waits(worker: Worker) -> None:
    worker.peer.send(b"a")
    until(lambda: worker.handled == [b"a"])
    assert worker.drainers == {"miniray-helper"}


def test_a_getter_takes_the_right_from_the_helper(worker: Worker) -> None:
    until(lambda: worker.pump._right.locked() and worker.ticks > 0)     # the helper sleeps on the bell
    thread = start(lambda: worker.wait_for(b"b"), "getter")
    until(lambda: worker.pump._holder is not None)
    worker.peer.send(b"b")
    thread.join(SOON_S)
    assert worker.handled == [b"b"] and "getter" in worker.drainers


def test_the_waiter_in_the_second_thread_is_served_by_the_first(worker: Worker) -> None:
    first = start(lambda: worker.wait_for(b"never", timeout=2.0), "first")
    until(lambda: worker.pump._holder is not None)
    done: list[float] = []
    second = start(lambda: done.append(time.monotonic()) if worker.wait_for(b"s") else None, "second")
    until(lambda: b"s" in worker.waiters and bool(worker.pump._queue))
    sent = time.monotonic()
    worker.peer.send(b"s")
    second.join(SOON_S)
    assert done and done[0] - sent < 0.5, "told at once, not at the next look"
    assert first.is_alive()
    worker.peer.send(b"never")
    first.join(SOON_S)


def test_the_right_is_handed_on_when_its_holder_is_done(worker: Worker) -> None:
    threads = [start(lambda n=n: worker.wait_for(b"%d" % n), f"getter {n}") for n in range(6)]
    until(lambda: len(worker.pump._queue) == 5)
    for n in range(6):          # the holder is any of them: whoever it is, the others go on
        worker.peer.send(b"%d" % n)
        until(lambda: sum(thread.is_alive() for thread in threads) == 5 - n)
    assert sorted(worker.handled) == [b"%d" % n for n in range(6)]


def test_a_waiter_that_is_done_when_it_is_offered_the_right_passes_it_on(worker: Worker) -> None:
    first = start(lambda: worker.wait_for(b"first"), "first")
    until(lambda: worker.pump._holder is not None)
    done = Waiter(1)
    second = start(lambda: worker.pump.wait(done, time.monotonic() + SOON_S), "second")
    until(lambda: worker.pump._queue == [done])
    third = start(lambda: worker.wait_for(b"third"), "third")
    until(lambda: len(worker.pump._queue) == 2)
    done.remaining = 0      # told, and not yet awake
    worker.peer.send(b"first")
    first.join(SOON_S)
    began = time.monotonic()
    worker.peer.send(b"third")
    third.join(SOON_S)
    assert time.monotonic() - began < SOON_S, "somebody drains"
    second.join(SOON_S)


def test_a_wait_ends_at_its_deadline_as_drainer_and_in_the_queue(worker: Worker) -> None:
    ends: dict[str, tuple[bool, float]] = {}

    def wait(name: str, timeout: float) -> None:
        began = time.monotonic()
        ends[name] = (worker.wait_for(name.encode(), timeout=timeout), time.monotonic() - began)

    threads = [start(lambda: wait("drainer", 0.3), "drainer")]
    until(lambda: worker.pump._holder is not None)
    threads.append(start(lambda: wait("queued", 0.1), "queued"))
    for thread in threads:
        thread.join(SOON_S)
    assert not ends["drainer"][0] and 0.3 <= ends["drainer"][1] < SOON_S
    assert not ends["queued"][0] and 0.1 <= ends["queued"][1] < SOON_S


def attend(worker: Worker, frame: bytes) -> bool:
    """Attend until the helper lets go of the right and `frame` has been handled."""
    until(lambda: not worker.pump._right.locked())
    return worker.pump.attend(lambda: frame in worker.handled)


def quiet(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The helper leaves the right alone."""
    until(lambda: worker.pump._right.locked())
    monkeypatch.setattr(waiting, "LULL_S", 3600.0)
    worker.pump._queue.append(Waiter(1))    # the helper gives way
    worker.mailbox.wake()
    until(lambda: not worker.pump._right.locked())
    worker.pump._queue.clear()


def test_who_attends_drains_for_himself_and_registers_nothing(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(worker, monkeypatch)
    monkeypatch.setattr(waiting, "ATTEND_S", SOON_S)
    monkeypatch.setattr(waiting, "SPIN_US", 1_000_000 * int(SOON_S))
    ticks = worker.ticks
    sender = start(lambda: [worker.peer.send(frame) for frame in (b"a", b"b")], "sender")
    assert attend(worker, b"b")
    assert worker.drainers <= {threading.current_thread().name, "miniray-helper"}
    assert worker.ticks > ticks, "somebody who never waits ticks, too"
    assert not worker.pump._right.locked() and not worker.pump._queue
    sender.join()


def test_who_attends_in_vain_gives_the_right_back(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet(worker, monkeypatch)
    assert not attend(worker, b"never")
    worker.peer.send(b"another")
    assert not attend(worker, b"never") and worker.handled == [b"another"]
    assert not worker.pump._right.locked()
    assert worker.wait_for(b"another")


class Listening:
    """A mailbox that notes how long its sleepers are to spin before."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self.spins: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mailbox, name)

    def wait(self, timeout_s: float, spin_us: int) -> Any:
        self.spins.append(spin_us)
        return self._mailbox.wait(timeout_s, spin_us)


def test_who_has_attended_in_vain_sleeps_without_spinning_once_more(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(worker, monkeypatch)
    listening = worker.pump.mailbox = Listening(worker.mailbox)
    assert not attend(worker, b"never") and not worker.wait_for(b"never", timeout=0.05)
    assert not worker.wait_for(b"never", timeout=0.05)
    assert listening.spins[0] == 0 and waiting.SPIN_US in listening.spins[1:]


def test_nobody_attends_while_others_drain_or_there_is_something_else_to_do(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(worker, monkeypatch)
    worker.peer.send(b"a")
    with worker.pump._right:
        assert not worker.pump.attend(lambda: True)
    worker.pump.by_rings = False        # the I/O thread reads
    assert not worker.pump.attend(lambda: True)
    worker.pump.by_rings = True
    worker.pump.wake()
    assert not worker.pump.attend(lambda: True) and not worker.handled
    assert worker.wait_for(b"a")


def test_what_is_done_before_the_wait_needs_no_turn(worker: Worker) -> None:
    assert worker.pump.wait(Waiter(0), None)


def test_a_waiter_told_from_outside_the_rings_wakes_up(worker: Worker) -> None:
    """As the I/O thread does when the raylet reports a death."""
    waiter = Waiter(1)
    thread = start(lambda: worker.pump.wait(waiter, time.monotonic() + SOON_S), "getter")
    until(lambda: worker.pump._holder is waiter)
    began = time.monotonic()
    with worker.lock:
        waiter.notify(None)
    worker.pump.kick(waiter)
    thread.join(SOON_S)
    assert time.monotonic() - began < SOON_S


def test_a_wake_leads_to_one_turn_even_with_empty_rings(worker: Worker) -> None:
    until(lambda: worker.pump._right.locked())
    before = worker.turns
    worker.pump.wake()
    until(lambda: worker.turns > before)


def test_poll_now_never_waits_for_another_drainer(worker: Worker) -> None:
    thread = start(lambda: worker.wait_for(b"x"), "getter")
    until(lambda: worker.pump._holder is not None)
    assert not worker.pump.poll_now()
    worker.peer.send(b"x")
    thread.join(SOON_S)
    until(lambda: worker.pump.poll_now())


@pytest.mark.parametrize("threads", [1, 3])
def test_no_wake_up_is_lost_in_thousands_of_hand_overs(worker: Worker, threads: int) -> None:
    """Each thread waits for an answer that the peer sends only after its question."""
    rounds = 1500 // threads
    failed: list[str] = []
    asked = _Questions(worker)

    def ask(n: int) -> None:
        for i in range(rounds):
            frame = b"%d:%d" % (n, i)
            waiter = Waiter(1)
            with worker.lock:
                worker.waiters[frame] = waiter
            asked.put(frame)
            if not worker.pump.wait(waiter, time.monotonic() + SOON_S, 0 if i % 3 else 60):
                failed.append(frame.decode())
                return
            if i % 100 == n:
                time.sleep(waiting.LULL_S * 2)      # the helper takes over, and gives way again

    askers = [start(lambda n=n: ask(n), f"asker {n}") for n in range(threads)]
    for asker in askers:
        asker.join(60)
    asked.stop()
    assert not failed and len(worker.handled) == threads * rounds


class _Questions:
    """The peer's thread: answers each question through the ring."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._todo: list[bytes] = []
        self._some = threading.Semaphore(0)
        self._thread = start(self._answer, "peer")

    def put(self, frame: bytes) -> None:
        self._todo.append(frame)
        self._some.release()

    def stop(self) -> None:
        self._some.release()
        self._thread.join(SOON_S)

    def _answer(self) -> None:
        while True:
            self._some.acquire()
            if not self._todo:
                return
            self._worker.peer.send(self._todo.pop(0))


def _cpu_of(seconds: float) -> float:
    began = time.process_time()
    time.sleep(seconds)
    return time.process_time() - began


def test_an_idle_process_uses_no_cpu(worker: Worker) -> None:
    until(lambda: worker.pump._right.locked())
    assert _cpu_of(0.5) < 0.1


def test_a_long_wait_uses_no_cpu(worker: Worker) -> None:
    """One thread sleeps on the bell, another in the queue, the helper in its bed."""
    threads = [start(lambda n=n: worker.wait_for(b"%d" % n), f"getter {n}") for n in range(2)]
    until(lambda: worker.pump._holder is not None and bool(worker.pump._queue))
    time.sleep(waiting.LULL_S * 3)
    assert _cpu_of(0.5) < 0.1
    for n in range(2):
        worker.peer.send(b"%d" % n)
    for thread in threads:
        thread.join(SOON_S)


def test_callbacks_queue_up_for_the_drainer() -> None:
    from collections import deque

    called: list[int] = []
    queue: Any = deque()
    Callback(queue, lambda: called.append(1)).notify(None)
    assert not called and len(queue) == 1
    queue.popleft()()
    assert called == [1]


def test_a_reply_waits_for_its_first_answer_only() -> None:
    reply = Reply()
    assert not reply.wait(0.01)
    thread = start(lambda: reply.wait(None), "waiter")
    reply.set("first")
    reply.set("second")
    thread.join(SOON_S)
    assert reply.value == "first" and reply.wait(0) and reply.wait(None)


def test_a_reply_wakes_all_that_wait_for_it() -> None:
    reply = Reply()
    threads = [start(lambda: reply.wait(SOON_S), f"waiter {n}") for n in range(3)]
    reply.set(None)
    for thread in threads:
        thread.join(1.0)
    assert not any(thread.is_alive() for thread in threads)
