"""`miniray microbenchmark` works: every workload, comparison, gate and profile, on small sizes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from miniray.commands.benchmark import compare
from miniray.commands.benchmark.stages import STAGES
from miniray.commands.microbenchmark import microbenchmark

QUICK = ("--small", "--seconds", "0.02")

EXPECTED = {
    "first result, import included", "memory of all processes (PSS)", "shutdown", "tasks, one at a time",
    "tasks, batches of 1,000", "tasks, chain of 100", "tasks, tree of 511", "nested tasks",
    "100,000 tasks queued and done", "task with 10,000 arguments", "task with 3,000 returns",
    "wait over 1,000 tasks", "streamed values", "actor calls, one at a time", "actor calls, batches of 1,000",
    "asyncio actor, batches of 1,000", "1:2 actor calls, batches", "2:2 actor calls, batches",
    "actors made and answering", "placement groups made and removed", "put 1 KB", "put 200 KB array",
    "get 200 KB array", "put 100 MB", "task returns 50 MB", "get an object of 10,000 references",
    "actor call beside a flooding caller, p99.9", "task beside a flood of tasks, p99.9",
    "cross-node tasks", "cross-node actor calls", "cross-node 256 MB",
}  # fmt: skip


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(microbenchmark, list(arguments))
    assert result.exit_code == code, result.output
    return result


def row(name: str, unit: str, value: float, calibration: float = 1.0) -> dict[str, Any]:
    return {"name": name, "unit": unit, "value": value, "calibration": calibration}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_workload_runs() -> None:
    rows = {found["name"]: found for found in json.loads(run(*QUICK, "--json").stdout)}
    assert rows.keys() == EXPECTED
    assert all(found["value"] > 0 and found["calibration"] > 0 for found in rows.values())
    for name in ("tasks, one at a time", "actor calls, one at a time"):
        assert 0 < rows[name]["p50_us"] <= rows[name]["p99_us"] <= rows[name]["p999_us"]


def test_a_profile_adds_up_to_the_whole_call() -> None:
    task, call = json.loads(run("--profile", "--seconds", "0.5", "--json").stdout)
    assert (task["name"], call["name"]) == ("task", "actor call")
    for report in (task, call):
        assert tuple(report["stages"]) == STAGES and min(report["stages"].values()) >= 0
        # Medians of the stages: near the median of the sums, but not equal to it.
        assert 0.3 < sum(report["stages"].values()) / report["total_us"] < 1.7
        for side in ("driver", "worker"):
            assert report["cpu_us"][side] > 0
            assert sum(report["functions"][side].values()) <= 1.0001
    assert call["functions"]["driver"]


@pytest.fixture
def ray_by_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package `ray` that is miniray."""
    (tmp_path / "ray" / "util").mkdir(parents=True)
    (tmp_path / "ray" / "__init__.py").write_text("from miniray import *\n")
    (tmp_path / "ray" / "util" / "__init__.py").touch()
    placement = "from miniray.util.placement_group import *\n"
    (tmp_path / "ray" / "util" / "placement_group.py").write_text(placement)
    root = Path(__file__).resolve().parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{root}")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_by_another_name")
def test_two_engines_are_compared_by_ratios() -> None:
    arguments = (*QUICK, "--only", "put 1", "--against", "ray", "--ray-python", sys.executable)
    found = json.loads(run(*arguments, "--json").stdout)
    assert found["ratios"].keys() == {"put 1 KB", "put 100 MB"}
    assert found["geometric_mean"] == pytest.approx(compare.geometric_mean(list(found["ratios"].values())))
    assert found["calibrated_geometric_mean"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("ray_by_another_name")
def test_a_comparison_is_a_table() -> None:
    text = run(*QUICK, "--only", "put 1 KB", "--against", "ray", "--ray-python", sys.executable).output
    assert "geometric mean of the ratios" in text and "put 1 KB" in text


def test_an_engine_that_is_not_there_is_named() -> None:
    result = run(*QUICK, "--only", "put 1 KB", "--against", "ray", code=1)
    assert "ray: " in result.output and "No module named 'ray'" in result.output


@pytest.mark.slow
def test_a_baseline_is_recorded_and_gates(tmp_path: Path) -> None:
    path = tmp_path / "baseline.jsonl"
    arguments = (*QUICK, "--only", "put 1 KB", "--baseline", str(path))
    assert "no baseline" in run(*arguments, code=1).output
    run(*arguments, "--record")
    recorded = json.loads(path.read_text())
    path.write_text(json.dumps(recorded | {"value": recorded["value"] / 100}) + "\n")
    run(*arguments)
    path.write_text(json.dumps(recorded | {"value": recorded["value"] * 100}) + "\n")
    assert "put 1 KB: 0.0" in run(*arguments, code=1).output


def test_a_ratio_is_how_many_times_better() -> None:
    assert compare.ratio(row("a", "/s", 30), row("a", "/s", 10)) == 3
    assert compare.ratio(row("a", "s", 10), row("a", "s", 30)) == 3
    assert compare.geometric_mean([1, 4]) == pytest.approx(2)
    assert compare.paired([row("a", "s", 1), row("b", "s", 1)], [row("b", "s", 2)])[0][1]["value"] == 2


def test_a_slower_machine_is_no_regression() -> None:
    before = [row("a", "/s", 100, 10), row("b", "s", 1, 10), row("c", "GB/s", 4, 10)]
    half_as_fast = [row("a", "/s", 50, 5), row("b", "s", 2, 5), row("c", "GB/s", 4, 5)]
    assert compare.regressions(half_as_fast, before) == []
    slower = [row("a", "/s", 40, 10), row("b", "s", 1, 10), row("c", "GB/s", 4, 10)]
    assert [line.split(":")[0] for line in compare.regressions(slower, before)] == ["a", "geometric mean"]
