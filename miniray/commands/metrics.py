"""`miniray metrics`: what programs recorded with `miniray.util.metrics`, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import click

from miniray.commands.cluster_client import Request, connect
from miniray.commands.status import ADDRESS

ORIGIN = {"JobId": "job_id", "NodeId": "node_id", "WorkerId": "worker_id"}
"""Labels of every line, and where they are in a report."""

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


@click.command()
@ADDRESS
def metrics(address: str | None) -> None:
    """Counters, gauges and histograms of running programs, in Prometheus' text format."""
    with connect(address) as (request, _where):
        reports = list(read_reports(request))
    click.echo(exposition(reports), nl=False)


def read_reports(request: Request) -> Iterator[dict[str, Any]]:
    """The latest report of each process of each job whose data the head still has."""
    from miniray._proto import gcs_pb2
    from miniray.util.metrics import reports_of

    for job in request("job_list", gcs_pb2.JobList()).jobs.jobs:
        yield from reports_of(job.job_id, request)


def exposition(reports: Iterable[dict[str, Any]]) -> str:
    """Reports as text: for each metric its help, its type, and a line per process and set of tags."""
    families: dict[tuple[str, str], list[str]] = {}
    for report in reports:
        origin = [(label, report[field]) for label, field in ORIGIN.items()]
        for row in report["metrics"]:
            name = row["name"]
            if row["kind"] == "counter" and not name.endswith("_total"):
                name += "_total"
            lines = families.setdefault((name, row["kind"]), [
                f"# HELP {name} {_on_one_line(row['description'])}", f"# TYPE {name} {row['kind']}",
            ])  # fmt: skip
            for values, value in row["series"]:
                labels = [*zip(row["tag_keys"], values), *origin]
                lines.extend(_samples(name, row, labels, value))
    return "".join(f"{line}\n" for lines in families.values() for line in lines)


def _samples(name: str, row: dict[str, Any], labels: list[tuple[str, str]], value: Any) -> Iterator[str]:
    if row["kind"] != "histogram":
        yield f"{name}{_braces(labels)} {value}"
        return
    counts, total = value
    seen = 0
    for edge, count in zip([*row["boundaries"], "+Inf"], counts):
        seen += count
        yield f"{name}_bucket{_braces([*labels, ('le', str(edge))])} {seen}"
    yield f"{name}_sum{_braces(labels)} {total}"
    yield f"{name}_count{_braces(labels)} {seen}"


def _braces(labels: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f'{key}="{value.translate(_ESCAPES)}"' for key, value in labels) + "}"


def _on_one_line(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")
