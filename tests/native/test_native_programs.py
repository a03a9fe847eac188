"""The C++ tests of native/test: built once into build/native-test, run briefly."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "native-test"
NO_PTRACE = 77


@pytest.fixture(scope="module")
def programs() -> Path:
    """The folder of the programs, up to date with native/."""
    cmake = shutil.which("cmake", path=str(ROOT / ".venv" / "bin")) or shutil.which("cmake")
    if cmake is None or shutil.which("c++") is None:
        pytest.skip("cmake or a C++ compiler is missing")
    configure = [cmake, "-S", str(ROOT), "-B", str(BUILD), "-DMINIRAY_NATIVE_TESTS=ON"]
    for command in (configure, [cmake, "--build", str(BUILD), "--parallel", "2"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return BUILD


def test_clients_as_threads(programs: Path) -> None:
    done = subprocess.run([programs / "native_stress", "1"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_death_at_any_instruction(programs: Path) -> None:
    done = subprocess.run([programs / "native_death", "13"], capture_output=True, text=True, timeout=60)
    if done.returncode == NO_PTRACE:
        pytest.skip("ptrace is not allowed here")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_death_at_every_instruction(programs: Path) -> None:
    done = subprocess.run([programs / "native_death", "1"], capture_output=True, text=True, timeout=110)
    if done.returncode == NO_PTRACE:
        pytest.skip("ptrace is not allowed here")
    assert done.returncode == 0, done.stdout + done.stderr
