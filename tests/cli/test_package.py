"""The wheel is whole: it installs beside nothing but its dependencies and runs a program."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

PROGRAM = """
import miniray as ray
ray.init(num_cpus=1)
f = ray.remote(lambda x: x + 1)
print(ray.__file__, ray.get(f.remote(1)))
"""


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_runs_without_the_checkout(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--no-build-isolation", "--no-deps", "--config-settings", f"build-dir={tmp_path}/build"]
    run(*pip, "wheel", "--quiet", *options, "--wheel-dir", str(tmp_path), str(ROOT), cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"miniray"}
    for part in ("_native.", "_proto/gcs_pb2.py", "py.typed", "runtime/daemon.py", "commands/start.py"):
        assert any(name.startswith(f"miniray/{part}") for name in names), part

    # An environment of its own that borrows the dependencies: a path in a .pth file adds packages,
    # but not the editable install among them.
    run(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv"), cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(str(python), "-c", ask, cwd=tmp_path).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(*pip, "install", "--quiet", "--no-deps", "--target", str(site), str(wheel), cwd=tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM)
    where, two = run(str(python), "program.py", cwd=tmp_path).split()
    assert where.startswith(str(site)) and two == "2"
