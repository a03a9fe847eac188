"""A command line run as users run it, in sessions of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """An environment whose sessions only this test sees; whatever still runs is stopped."""
    directory = Path(os.environ["MINIRAY_TMPDIR"], f"cli{os.urandom(2).hex()}")
    directory.mkdir()
    monkeypatch.setenv("MINIRAY_TMPDIR", str(directory))
    yield dict(os.environ)
    subprocess.run([sys.executable, "-m", "miniray", "stop", "--force"], cwd=ROOT, check=False)
    left = [path.name for path in directory.iterdir()]
    assert left == []
    directory.rmdir()


@pytest.fixture
def miniray(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`miniray("start", "--head", code=0)`: run the command, demand its exit code."""

    def run(*arguments: str, code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "miniray", *arguments],
            env=environment | more, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run
