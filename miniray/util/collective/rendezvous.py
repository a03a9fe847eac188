"""How the ranks of a group find one another: through the cluster's key-value store.

::

    rank r > 0                 key-value store of the job                     rank 0
      join/r = a nonce  ─────▶                    ◀───── waits for every join/r
                                                  ◀───── start = an id and the nonces it saw
      waits until start has its nonce
      …………………………… torch's rendezvous, under keys that begin with the id ……………………………

The nonce tells a start of this incarnation from one that an earlier group of the same name left
behind. No process listens for this: the only ports are the ones of the backend itself.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from miniray._proto import gcs_pb2 as gcs
from miniray.core.kv import JOB_PREFIX
from miniray.runtime.worker import current

POLL_S = (0.002, 0.1)
"""Seconds between looks at a key: at first, and at most."""

T = TypeVar("T")


class KeyValues:
    """Keys of one group in the job's namespace."""

    def __init__(self, prefix: str) -> None:
        self._worker = current()
        self._space = JOB_PREFIX + self._worker.job_id
        self._prefix = f"collective/{prefix}/"

    def put(self, key: str, value: bytes, overwrite: bool = True) -> bool:
        """Store a value; False if the key was there and is not to be overwritten."""
        put = gcs.KvPut(namespace=self._space, key=self._full(key), value=value, overwrite=overwrite)
        return bool(self._worker.request("kv_put", put).kv.added or overwrite)

    def get(self, key: str) -> bytes | None:
        """The value of a key."""
        found = self._worker.request("kv_get", gcs.KvGet(namespace=self._space, key=self._full(key))).kv
        return bytes(found.value) if found.found else None

    def delete(self, key: str, prefix: bool = False) -> int:
        """Delete a key, or all that begin with it. Returns how many there were."""
        delete = gcs.KvDelete(namespace=self._space, key=self._full(key), prefix=prefix)
        return int(self._worker.request("kv_delete", delete).count)

    def _full(self, key: str) -> bytes:
        return (self._prefix + key).encode()


def poll(look: Callable[[], T | None], seconds: float, what: str) -> T:
    """The first result of `look` that is not None. TimeoutError names what was waited for."""
    deadline = time.monotonic() + seconds
    pause, most = POLL_S
    while True:
        found = look()
        if found is not None:
            return found
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{what} did not come within {seconds:g} s")
        time.sleep(pause)
        pause = min(2 * pause, most)


def meet(keys: KeyValues, rank: int, world_size: int, seconds: float) -> str:
    """Wait for every rank of this incarnation of the group; returns its id. TimeoutError."""
    if rank == 0:
        nonces = [
            poll(lambda r=r: keys.get(f"join/{r}"), seconds, f"rank {r} of {world_size}").decode()  # type: ignore[misc]
            for r in range(1, world_size)
        ]
        keys.delete("join/", prefix=True)
        incarnation = secrets.token_hex(8)
        keys.put("start", json.dumps([incarnation, nonces]).encode())
        return incarnation
    nonce = secrets.token_hex(8)
    keys.put(f"join/{rank}", nonce.encode())

    def started() -> str | None:
        start = keys.get("start")
        incarnation, nonces = json.loads(start) if start else ("", [])
        return incarnation if nonce in nonces else None

    return poll(started, seconds, "rank 0")


class ClusterStore(dist.Store):  # type: ignore[misc]
    """torch's key-value interface on the cluster's store; keys are under `incarnation`."""

    def __init__(self, keys: KeyValues, incarnation: str, timeout: timedelta) -> None:
        super().__init__()
        self._keys = keys
        self._incarnation = incarnation
        self._timeout = timeout

    def set(self, key: str, value: Any) -> None:
        """See torch.distributed.Store."""
        self._keys.put(self._own(key), value.encode() if isinstance(value, str) else bytes(value))

    def get(self, key: str) -> bytes:
        """See torch.distributed.Store."""
        return poll(lambda: self._keys.get(self._own(key)), self._timeout.total_seconds(), f"key {key}")

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """See torch.distributed.Store."""
        seconds = (timeout or self._timeout).total_seconds()
        for key in keys:
            poll(lambda key=key: self._keys.get(self._own(key)), seconds, f"key {key}")  # type: ignore[misc]

    def check(self, keys: list[str]) -> bool:
        """See torch.distributed.Store."""
        return all(self._keys.get(self._own(key)) is not None for key in keys)

    def add(self, key: str, amount: int) -> int:
        """See torch.distributed.Store: each addition takes the first free place of a row of keys."""
        total, place = 0, 0
        while not self._keys.put(self._own(f"{key}/{place}"), b"%d" % amount, overwrite=False):
            total += int(self._keys.get(self._own(f"{key}/{place}")) or b"0")
            place += 1
        return total + amount

    def delete_key(self, key: str) -> bool:
        """See torch.distributed.Store."""
        return self._keys.delete(self._own(key)) > 0

    def _own(self, key: str) -> str:
        return f"{self._incarnation}/{key}"
