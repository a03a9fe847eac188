"""Behaviour that Ray has too: each test here runs on miniray, and on Ray where it is installed.

`ray` is the engine under test: miniray, or Ray with MINIRAY_COMPAT_ENGINE=ray (tests are skipped
where it is absent). A test's docstring is its sentence in docs/compatibility.md; one that is marked
`differs` holds on miniray only, and says why. `report.py` runs both and writes the page.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ENGINE = os.environ.get("MINIRAY_COMPAT_ENGINE", "miniray")
OUTCOMES = os.environ.get("MINIRAY_COMPAT_OUTCOMES")
"""A file that gets the outcomes as JSON: name of the test -> passed, failed or skipped."""
HERE = Path(__file__).parent

_outcomes: dict[str, str] = {}


@pytest.fixture(scope="session")
def ray() -> Any:
    """The engine's package."""
    try:
        found = importlib.import_module(ENGINE)
    except ImportError:
        pytest.skip("Ray is not installed")
    importlib.import_module(f"{ENGINE}.util.state")
    importlib.import_module(f"{ENGINE}.util.scheduling_strategies")
    return found


@pytest.fixture(scope="module")
def session(ray: Any) -> Iterator[Any]:
    """The engine with a session of 4 CPUs, shared by a module."""
    ray.init(num_cpus=4, num_gpus=2, resources={"special": 2}, labels={"zone": "a"}, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture
def state(session: Any) -> Any:
    """`util.state`; Ray's needs its dashboard."""
    try:
        session.util.state.list_nodes()
    except Exception as error:
        if type(error).__name__ != "ServerUnavailable":
            raise
        pytest.skip("this Ray was installed without its dashboard")
    return session.util.state


if ENGINE == "ray":  # Ray's daemons end in their own time

    @pytest.fixture(scope="module", autouse=True)
    def nothing_left_behind() -> None:
        """Nobody watches."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if ENGINE != "ray":
        return
    for item in items:
        marker = item.get_closest_marker("differs")
        if marker is not None and HERE in item.path.parents:
            item.add_marker(pytest.mark.xfail(reason=marker.args[0], strict=True))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    name = report.nodeid.rpartition("/")[2]
    if report.when == "call" or report.outcome != "passed":
        _outcomes[name] = report.outcome


def pytest_sessionfinish() -> None:
    if OUTCOMES:
        Path(OUTCOMES).write_text(json.dumps(_outcomes))
