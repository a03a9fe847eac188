"""What is known of a submitted job, and where it is kept: rows of the GCS's key-value store.

::

    "submission"       ID         the record as JSON       written by the client, then by the supervisor
    "submission:stop"  ID         somebody wants it ended  read by the supervisor
    "submission:log"   ID#00042   64 KiB of what it wrote  the last `LOG_PIECES` of them

Rows outlive the client, the supervisor, its node and a restart of the head.
"""

from __future__ import annotations

import enum
import json
import re
import secrets
import string
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from miniray._proto import gcs_pb2 as gcs

Request = Callable[[str, Any], Any]
"""request(field of ControlRequest, message) -> ControlReply."""

RECORDS, STOPS, LOGS = b"submission", b"submission:stop", b"submission:log"

PIECE_BYTES = 64 << 10
LOG_PIECES = 256
"""Of what a job writes the last 16 MiB are kept."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


class JobStatus(str, enum.Enum):
    """How far a submitted job is."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    def __str__(self) -> str:
        return self.value

    def is_terminal(self) -> bool:
        """True when nothing of it runs any more."""
        return self not in (JobStatus.PENDING, JobStatus.RUNNING)


class JobType(str, enum.Enum):
    """Whether the cluster runs the program, or a person."""

    SUBMISSION = "SUBMISSION"
    DRIVER = "DRIVER"


@dataclass
class DriverInfo:
    """A driver of a job."""

    id: str
    node_ip_address: str = ""
    pid: str = ""


@dataclass
class JobDetails:
    """One job. Times are milliseconds since the epoch; `driver_exit_code` is None until it has ended."""

    type: JobType
    submission_id: str | None
    entrypoint: str
    status: JobStatus = JobStatus.PENDING
    job_id: str | None = None
    message: str | None = None
    error_type: str | None = None
    start_time: int | None = None
    end_time: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    runtime_env: dict[str, Any] = field(default_factory=dict)
    driver_info: DriverInfo | None = None
    driver_node_id: str | None = None
    driver_exit_code: int | None = None

    def encoded(self) -> bytes:
        """As it is stored."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def of(cls, data: bytes) -> JobDetails:
        """From what was stored; fields of another version are dropped."""
        known = {entry.name for entry in fields(cls)}
        row = {name: value for name, value in json.loads(data).items() if name in known}
        row["type"], row["status"] = JobType(row["type"]), JobStatus(row["status"])
        if row.get("driver_info"):
            row["driver_info"] = DriverInfo(**row["driver_info"])
        return cls(**row)


JobInfo = JobDetails


def new_id() -> str:
    """An id that nobody has."""
    alphabet = string.ascii_letters + string.digits
    return "raysubmit_" + "".join(secrets.choice(alphabet) for _ in range(16))


def check_id(submission_id: str) -> str:
    """The id. ValueError when it could not be part of a key."""
    if not _ID.fullmatch(submission_id):
        raise ValueError(
            f"submission_id {submission_id!r}: 1 to 128 letters, digits, '_' and '-' make an id"
        )
    return submission_id


def load(request: Request, submission_id: str) -> JobDetails | None:
    """The record, None when there is none."""
    found = request("kv_get", gcs.KvGet(namespace=RECORDS, key=submission_id.encode())).kv
    return JobDetails.of(found.value) if found.found else None


def save(request: Request, details: JobDetails, *, overwrite: bool = True) -> bool:
    """Write the record. False when there is one and it must not be overwritten."""
    put = gcs.KvPut(
        namespace=RECORDS, key=str(details.submission_id).encode(), value=details.encoded(),
        overwrite=overwrite,
    )  # fmt: skip
    return bool(request("kv_put", put).kv.added) or overwrite


def all_ids(request: Request) -> list[str]:
    """Ids of all records."""
    names = request("kv_keys", gcs.KvKeys(namespace=RECORDS)).kv_names.keys
    return [name.decode() for name in names]


def forget(request: Request, submission_id: str) -> None:
    """Remove all that is kept of a job."""
    key = submission_id.encode()
    for namespace in (RECORDS, STOPS):
        request("kv_delete", gcs.KvDelete(namespace=namespace, key=key))
    request("kv_delete", gcs.KvDelete(namespace=LOGS, key=key + b"#", prefix=True))


def ask_to_stop(request: Request, submission_id: str) -> None:
    """Leave word for the supervisor."""
    request("kv_put", gcs.KvPut(namespace=STOPS, key=submission_id.encode(), value=b"1", overwrite=True))


def is_asked_to_stop(request: Request, submission_id: str) -> bool:
    """Whether somebody has left word."""
    return bool(request("kv_get", gcs.KvGet(namespace=STOPS, key=submission_id.encode())).kv.found)


# ---- what it wrote


def _piece(submission_id: str, index: int) -> bytes:
    return b"%s#%08d" % (submission_id.encode(), index)


class LogWriter:
    """Appends to a job's log: full pieces once, the last one again and again while it grows."""

    def __init__(self, request: Request, submission_id: str) -> None:
        self._request = request
        self._id = submission_id
        self._index = 0
        self._last = b""
        self._is_stored = True
        self.tail = b""
        """The last `PIECE_BYTES` of all."""

    def write(self, data: bytes) -> None:
        """Add to the log; what fills a piece is stored at once."""
        self.tail = (self.tail + data)[-PIECE_BYTES:]
        self._last += data
        self._is_stored = False
        while len(self._last) >= PIECE_BYTES:
            self._put(self._last[:PIECE_BYTES])
            self._last = self._last[PIECE_BYTES:]
            self._index += 1
            if self._index >= LOG_PIECES:
                old = _piece(self._id, self._index - LOG_PIECES)
                self._request("kv_delete", gcs.KvDelete(namespace=LOGS, key=old))

    def flush(self) -> None:
        """Store what has been written."""
        if not self._is_stored and self._last:
            self._put(self._last)
        self._is_stored = True

    def _put(self, data: bytes) -> None:
        key = _piece(self._id, self._index)
        self._request("kv_put", gcs.KvPut(namespace=LOGS, key=key, value=data, overwrite=True))


class LogReader:
    """Reads a job's log from its beginning, or from where the last `read` ended."""

    def __init__(self, request: Request, submission_id: str) -> None:
        self._request = request
        self._id = submission_id
        self._index: int | None = None
        self._offset = 0

    def read(self) -> bytes:
        """What is new; b"" for nothing."""
        found: bytes = b""
        while True:
            if self._index is None:
                self._index = self._first()
                if self._index is None:
                    return found
            key = _piece(self._id, self._index)
            piece = self._request("kv_get", gcs.KvGet(namespace=LOGS, key=key)).kv
            found += bytes(piece.value[self._offset :])
            self._offset = len(piece.value)
            if not piece.found and self._is_behind():
                self._index = None  # pieces were dropped while nobody read
            elif self._offset < PIECE_BYTES:
                return found
            else:
                self._index += 1
            if self._offset >= PIECE_BYTES or self._index is None:
                self._offset = 0

    def _is_behind(self) -> bool:
        first = self._first()
        return first is not None and self._index is not None and first > self._index

    def _first(self) -> int | None:
        prefix = self._id.encode() + b"#"
        names = self._request("kv_keys", gcs.KvKeys(namespace=LOGS, prefix=prefix)).kv_names.keys
        return min((int(name[len(prefix) :]) for name in names), default=None)
