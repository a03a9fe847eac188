"""Other processes that have ended: struck out only behind their last frames.

A worker may write replies into its ring and die before it rings the bell, and the news of its
death take another way: the raylet's socket, or the GCS when it was an actor. They may overtake
what the dead one has said, and a result that was there would count as lost. So a death is only
noted here; the drainer acts on it when it has read all rings once more. What the GCS tells of an
actor whose process still has calls of ours waits for that as well. What a dead process of another
node has sent over a connection comes before that connection's end.

All methods run under the worker's lock; `turn` and `tick` on the drainer.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from miniray._proto import common_pb2 as pb
from miniray._proto import worker_pb2 as wire
from miniray.core.directory import Address

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker

NEWS_WAIT_S = 1.0
"""An actor's news wait so long for the raylet's word that its process has ended."""


class Departures:
    """One per CoreWorker."""

    def __init__(self, worker: CoreWorker) -> None:
        self._worker = worker
        self._announced: deque[wire.WorkerGone] = deque()
        self._seen = 0  # how many of these were there before the rings were last read
        self._connected: dict[Address, tuple[float, wire.WorkerGone]] = {}
        self._then: dict[Address, tuple[float, list[Callable[[], None]]]] = {}

    def announced(self, message: wire.WorkerGone) -> None:
        """The raylet says that a process has ended."""
        address = (message.address.node_id, message.address.worker_id)
        if message.failure.kind != pb.NODE_DIED and self._worker.peers.is_connected(address):
            self._connected.setdefault(address, (time.monotonic() + NEWS_WAIT_S, message))
            return
        self._worker.peers.look(address)
        self._announced.append(message)
        self._worker.pump.wake()

    def disconnected(self, address: Address) -> None:
        """The last connection to the worker at `address` has ended, and all that came is handled."""
        waiting = self._connected.pop(address, None)
        if waiting is not None:
            self._announced.append(waiting[1])
            self._worker.pump.wake()

    def after(self, address: Address, then: Callable[[], None]) -> None:
        """Call `then` once the process at `address` is struck out, or `NEWS_WAIT_S` are over."""
        waiting = self._then.setdefault(address, (time.monotonic() + NEWS_WAIT_S, []))
        waiting[1].append(then)

    def turn(self, emptied: bool) -> None:
        """The drainer handled what it had read; `emptied`: nothing was left in any ring."""
        if emptied:
            for _ in range(self._seen):
                self._strike_out(self._announced.popleft())
        self._seen = len(self._announced)
        if self._seen:
            self._worker.pump.again()

    def pending(self) -> bool:
        """A turn is worth its call."""
        return bool(self._announced)

    def tick(self, now: float) -> None:
        """Do not wait for ever for a word that may have been lost with a raylet."""
        for address in [address for address, (due, _) in self._then.items() if due <= now]:
            self._go_on(address)
        for address in [address for address, (due, _) in self._connected.items() if due <= now]:
            self.disconnected(address)

    def _strike_out(self, gone: wire.WorkerGone) -> None:
        worker = self._worker
        address = (gone.address.node_id, gone.address.worker_id)
        node_died = gone.failure.kind == pb.NODE_DIED
        orphaned = pb.Failure(kind=pb.OWNER_DIED, message=f"its owner is gone: {gone.failure.message}")
        worker.owner.remote_gone(
            time.monotonic(), address, gone.failure, replies_lost=node_died, owner_error=orphaned
        )
        worker.peers.gone(address)
        worker.drain()  # before the next one: it may be where these tasks were sent now
        self._go_on(address)

    def _go_on(self, address: Address) -> None:
        for then in self._then.pop(address, (0.0, []))[1]:
            then()
