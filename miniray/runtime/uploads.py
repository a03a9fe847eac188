"""Packages of a job in the GCS's store: a driver puts them there in pieces, raylets fetch them.

A package lives in its job's own namespace and goes with the job. The count of pieces is stored
last, under the URI itself, so a package that has one is whole.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO

from miniray._proto import gcs_pb2 as gcs

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker

logger = logging.getLogger("miniray")

PIECE = 4 << 20

Done = Callable[[str], None]
"""Told what went wrong, "" for nothing."""


def space(job_id: bytes) -> bytes:
    """The namespace of a job's packages."""
    return b"job:" + job_id + b":packages"


def upload(worker: CoreWorker, uri: str, write: Callable[[BinaryIO], None]) -> None:
    """Store what `write` writes into a file, unless the job has it. Raises what the control plane raises."""
    name = uri.encode()
    found = worker.control.request("kv_get", gcs.KvGet(namespace=space(worker.job_id), key=name))
    if found.kv.found:
        return
    import tempfile  # few jobs have packages, and every daemon loads this module

    with tempfile.TemporaryFile() as file:
        write(file)
        size = file.tell()
        file.seek(0)
        count = 0
        while piece := file.read(PIECE):
            _put(worker, _piece(name, count), piece)
            count += 1
    _put(worker, name, b"%d" % count)
    logger.debug("uploaded %s (%d bytes)", uri, size)


def read(worker: CoreWorker, uri: str) -> bytes:
    """A small package as bytes; LookupError when the job has none of this name."""
    name, where = uri.encode(), space(worker.job_id)
    found = worker.control.request("kv_get", gcs.KvGet(namespace=where, key=name)).kv
    if not found.found:
        raise LookupError(f"{uri} is not among the job's packages")
    pieces = [
        worker.control.request("kv_get", gcs.KvGet(namespace=where, key=_piece(name, index))).kv.value
        for index in range(_count(found.value) or 0)
    ]
    return b"".join(pieces)


def _put(worker: CoreWorker, key: bytes, value: bytes) -> None:
    worker.control.request(
        "kv_put", gcs.KvPut(namespace=space(worker.job_id), key=key, value=value, overwrite=True)
    )


def _piece(name: bytes, index: int) -> bytes:
    return name + b"#%d" % index


def _count(record: bytes) -> int | None:
    """Of pieces; None if that is not what it says: whoever has the token can write there."""
    return int(record) if record.isdigit() and len(record) < 9 else None


def fetch(ask: Callable[..., None], job_id: bytes, uri: str, path: str, done: Done) -> None:
    """Copy a package into a file, piece by piece; `ask` is the raylet's `Bridge.ask`."""
    name = uri.encode()

    def counted(now: float, reply: Any) -> None:
        if not reply.kv.found:
            done(f"package {uri} is not in the cluster: it goes with the job that brought it")
            return
        count = _count(reply.kv.value)
        if count is None:
            done(f"package {uri} is damaged: its record gives no number of pieces: {reply.kv.value[:40]!r}")
            return
        try:
            open(path, "wb").close()
        except OSError as error:
            done(f"package {uri} cannot be written to {path}: {error.strerror}")
            return
        follow(0, count)

    def follow(index: int, count: int) -> None:
        if index == count:
            done("")
            return

        def arrived(now: float, reply: Any) -> None:
            if not reply.kv.found:
                done(f"package {uri} is incomplete: its job has ended")
                return
            try:
                with open(path, "ab") as file:
                    file.write(reply.kv.value)
            except OSError as error:
                done(f"package {uri} cannot be written to {path}: {error.strerror}")
                return
            follow(index + 1, count)

        ask(arrived, kv_get=gcs.KvGet(namespace=space(job_id), key=_piece(name, index)))

    ask(counted, kv_get=gcs.KvGet(namespace=space(job_id), key=name))
