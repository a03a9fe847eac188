"""Runs the tests of this folder on miniray and on Ray and writes docs/compatibility.md.

    python -m tests.compat.report --ray /path/to/python-with-ray [--check]

The interpreter given needs Ray, pytest, pytest-asyncio, pytest-timeout and numpy. With `--check`
nothing is written: the exit status says whether every test has the outcome that its mark promises.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.compat.ray_tests import FAILING

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "compatibility.md"

HEAD = """# Compatibility with Ray

`import miniray as ray`: the same program runs on both. This page is written by
`python -m tests.compat.report`, which runs the tests in `tests/compat` on miniray and on Ray{version}; a
sentence below is the docstring of a test that passed on miniray and on Ray, or, under "What differs",
of one that passes on miniray only.

A program that is not to be edited can say `sys.modules["ray"] = miniray` before its first `import ray`;
its workers then know the name too.
"""

ELSEWHERE = """## What is not here

- **Ray Client** (`ray://…`): no proxy; a driver outside the cluster gets a node of its own, which takes no
  work, behind the head's port. The address names that port, and the API is the whole one.
- **`_system_config`** and other private options but `_temp_dir` are accepted and have no effect: there are
  fewer knobs, and they are in `miniray/config.py`.
- **conda and containers** in runtime environments: refused by name. `pip`, `uv` and `py_executable` work.
- **Attaching by accident**: `init(num_cpus=…)` without an address starts a session of its own, also where a
  cluster runs; Ray refuses. `init()` without any resources attaches, as in Ray.
- **What workers can import**: besides the driver's script directory and current directory also what the
  driver had added to `sys.path`. Ray leaves that out.
- **Dead nodes** are noticed within 2 s when their connection is refused and 10 s when they fall silent; Ray
  takes longer with its defaults.
- **Memory beyond the store**: where all of a store is being read, or an object is larger than it, Ray maps
  files instead. Here `put` waits for room and is then ObjectStoreFullError, which names who reads how much.
  A store is one segment that everybody maps once, so that `get` is a look into one table; pages are taken
  when they are first used, so an ample `object_store_memory` is the way out, and costs nothing before that.
- **Ports**: a local session listens on none.
"""


@dataclass
class Behaviour:
    """One test function."""

    file: str
    area: str
    name: str
    says: str
    differs: str = ""


def behaviours() -> list[Behaviour]:
    """Every test of this folder, read from its source."""
    found = []
    for path in sorted(HERE.glob("test_*.py")):
        tree = ast.parse(path.read_text())
        area = ast.get_docstring(tree) or path.stem
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
                says = " ".join((ast.get_docstring(node) or "").split())
                found.append(Behaviour(path.name, area, node.name, says, _differs(node)))
    return [one for one in found if one.file != "test_page.py"]


def _differs(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.differs":
            return str(ast.literal_eval(decorator.args[0]))
    return ""


def run(engine: str, python: str) -> dict[str, str]:
    """The outcome of each test on one engine: passed, skipped (expected failures too) or failed."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as directory:
        outcomes = Path(directory) / "outcomes.json"
        environment = {**os.environ, "MINIRAY_COMPAT_ENGINE": engine}
        environment["MINIRAY_COMPAT_OUTCOMES"] = str(outcomes)
        if engine == "ray":
            environment["RAY_TMPDIR"] = directory
            environment.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "600", str(HERE)]
        subprocess.run(command, cwd=ROOT, env=environment, check=False)
        by_test: dict[str, str] = json.loads(outcomes.read_text())
    worst: dict[str, str] = {}
    for name, outcome in by_test.items():
        plain = name.partition("[")[0]
        if worst.get(plain) != "failed":
            worst[plain] = outcome
    return worst


def wrong(miniray: dict[str, str], ray: dict[str, str]) -> list[str]:
    """Tests whose outcome is not what their mark promises."""
    problems = []
    for one in behaviours():
        key = f"{one.file}::{one.name}"
        if miniray.get(key) != "passed":
            problems.append(f"{key} on miniray: {miniray.get(key)}")
        if ray.get(key) == "failed":  # a strict expected failure that passes is one, too
            problems.append(f"{key} on Ray: failed")
    return problems


def page(unseen: set[str], version: str) -> str:
    """The text of the page. `unseen`: tests that Ray skipped."""
    parts = [HEAD.format(version=f" {version}" if version else ""), "## What is the same\n"]
    all_of_them = behaviours()
    for area in dict.fromkeys(one.area for one in all_of_them):
        same = [one for one in all_of_them if one.area == area and not one.differs]
        parts.append(f"### {area}\n")
        for one in same:
            skipped = f"{one.file}::{one.name}" in unseen
            parts.append(f"- {one.says}" + (" (Not run on Ray: it needs its dashboard.)" if skipped else ""))
        parts.append("")
    parts.append("## What differs\n")
    parts.append("| here | why it differs |\n|---|---|")
    parts += [f"| {one.says} | {one.differs} |" for one in all_of_them if one.differs]
    parts.append("")
    parts.append(ELSEWHERE)
    parts.append("## Tests of Ray's own suite that do not pass\n")
    parts.append("Of those that pass on Ray 2.60 and use public behaviour only:\n")
    for file, tests in sorted(FAILING.items()):
        parts += [f"- `{file}.{name}`: {why}" for name, why in sorted(tests.items())]
    return "\n".join(parts) + "\n"


def main() -> int:
    """See the module head."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ray", required=True, help="an interpreter with Ray and pytest")
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    miniray, ray = run("miniray", sys.executable), run("ray", arguments.ray)
    problems = wrong(miniray, ray)
    print("\n".join(problems) or "every test has the outcome that its mark promises")
    if not problems and not arguments.check:
        asked = [arguments.ray, "-c", "import ray; print(ray.__version__)"]
        version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        plain = {f"{one.file}::{one.name}" for one in behaviours() if not one.differs}
        PAGE.write_text(page({key for key in plain if ray.get(key) == "skipped"}, version))
        print(f"wrote {PAGE}")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
