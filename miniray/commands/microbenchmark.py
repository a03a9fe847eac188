"""`miniray microbenchmark`: rates and latencies of the basic operations on this machine.

Each row is warmed up, then repeated for about a second; a rate is the median of the rounds.
`--against ray` runs the same rows on an installed Ray in the same minute and prints the ratio:
absolute figures say more about the machine than about the engine. `--profile` shows instead where
the microseconds of one call go.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from miniray.commands import tables
from miniray.commands.benchmark import compare

Row = dict[str, Any]

WORKLOADS = Path(__file__).parent / "benchmark"
CHECKOUT = Path(__file__).parents[2]
SMALL = 0.01
"""Share of the fixed sizes with --small."""


@click.command()
@click.option("--against", type=click.Choice(["ray"]), help="Run the same on Ray and show the ratios.")
@click.option("--num-cpus", default=2, show_default=True)
@click.option("--seconds", default=1.0, show_default=True, help="Time per row.")
@click.option("--only", default="", help="Rows whose name contains this.")
@click.option("--small", is_flag=True, help="A hundredth of the fixed sizes: to see that everything works.")
@click.option("--json", "as_json", is_flag=True)
@click.option("--profile", is_flag=True, help="Where the microseconds of one call go.")
@click.option("--baseline", type=click.Path(path_type=Path), help="Rows of an earlier run to compare with.")
@click.option("--record", is_flag=True, help="Write the baseline instead of comparing with it.")
@click.option(
    "--ray-python",
    default=sys.executable,
    metavar="PATH",
    help="The interpreter that has Ray (default: this one).",
)
def microbenchmark(
    against: str | None, num_cpus: int, seconds: float, only: str, small: bool, as_json: bool, profile: bool,
    baseline: Path | None, record: bool, ray_python: str,
) -> None:  # fmt: skip
    """Measure the basic operations on this machine."""
    if record and baseline is None:
        raise click.UsageError("--record needs --baseline FILE")
    if profile:
        show_profile(seconds, as_json)
        return
    settings = [str(num_cpus), str(seconds), str(SMALL if small else 1.0), only]
    if against is not None:
        show_comparison(against, ray_python, settings, as_json)
        return
    before = recorded(baseline) if baseline is not None and not record else None
    mine = []
    for row in run("miniray", sys.executable, settings):
        mine.append(row)
        if not as_json:
            click.echo(f"{row['name']:<44} {compare.figure(row)}")
    if as_json:
        click.echo(json.dumps(mine))
    if baseline is not None and record:
        baseline.write_text("".join(json.dumps(row) + "\n" for row in mine))
    if before is not None:
        gate(mine, before)
        click.echo(f"as fast as the baseline {baseline}", err=True)


def run(engine: str, python: str, settings: list[str]) -> Iterator[Row]:
    """The rows of one engine as they come. ClickException with its last words if it fails."""
    paths = [str(WORKLOADS), *([str(CHECKOUT)] if engine == "miniray" else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    command = [python, "-m", "workloads", engine, *settings]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
    ) as process:
        output, errors = process.stdout, process.stderr
        assert output is not None and errors is not None
        words: list[str] = []
        reader = threading.Thread(target=lambda: words.extend(errors), daemon=True)
        reader.start()
        for line in output:
            if line.startswith("{"):
                yield json.loads(line)
        reader.join()
    if process.returncode != 0:
        said = [line.strip() for line in words if line.strip()]
        raise click.ClickException(f"{engine}: {said[-1] if said else 'it failed'}")


def show_comparison(against: str, ray_python: str, settings: list[str], as_json: bool) -> None:
    """Both engines in turn, the ratios, and the geometric mean of these."""
    ours = list(run("miniray", sys.executable, settings))
    theirs = list(run(against, ray_python, settings))
    pairs = compare.paired(ours, theirs)
    ratios = [compare.ratio(mine, other) for mine, other in pairs]
    mean = compare.geometric_mean(ratios)
    corrected = compare.geometric_mean([compare.calibrated_ratio(mine, other) for mine, other in pairs])
    if as_json:
        named = {mine["name"]: share for (mine, _), share in zip(pairs, ratios)}
        click.echo(json.dumps({
            "miniray": ours, against: theirs, "ratios": named, "geometric_mean": mean,
            "calibrated_geometric_mean": corrected}))
        return
    rows = [
        (mine["name"], compare.figure(mine), compare.figure(other), f"{share:.1f}x")
        for (mine, other), share in zip(pairs, ratios)
    ]
    click.echo(tables.table(("", "miniray", against, "ratio"), rows))
    click.echo(f"geometric mean of the ratios: {mean:.1f}")
    click.echo(f"  by the machine's speed in each row's second, if other work came and went: {corrected:.1f}")


def recorded(baseline: Path) -> list[Row]:
    """The rows of an earlier run."""
    try:
        return [json.loads(line) for line in baseline.read_text().splitlines()]
    except OSError as error:
        raise click.ClickException(f"no baseline: {error}; --record writes one") from error


def gate(mine: list[Row], before: list[Row]) -> None:
    """End with status 1 and the names of what has become slower."""
    found = compare.regressions(mine, before)
    if found:
        raise click.ClickException("slower than the baseline:\n  " + "\n  ".join(found))


def show_profile(seconds: float, as_json: bool) -> None:
    """A table of stages, and of the functions that take most of each side's time."""
    from miniray.commands.benchmark import stages

    found = stages.profile(seconds)
    if as_json:
        click.echo(json.dumps(found))
        return
    for report in found:
        click.echo(f"\n{report['name']}: {report['total_us']:.1f} us per call (median of {report['calls']})")
        total = report["total_us"]
        rows = [(stage, f"{us:.1f}", f"{us / total:.0%}") for stage, us in report["stages"].items()]
        click.echo(tables.table(("stage", "us", "share"), rows))
        for side, functions in report["functions"].items():
            click.echo(f"\n  {side}, in batches: {report['cpu_us'][side]:.1f} us of CPU per call")
            for name, share in functions.items():
                click.echo(f"    {share:5.0%}  {name}")
