"""Packages of a job: what its records say is looked at before it is believed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from miniray._proto import gcs_pb2 as gcs
from miniray.runtime import uploads

JOB, URI = b"\1\0\0\0", "gcs://_ray_pkg_0.zip"


def fetched(rows: dict[bytes, bytes], path: Path) -> str:
    """What came of it, from a GCS with these rows that answers at once."""
    said: list[str] = []

    def ask(then: Callable[[float, Any], None], kv_get: gcs.KvGet) -> None:
        value = rows.get(kv_get.key)
        then(0.0, gcs.ControlReply(kv=gcs.KvValue(found=value is not None, value=value or b"")))

    uploads.fetch(ask, JOB, URI, str(path), said.append)
    (one,) = said
    return one


def test_a_package_comes_in_its_pieces(tmp_path: Path) -> None:
    name = URI.encode()
    assert fetched({name: b"2", name + b"#0": b"ab", name + b"#1": b"c"}, tmp_path / "it") == ""
    assert (tmp_path / "it").read_bytes() == b"abc"


@pytest.mark.parametrize("record", [b"", b"abc", b"-5", b"\xff", b"1e3", b"9" * 30, b" 1", "٣".encode()])
def test_a_record_that_is_none_is_an_error_and_no_task_waits_for_ever(record: bytes, tmp_path: Path) -> None:
    assert "is damaged" in fetched({URI.encode(): record}, tmp_path / "it")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    assert "is not in the cluster" in fetched({}, tmp_path / "it")
    assert "is incomplete" in fetched({URI.encode(): b"1"}, tmp_path / "it")
