"""The page about compatibility is of today, and Ray agrees where it is installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.compat import report


def test_every_behaviour_is_on_the_page():
    text = report.PAGE.read_text()
    missing = [one.name for one in report.behaviours() if not one.says or one.says not in text]
    missing += [one.name for one in report.behaviours() if one.differs and one.differs not in text]
    missing += [name for tests in report.FAILING.values() for name in tests if name not in text]
    assert not missing, f"not in {report.PAGE.name}: {missing}; `python -m tests.compat.report` writes it"


@pytest.mark.compat
@pytest.mark.timeout(1200)
def test_ray_behaves_the_same():
    python = os.environ.get("MINIRAY_COMPAT_PYTHON", sys.executable)
    if python == sys.executable and importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed; MINIRAY_COMPAT_PYTHON may name an interpreter that has it")
    command = [sys.executable, "-m", "tests.compat.report", "--ray", python, "--check"]
    done = subprocess.run(command, cwd=report.ROOT, check=False)
    assert done.returncode == 0
