"""Every example runs unchanged on a session of its own and on a started cluster."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
LINES = 75


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True,
        timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A head and a node with two CPUs, started from the command line."""
    said = run("-m", "miniray", "start", "--head", "--port", "0", "--num-cpus", "2")
    found = re.search(r"--address='([^']+)'", said)
    assert found, said
    yield found[1]
    run("-m", "miniray", "stop", "--address", found[1])


@pytest.mark.parametrize("name", EXAMPLES)
def test_on_a_session_of_its_own(name: str) -> None:
    assert run(f"examples/{name}", MINIRAY_ADDRESS="local").strip()


@pytest.mark.parametrize("name", [name for name in EXAMPLES if not name.startswith("train_")])
def test_on_a_started_cluster(name: str, address: str) -> None:
    assert run(f"examples/{name}", MINIRAY_ADDRESS=address).strip()


@pytest.mark.parametrize("name", EXAMPLES)
def test_fits_a_page(name: str) -> None:
    text = (ROOT / "examples" / name).read_text()
    assert text.count("\n") < LINES
    assert "import miniray as ray\n" in text and "    ray.init()\n" in text


def test_the_taste_in_the_readme_runs(tmp_path: Path) -> None:
    taste = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert taste is not None
    program = tmp_path / "taste.py"
    program.write_text(taste[1])
    said = run(str(program), MINIRAY_ADDRESS="local", PYTHONPATH=str(ROOT))
    assert said.split() == [str(sum(i * i for i in range(1000))), "3"]
