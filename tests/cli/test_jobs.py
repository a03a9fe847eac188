"""`miniray job`: submit and follow, exit codes, list, stop."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

from tests.cli.test_cluster import start_head

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_jobs_are_submitted_followed_listed_and_stopped(miniray: Run) -> None:
    start_head(miniray)
    said = miniray("job", "submit", "--submission-id", "one", "--", "echo", "hello  world").stdout
    assert "hello  world\n" in said and "'one' succeeded" in said
    failed = miniray("job", "submit", "--submission-id", "two", "--", "sh", "-c", "exit 4", code=1)
    assert "exit code 4" in failed.stdout
    assert "Exit code: 4" in miniray("job", "status", "two").stdout
    assert miniray("job", "logs", "one").stdout == "hello  world\n"
    miniray("job", "submit", "--no-wait", "--submission-id", "three", "--metadata-json", '{"a": "b"}', "--",
            "sleep", "1000")  # fmt: skip
    assert "was stopped" in miniray("job", "stop", "three").stdout
    rows = {row["submission_id"]: row for row in json.loads(miniray("job", "list", "--json").stdout)}
    assert [rows[name]["status"] for name in ("one", "two", "three")] == ["SUCCEEDED", "FAILED", "STOPPED"]
    assert rows["three"]["metadata"] == {"a": "b"}
    for asked in (("status", "four"), ("logs", "--follow", "four")):
        said = miniray("job", *asked, code=1).stderr
        assert said.startswith("Error: Job 'four' does not exist") and said.count("\n") == 1
    miniray("job", "submit", "--no-wait", "--submission-id=five", "--entrypoint-num-cpus=99", "--", "true")
    assert "no node has 99 CPU" in miniray("job", "status", "five").stdout
