"""What type checkers see: results, arguments and mistakes, as mypy reports them."""

from __future__ import annotations

import re
import shutil
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

class Older:
    def m(self) -> int: return 1

Actor = ray.remote(Older)

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


ACTORS = """
from collections.abc import Iterator
import miniray as ray

@ray.remote(num_cpus=1)
class Counter:
    def __init__(self, start: int = 0, *, name: str = "") -> None:
        self.n = start

    def add(self, by: int, twice: bool = False) -> int:
        return self.n

    async def wait(self) -> str: return ""

    def items(self) -> Iterator[int]: yield 1

    @ray.method(num_returns=2)
    def pair(self) -> tuple[int, str]: return 1, ""

class Bare:
    def add(self, by: int) -> int: return by

counter = Counter.remote(1, name="a")
reveal_type(counter)                          # ActorHandle[sample.Counter]
reveal_type(counter.add.remote(1, twice=True))  # ObjectRef[int]
reveal_type(counter.add.remote(ray.put(1)))   # ObjectRef[int]
reveal_type(counter.wait.remote())            # ObjectRef[str]
reveal_type(counter.items.remote())           # ObjectRefGenerator
reveal_type(counter.pair.remote())            # Any
reveal_type(counter.__ray_ready__.remote())   # Any
reveal_type(counter.add.options(concurrency_group="io").remote(1))  # ObjectRef[int]
reveal_type(Counter.options(name="x").remote().add.remote(1))       # ObjectRef[int]
reveal_type(ray.remote(Bare).remote().add.remote(1))               # ObjectRef[int]
counter.add.remote("x")                       # error: incompatible type "str"
counter.add.remote()                          # error: Missing positional argument "by"
counter.add.remote(1, thrice=True)            # error: Unexpected keyword argument "thrice"
counter.subtract.remote(1)                    # error: "Counter" has no method "subtract"
Counter.remote("x")                           # error: incompatible type "str"
Counter.remote(1, nam="a")                    # error: Unexpected keyword argument "nam"
"""

PROXIES = """
import miniray as ray
from miniray.actor import ActorProxy

class Plain:
    @ray.method
    def add(self, by: int) -> int: return self.add(1)

    @ray.method(concurrency_group="io")
    async def wait(self) -> str: return ""

def use(plain: ActorProxy[Plain]) -> None:
    reveal_type(plain.add.remote(1))          # ObjectRef[int]
    reveal_type(plain.wait.remote())          # ObjectRef[str]
    plain.add.remote("x")                     # error: "int | ObjectRef[int]"
"""


@pytest.mark.timeout(250)
@pytest.mark.parametrize("plugin, sample", [(False, SAMPLE + PROXIES), (True, ACTORS + PROXIES)])
def test_types_are_as_documented(plugin, sample, tmp_path):
    path, settings = tmp_path / "sample.py", tmp_path / "mypy.ini"
    path.write_text(sample)
    settings.write_text("[mypy]\nstrict = True\n" + "plugins = miniray.mypy_plugin\n" * plugin)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(settings), "--no-error-summary", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    reports_as_marked(sample, done.stdout, r".*sample\.py:(\d+): \w+: (.*)")


@pytest.mark.skipif(shutil.which("pyright") is None, reason="pyright is not installed")
def test_pyright_sees_the_methods_of_a_proxy(tmp_path):
    path = tmp_path / "sample.py"
    path.write_text(PROXIES)
    done = subprocess.run(
        ["pyright", "--pythonpath", sys.executable, str(path)], cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    reports_as_marked(PROXIES, done.stdout, r".*sample\.py:(\d+):\d+ - \w+: (.*)")


def reports_as_marked(sample, output, pattern):
    """Every line is reported with what its comment says, and no other."""
    said = {}
    for line in output.splitlines():
        found = re.match(pattern, line)
        if found:
            said.setdefault(int(found.group(1)), []).append(found.group(2))
    assert said, output
    for number, line in enumerate(sample.splitlines(), 1):
        code, _, wanted = line.partition("  # ")
        reports = " ".join(said.pop(number, []))
        wanted = wanted.strip().removeprefix("error: ")
        shown = wanted.replace("builtins.", "")
        assert shown in re.sub(r"builtins\.|miniray\.ids\.", "", reports), (
            f"{code.strip()}: {reports!r} does not say {wanted!r}"
        )
        assert wanted or not reports, f"{code.strip()}: unexpected {reports!r}"
    assert not said, said
