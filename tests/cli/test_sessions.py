"""Sessions are found by their files, and only while their writer lives."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from miniray.runtime import sessions


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINIRAY_TMPDIR", str(tmp_path))
    return tmp_path


def test_a_session_directory_is_private() -> None:
    directory = Path(sessions.create())
    assert directory.name.startswith(f"miniray-{os.getuid()}-")
    assert directory.stat().st_mode & 0o777 == 0o700


def test_a_published_session_is_found_by_kind_and_address() -> None:
    local, member = sessions.create(), sessions.create()
    sessions.publish(local, "node", address="", node_id="aa", socket="local.sock")
    sessions.publish(member, "node", address="127.0.0.1:6379", node_id="bb", socket="member.sock")
    os.utime(Path(local) / "node.json", (1e9 + 4e9, 1e9 + 4e9))  # the newer one
    assert sessions.find("auto") == sessions.living()[0]
    assert sessions.find("auto").node_id == "aa"  # type: ignore[union-attr]
    assert sessions.find("127.0.0.1:6379").socket == "member.sock"  # type: ignore[union-attr]
    assert sessions.find("127.0.0.1:6379", kind="head") is None
    assert sessions.find("10.0.0.1:6379") is None


def test_files_are_readable_by_their_user_only() -> None:
    directory = Path(sessions.create())
    sessions.publish(str(directory), "head", address="127.0.0.1:1")
    sessions.write_private(str(directory / "token"), "secret\n")
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
    assert sessions.living()[0].token() == "secret"


def test_what_others_can_write_is_no_session(root: Path) -> None:
    """A link of our name to a directory of ours that all may write to, as /tmp is root's."""
    shared = root / "shared"
    shared.mkdir()
    sessions.publish(str(shared), "node", address="127.0.0.1:1", socket=str(shared / "evil.sock"))
    name = f"miniray-{os.getuid()}-deadbeef"
    (root / name).symlink_to(shared)
    assert sessions.living() == []
    shared.chmod(0o1777)
    (root / name).unlink()
    shared.rename(root / name)
    assert sessions.living() == []
    (root / name).chmod(0o700)
    assert len(sessions.living()) == 1, "nothing else was wrong with it"


def test_a_session_whose_daemon_ended_is_not_seen() -> None:
    directory = Path(sessions.create())
    process = subprocess.Popen(["sleep", "60"])
    info = {"pid": process.pid, "address": "", "node_id": "", "socket": ""}
    (directory / "node.json").write_text(json.dumps(info))
    assert [session.pid for session in sessions.living()] == [process.pid]
    process.kill()
    process.wait()
    assert sessions.living() == []


def test_a_pid_that_is_used_again_is_not_the_daemon() -> None:
    directory = Path(sessions.create())
    sessions.publish(str(directory), "node", address="")
    os.utime(directory / "node.json", (1e9, 1e9))  # written long before this process started
    assert sessions.living() == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1}'])
def test_a_broken_file_is_no_session(text: str) -> None:
    Path(sessions.create(), "node.json").write_text(text)
    assert sessions.living() == []
