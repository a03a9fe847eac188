"""The recipes in cluster/ do what they say, on stand-ins for the machines' own tools."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BIN / "miniray-head").exists(), reason="miniray is not installed"),
]

PROGRAM = "import miniray as ray; ray.init(); print('nodes', len([n for n in ray.nodes() if n['Alive']]))"

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do [[ $1 == --nodelist=* ]] && node=${1#--nodelist=}; shift; done
export MINIRAY_TMPDIR="$MINIRAY_TMPDIR/$node"
exec "$@"
"""


def tool(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)


def test_slurm_runs_a_program_on_all_hosts(tmp_path: Path, environment: dict[str, str]) -> None:
    hosts = ("a", "b")
    tool(tmp_path, "srun", SRUN)
    tool(tmp_path, "scontrol", "#!/bin/sh\nprintf 'a\\nb\\n'\n")
    tool(tmp_path, "getent", "#!/bin/sh\necho 127.0.0.1 STREAM $2\n")
    tmpdir = Path(environment["MINIRAY_TMPDIR"])
    for host in hosts:
        (tmpdir / host).mkdir()
    done = subprocess.run(
        ["bash", "cluster/slurm/miniray.sbatch", sys.executable, "-c", PROGRAM], cwd=ROOT,
        env=environment | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "MINIRAY_BIN": str(BIN),
            "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "a,b", "SLURM_CPUS_PER_TASK": "1",
        },
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["nodes", "2"]
    for host in hosts:
        assert list((tmpdir / host).iterdir()) == []
        (tmpdir / host).rmdir()


def test_ssh_starts_and_stops_a_cluster(tmp_path: Path, environment: dict[str, str]) -> None:
    tool(tmp_path, "ssh", """#!/bin/sh
if [ "$1" = -G ]; then echo "hostname 127.0.0.1"; exit; fi
for last in "$@"; do :; done
exec sh -c "$last"
""")
    run = environment | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}

    def call(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=run, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call("-m", "cluster.ssh", "up", "one", "--port", "0")
    token = tmp_path / ".config/miniray/ssh-token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert call("-c", PROGRAM).split() == ["nodes", "1"]
    call("-m", "cluster.ssh", "down", "one")
    assert not token.exists()
