"""`miniray microbenchmark`: rates of the basic operations on this machine.

Each row is warmed up, then repeated for about a second; the figure is the median of the rounds.
`--against ray` runs the same rows on an installed Ray in the same minute and prints the ratio:
absolute figures say more about the machine than about the engine.
"""

from __future__ import annotations

import json
import subprocess
import sys

import click

from miniray.commands import tables, workloads
from miniray.commands.workloads import Row, measure


@click.command()
@click.option("--against", type=click.Choice(["ray"]), help="Run the same on Ray and show the ratio.")
@click.option("--num-cpus", default=2, show_default=True)
@click.option("--seconds", default=1.0, show_default=True, help="Time per row.")
@click.option("--only", default="", help="Rows whose name contains this.")
@click.option("--json", "as_json", is_flag=True)
@click.option(
    "--ray-python",
    default=sys.executable,
    metavar="PATH",
    help="The interpreter that has Ray (default: this one).",
)
def microbenchmark(
    against: str | None, num_cpus: int, seconds: float, only: str, as_json: bool, ray_python: str
) -> None:
    """Measure the basic operations on this machine."""
    if against is None and as_json:
        click.echo(json.dumps(list(measure("miniray", num_cpus, seconds, only))))
        return
    if against is None:
        for row in measure("miniray", num_cpus, seconds, only):
            click.echo(f"{row[0]:<34} {figure(row)}")
        return
    interpreters = {"miniray": sys.executable, against: ray_python}
    ours, theirs = (
        _in_a_process(python, name, num_cpus, seconds, only) for name, python in interpreters.items()
    )
    if as_json:
        click.echo(json.dumps({"miniray": ours, against: theirs}))
        return
    rows = [
        (mine[0], figure(mine), figure(other), f"{ratio(mine, other):.1f}x")
        for mine, other in zip(ours, theirs)
    ]
    click.echo(tables.table(("", "miniray", against, "ratio"), rows))


def figure(row: Row) -> str:
    """A figure with its unit."""
    _, unit, value = row
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def ratio(mine: Row, other: Row) -> float:
    """How many times better, whichever way is better for the unit."""
    return other[2] / mine[2] if mine[1] == "s" else mine[2] / other[2]


def _in_a_process(python: str, name: str, num_cpus: int, seconds: float, only: str) -> list[Row]:
    command = [python, workloads.__file__, name, str(num_cpus), str(seconds), only]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise click.ClickException(f"{name}: {(run.stderr.strip() or 'it failed').splitlines()[-1]}")
    return [(row[0], row[1], row[2]) for row in json.loads(run.stdout.splitlines()[-1])]
