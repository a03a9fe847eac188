"""Fixtures of the system tests: sessions with a small store, quiet logs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.support import Effects

STORE_BYTES = 100 << 20


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """One session with 2 CPUs for a module whose tests do not disturb one another."""
    import miniray

    miniray.init(num_cpus=2, object_store_memory=STORE_BYTES, configure_logging=False)
    yield miniray
    miniray.shutdown()


@pytest.fixture
def effects(tmp_path: Path) -> Effects:
    """Counts what tasks did, whatever became of them: a file with one line per effect."""
    return Effects(str(tmp_path / "effects"))
