"""Archives of working_dir and py_modules as an attacker packs them: an error, little cost, none outside."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from miniray.runtime import environment_setup as setup
from miniray.runtime.environment_setup import Problem, unpack

Entry = tuple[str, bytes, int]
PLAIN = stat.S_IFREG | 0o644


def packed(*entries: Entry, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data, mode in entries:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            entry.compress_type = compression
            archive.writestr(entry, data)
    return out.getvalue()


def refused(where: Path, data: bytes) -> str:
    """Why it is refused. Nothing may be made but the empty directory, and nothing outside of it."""
    archive, target = where / "in.zip", where / "target"
    archive.write_bytes(data)
    with pytest.raises(Problem) as problem:
        unpack(archive, target)
    assert sorted(os.listdir(where)) == ["in.zip", "target"]
    assert not [path for path in target.rglob("*") if path.is_symlink()]
    return str(problem.value)


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../../evil", "/evil", "//evil", "a/..", "..", "..\\evil", "C:\\evil", "a\\..\\..\\evil",
     "./../evil", "a/b/../../../evil"],
)  # fmt: skip
def test_names_that_lead_outside(tmp_path: Path, name: str) -> None:
    data = packed(("fine.py", b"x = 1", PLAIN), ("placeholder", b"evil", PLAIN))
    data = data.replace(b"placeholder", name.encode()) if len(name) == 11 else packed((name, b"evil", PLAIN))
    assert "leads out of its directory" in refused(tmp_path, data)
    assert not any((tmp_path / "target").iterdir())  # looked at before anything is written


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_special_files(tmp_path: Path, kind: int) -> None:
    said = refused(tmp_path, packed(("fine.py", b"x = 1", PLAIN), ("entry", b"/etc/passwd", kind | 0o777)))
    assert "a link or a special file" in said


def test_a_file_through_which_another_would_be_written(tmp_path: Path) -> None:
    assert "unpacked" in refused(tmp_path, packed(("a", b"1", PLAIN), ("a/b", b"2", PLAIN)))


def test_two_files_of_one_name(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        data = packed(("a", b"1", PLAIN), ("a", b"2", PLAIN))
    assert "FileExistsError" in refused(tmp_path, data)


def test_a_bomb_is_seen_before_it_goes_off(tmp_path: Path) -> None:
    archive = tmp_path / "in.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
        with out.open("zeros", "w", force_zip64=True) as entry:
            for _ in range(300):
                entry.write(bytes(1 << 20))
    with pytest.raises(Problem, match="300 MiB, more than 200 for one"):
        unpack(archive, tmp_path / "target")
    assert not any((tmp_path / "target").iterdir())


@pytest.mark.parametrize(
    ("limit", "value", "match"),
    [("UNPACKED_LIMIT", 1000, "entries and 0 MiB"), ("ENTRY_LIMIT", 1, "2 entries"),
     ("PARTS_LIMIT", 3, "more than 3 parts"), ("DIRECTORY_LIMIT", 50, "table of contents")],
)  # fmt: skip
def test_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, match: str
) -> None:
    monkeypatch.setattr(setup, limit, value)
    assert match in refused(tmp_path, packed(("a/b/c/d/e", b"x" * 2000, PLAIN), ("b", b"", PLAIN)))


def test_an_entry_that_is_bigger_than_it_says(tmp_path: Path) -> None:
    data = bytearray(packed(("big", b"x" * 5000, PLAIN)))
    directory = data.rindex(b"PK\1\2")
    data[directory + 24 : directory + 28] = (10).to_bytes(4, "little")
    refused(tmp_path, bytes(data))
    assert sum(path.stat().st_size for path in (tmp_path / "target").iterdir()) <= 11


@pytest.mark.parametrize(
    "broken",
    [lambda data: b"", lambda data: b"not a zip", lambda data: data[:40], lambda data: data[10:],
     lambda data: data.replace(b"PK\1\2", b"PK\1\3"), lambda data: data[:-10] + b"\xff" * 10,
     lambda data: data[:35] + b"\xff" * 20 + data[55:]],
)  # fmt: skip
def test_what_is_no_archive(tmp_path: Path, broken: Callable[[bytes], bytes]) -> None:
    assert refused(tmp_path, broken(packed(("file.py", os.urandom(200), PLAIN))))


def test_an_archive_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        with pytest.raises(Problem, match="is not a file"):
            unpack(path, tmp_path / "target")


def test_a_good_archive_is_unpacked(tmp_path: Path) -> None:
    script = stat.S_IFREG | 0o4755  # set-uid is not kept
    (tmp_path / "in.zip").write_bytes(packed(("a/b.py", b"x = 1", PLAIN), ("run", b"#!/bin/sh", script)))
    unpack(tmp_path / "in.zip", tmp_path / "target")
    assert (tmp_path / "target/a/b.py").read_bytes() == b"x = 1"
    assert stat.S_IMODE((tmp_path / "target/run").stat().st_mode) == 0o755
