"""No decision depends on what two machines' clocks say: the wall clock is read for people, in few places."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "miniray"

WALL = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"}

READERS = {
    "runtime/gcs.py": "rows of the tables say when something began and ended",
    "runtime/storage.py": "empty tables count their heads from a number above those of tables that were lost",
    "runtime/node_daemon.py": "a node's row says since when it runs",
    "runtime/census.py": "rows of what runs say since when",
    "runtime/tasklog.py": "rows of tasks say since when",
    "runtime/sessions.py": "how old a daemon of this machine is, by this machine's clock",
    "runtime/remains.py": "how old a file of this machine is, by this machine's clock",
    "runtime/certificates.py": "TLS demands a time; `CLOCK_SKEW_S` says how far clocks may be apart",
    "util/metrics.py": "a sample says when it was taken",
    "util/state/rows.py": "rows, for people",
    "commands/tables.py": "how long ago something was, for people",
    "commands/benchmark/workloads/__main__.py": "a name that nothing else has",
    "autoscaler/autoscaler.py": "names of nodes that nothing else has",
    "job_submission/client.py": "a job's record says when it began and ended",
    "job_submission/supervisor.py": "a job's record says when it began and ended",
    "logging_config.py": "a line of a log says when it was written",
}
"""Who reads the wall clock, and what for. Whoever decides by time takes the loop's, or a monotonic one."""


def readings(path: Path) -> Iterator[int]:
    """Lines that read the wall clock."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and ".".join(ast.unparse(node).split(".")[-2:]) in WALL:
            yield node.lineno


def test_the_wall_clock_is_read_for_people_only() -> None:
    found = {str(path.relative_to(PACKAGE)): lines for path in sorted(PACKAGE.rglob("*.py"))
             if "_pb2" not in path.name and (lines := list(readings(path)))}
    libraries = ("train/", "tune/", "serve/")
    strangers = {name: lines for name, lines in found.items()
                 if name not in READERS and not name.startswith(libraries)}
    assert not strangers, f"say what for in READERS, or take a monotonic clock: {strangers}"
    assert found.keys() >= READERS.keys(), f"read it no more: {READERS.keys() - found.keys()}"
