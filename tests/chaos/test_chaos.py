"""A minute of chaos, and some kills of each kind of process: the short form of what `make chaos` does."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from tests.chaos import kill_matrix
from tests.netns.network import missing

pytestmark = pytest.mark.chaos


@pytest.mark.timeout(900)
@pytest.mark.parametrize("where", ["on one machine", "on hosts of their own"])
def test_a_minute_of_chaos_breaks_no_promise(where: str) -> None:
    hosts = where == "on hosts of their own"
    if hosts and missing():
        pytest.skip(missing())
    seed = str(random.randrange(1 << 31))
    command = [sys.executable, "-m", "tests.chaos", "--minutes", "1", "--seed", seed, *(["--hosts"] * hosts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", kill_matrix.KINDS)
def test_kill_9_at_any_moment_leaves_nothing(kind: str) -> None:
    command = [sys.executable, "-m", "tests.chaos.kill_matrix", "--each", "5", "--kinds", kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
