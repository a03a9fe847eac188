"""The demo ends with pictures, leaves nothing else, and can be interrupted at any time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
pytest.importorskip("torch")


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cluster.demo", "--save-dir", str(folder), *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {
            "PYTHONUNBUFFERED": "1"
        },
    )  # fmt: skip


def demo_directories() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("mr-demo-*")) | set(Path("/tmp").glob("mr-demo-*"))


def test_the_demo_makes_pictures(tmp_path: Path) -> None:
    before = demo_directories()
    demo = start(tmp_path, "--epochs", "1")
    said, _ = demo.communicate(timeout=110)
    assert demo.returncode == 0, said
    assert list(tmp_path.glob("*.png")) and (tmp_path / "generator.pth").exists()
    assert "Everything is stopped" in said
    assert demo_directories() == before


@pytest.mark.parametrize("moment", ["starting", "$ python -m ml.gan.train", "training on"])
def test_ctrl_c_ends_everything(tmp_path: Path, moment: str) -> None:
    before = demo_directories()
    demo = start(tmp_path, "--epochs", "500")
    watchdog = threading.Timer(100, demo.kill)
    watchdog.start()
    assert demo.stdout is not None
    for line in demo.stdout:
        if moment in line:
            demo.send_signal(signal.SIGINT)
            break
    said, _ = demo.communicate(timeout=60)
    watchdog.cancel()
    assert demo.returncode == 130, said
    assert demo_directories() == before
