"""Logs of sessions that failed are kept, bounded; those of sessions that ended in order are not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from miniray.runtime import kept_logs


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a session directory whose daemon has logged something."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def make(name: str = "miniray-0-aa", text: str = "why it failed") -> Path:
        logs = tmp_path / name / "logs"
        logs.mkdir(parents=True)
        (logs / "daemon.log").write_text(text)
        (logs / "worker.err").write_text("")
        return logs.parent

    return make


def kept(session_dir: Path) -> dict[str, str]:
    place = Path(kept_logs.place_of(str(session_dir)))
    return {path.name: path.read_text() for path in place.iterdir()} if place.exists() else {}


def test_a_raylet_that_fails_keeps_its_logs(session: Callable[..., Path]) -> None:
    made = session()
    kept_logs.settle(str(made), failed=True)
    assert kept(made) == {"daemon.log": "why it failed"}


def test_a_raylet_that_ends_in_order_keeps_none_and_neither_does_its_zygote(
    session: Callable[..., Path]
) -> None:
    made = session()
    kept_logs.settle(str(made), failed=False)
    kept_logs.keep_unsettled(str(made))
    assert kept(made) == {}


def test_the_zygote_keeps_the_logs_of_a_raylet_that_was_killed(session: Callable[..., Path]) -> None:
    made = session()
    kept_logs.keep_unsettled(str(made))
    assert kept(made) == {"daemon.log": "why it failed"}


def test_nothing_to_keep_is_no_error(session: Callable[..., Path], tmp_path: Path) -> None:
    kept_logs.keep_unsettled(str(session(text="")))
    kept_logs.keep_unsettled(str(tmp_path / "gone"))
    kept_logs.settle(str(tmp_path / "gone"), failed=True)
    assert not (tmp_path / "state").exists()


def test_the_end_of_a_long_file_and_the_newest_sessions_are_kept(session: Callable[..., Path]) -> None:
    made = session(text="x" * kept_logs.FILE_BYTES + "the end")
    kept_logs.settle(str(made), failed=True)
    assert len(kept(made)["daemon.log"]) == kept_logs.FILE_BYTES
    assert kept(made)["daemon.log"].endswith("the end")
    os.utime(kept_logs.place_of(str(made)), (1, 1))
    others = [session(f"miniray-0-{number}") for number in range(kept_logs.KEPT)]
    for other in others:
        kept_logs.settle(str(other), failed=True)
    assert kept(made) == {} and all(kept(other) for other in others)
