"""`miniray metrics`: what programs recorded with `miniray.util.metrics`, as Prometheus reads it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from miniray.commands.cluster_client import Request, connect
from miniray.commands.status import ADDRESS
from miniray.exposition import exposition
from miniray.printable import printable


@click.command()
@ADDRESS
def metrics(address: str | None) -> None:
    """Counters, gauges and histograms of running programs, in Prometheus' text format."""
    with connect(address) as (request, _where):
        reports = list(read_reports(request))
    text = exposition(reports)
    click.echo(printable(text) if sys.stdout.isatty() else text, nl=False)


def read_reports(request: Request) -> Iterator[dict[str, Any]]:
    """The latest report of each process of each job whose data the head still has."""
    from miniray._proto import gcs_pb2
    from miniray.util.metrics import reports_of

    for job in request("job_list", gcs_pb2.JobList()).jobs.jobs:
        yield from reports_of(job.job_id, request)
