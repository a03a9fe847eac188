"""Programs with a mistake: run as a user would, what they and `miniray why` print must name the cause.

Each program of `broken/` says in its docstring what must be named: `names: REGEX`, one per line. One that
hangs prints `why: ID-OR-NAME`, for which the command is run, again until it has said it all (an answer
needs what has happened by then), and ends when its stdin does.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAMS = sorted((Path(__file__).parent / "broken").glob("*.py"))
DEADLINE_S = 60.0
PATIENT = {"deadlock_ends_in_a_timeout", "head_that_was_killed"}
"""These wait for a time-out of theirs: in the slow suite."""


def wanted(program: Path) -> list[str]:
    """The patterns in the docstring of a program."""
    text = ast.get_docstring(ast.parse(program.read_text())) or ""
    return [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("names:")]


def missing(patterns: list[str], said: str) -> list[str]:
    return [pattern for pattern in patterns if not re.search(pattern, said)]


def asked(subject: str) -> str:
    done = subprocess.run([sys.executable, "-m", "miniray", "why", subject],
                          capture_output=True, text=True, timeout=DEADLINE_S, check=False)  # fmt: skip
    return done.stdout + done.stderr


def test_there_are_forty_of_them_and_each_names_something() -> None:
    assert len(PROGRAMS) >= 40
    assert all(wanted(program) for program in PROGRAMS)


@pytest.mark.parametrize("program", [
    pytest.param(one, id=one.stem, marks=pytest.mark.slow if one.stem in PATIENT else ())
    for one in PROGRAMS
])
def test_the_cause_is_named(program: Path) -> None:
    patterns = wanted(program)
    with subprocess.Popen([sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True) as process:  # fmt: skip
        assert process.stdout is not None and process.stdin is not None
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("why: "):
                said += until_all_is_said(line.partition(": ")[2].strip(), patterns)
                process.stdin.close()
        process.wait(DEADLINE_S)
    assert not missing(patterns, said), f"not named: {missing(patterns, said)}\nbut this was said:\n{said}"


def until_all_is_said(subject: str, patterns: list[str]) -> str:
    deadline = time.monotonic() + DEADLINE_S
    while missing(patterns, said := asked(subject)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return said
