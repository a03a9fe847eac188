"""What type checkers see: results, arguments and mistakes, as mypy reports them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")

ROOT = Path(__file__).resolve().parents[2]

SAMPLE = """
from collections.abc import Iterator
import miniray as ray

@ray.remote
def f(x: int, y: str = "a") -> int: return x

@ray.remote(num_cpus=2)
def g() -> str: return ""

@ray.remote
def items(n: int) -> Iterator[int]: yield n

class Plain:
    def m(self) -> int: return 1

Actor = ray.remote(Plain)

reveal_type(f.remote(1, "b"))                 # ObjectRef[builtins.int]
reveal_type(f.remote(f.remote(1)))            # ObjectRef[builtins.int]
reveal_type(f.remote(1, y="b"))               # ObjectRef[builtins.int]
reveal_type(ray.get(g.remote()))              # builtins.str
reveal_type(ray.get([g.remote()]))            # builtins.list[builtins.str]
reveal_type(items.remote(3))                  # ObjectRefGenerator
reveal_type(Actor.remote())                   # ActorHandle[
reveal_type(ray.put(1.5))                     # ObjectRef[builtins.float]
async def main() -> None:
    reveal_type(await g.remote())             # builtins.str
reveal_type(ray.wait([g.remote()]))           # ObjectRef[builtins.str]
f.remote("x")                                 # error: incompatible type "str"
f.remote(1, "b", 2)                           # error: Too many arguments
g.remote(1)                                   # error: Too many arguments
f.options(num_cpus=1).remote(1)
"""


@pytest.mark.timeout(250)
def test_types_are_as_documented(tmp_path):
    path = tmp_path / "sample.py"
    path.write_text(SAMPLE)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    said = {}
    for line in done.stdout.splitlines():
        found = re.match(r".*sample\.py:(\d+): \w+: (.*)", line)
        if found:
            said.setdefault(int(found.group(1)), []).append(found.group(2))
    for number, line in enumerate(SAMPLE.splitlines(), 1):
        code, _, wanted = line.partition("  # ")
        reports = " ".join(said.pop(number, []))
        wanted = wanted.strip().removeprefix("error: ")
        shown = wanted.replace("builtins.", "")
        assert shown in reports.replace("builtins.", ""), (
            f"{code.strip()}: {reports!r} does not say {wanted!r}"
        )
        assert wanted or not reports, f"{code.strip()}: unexpected {reports!r}"
    assert not said, said
