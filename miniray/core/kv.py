"""The cluster's key-value store: bytes by (namespace, key), kept across restarts of the head.

Every change is persisted before it is acknowledged, and the GCS applies requests one by one: so
reads and writes are linearizable. Values are opaque. A namespace that begins with the eight
bytes `JOB_PREFIX + job id` belongs to that job and is dropped by `job_forgotten`.

Limits: all of it lives in the head's memory; a value above `MAX_VALUE_BYTES` is refused.
Pure; part of `Head`.
"""

from __future__ import annotations

import struct
from typing import Any

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core.desk import Desk, Refusal

TABLE = "kv"

JOB_PREFIX = b"job:"

MAX_VALUE_BYTES = 400 << 20
"""Below the message limit of 512 MB, with room for the envelope."""

_LENGTH = struct.Struct("<H")


class KeyValues:
    """Namespaces of keys; see the module head."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._spaces: dict[bytes, dict[bytes, bytes]] = {}
        self._bytes = 0

    def restore(self, key: bytes, value: bytes) -> None:
        """One saved row."""
        (length,) = _LENGTH.unpack_from(key)
        space, name = key[2 : 2 + length], key[2 + length :]
        self._spaces.setdefault(space, {})[name] = value
        self._bytes += len(value)

    def put(self, request: gcs.KvPut) -> gcs.ControlReply:
        """Store a value; `added` says whether the key was new, and without `overwrite` only a
        new key is stored."""
        if len(request.value) > MAX_VALUE_BYTES:
            raise Refusal(
                pb.INVALID_ARGUMENT,
                f"the value of key {request.key!r} has {len(request.value)} bytes, at most {MAX_VALUE_BYTES} "
                "fit: put it in the object store and store its reference",
            )
        if len(request.namespace) > 0xFFFF:
            raise Refusal(pb.INVALID_ARGUMENT, "a namespace has at most 65,535 bytes")
        space = self._spaces.setdefault(request.namespace, {})
        old = space.get(request.key)
        if old is None or request.overwrite:
            space[request.key] = request.value
            self._bytes += len(request.value) - len(old or b"")
            self._desk.persist(TABLE, _row(request.namespace, request.key), request.value)
        return gcs.ControlReply(kv=gcs.KvValue(found=old is not None, added=old is None))

    def get(self, request: gcs.KvGet) -> gcs.ControlReply:
        """The value of a key."""
        value = self._spaces.get(request.namespace, {}).get(request.key)
        return gcs.ControlReply(kv=gcs.KvValue(found=value is not None, value=value or b""))

    def delete(self, request: gcs.KvDelete) -> gcs.ControlReply:
        """Delete a key, or all keys that begin with it; `count` is how many there were."""
        space = self._spaces.get(request.namespace, {})
        if request.prefix:
            keys = [key for key in space if key.startswith(request.key)]
        else:
            keys = [request.key] if request.key in space else []
        self._drop(request.namespace, keys)
        return gcs.ControlReply(count=len(keys))

    def keys(self, request: gcs.KvKeys) -> gcs.ControlReply:
        """The keys that begin with a prefix, sorted."""
        space = self._spaces.get(request.namespace, {})
        keys = sorted(key for key in space if key.startswith(request.prefix))
        return gcs.ControlReply(kv_names=gcs.KvNames(keys=keys))

    def job_forgotten(self, job_id: bytes) -> None:
        """Nothing of the job lives any more: its namespaces go."""
        for namespace in [n for n in self._spaces if n.startswith(JOB_PREFIX + job_id)]:
            self._drop(namespace, list(self._spaces[namespace]))

    def _drop(self, namespace: bytes, keys: list[bytes]) -> None:
        space = self._spaces.get(namespace, {})
        for key in keys:
            self._bytes -= len(space.pop(key))
            self._desk.persist(TABLE, _row(namespace, key), None)
        if not space:
            self._spaces.pop(namespace, None)

    def check(self) -> None:
        """Assert that the byte count is right."""
        assert self._bytes == sum(len(v) for space in self._spaces.values() for v in space.values())

    def dump(self) -> dict[str, Any]:
        """Keys per namespace, and bytes."""
        names = {repr(name): len(space) for name, space in self._spaces.items()}
        return {"keys": names, "bytes": self._bytes}


def _row(namespace: bytes, key: bytes) -> bytes:
    return _LENGTH.pack(len(namespace)) + namespace + key
