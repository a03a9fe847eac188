"""`miniray storage check|repair`: the head's tables, while no head runs on them."""

from __future__ import annotations

import click

from miniray.runtime.storage import StorageError


@click.group()
def storage() -> None:
    """Check or repair the tables of a head: a file, or redis://HOST:PORT/DB.

    A head without --storage keeps them in $XDG_STATE_HOME/miniray (~/.local/state/miniray).
    """


@storage.command()
@click.argument("place")
def check(place: str) -> None:
    """Read everything at PLACE; exit 1 and say what is wrong if it is not sound."""
    from miniray.runtime import storage_care

    try:
        report = storage_care.check(place)
    except StorageError as error:
        raise click.ClickException(str(error)) from error
    if report.problem:
        raise click.ClickException(report.problem)
    click.echo(f"{report.place} is sound: {_counted(report.rows)}")


@storage.command()
@click.argument("place")
def repair(place: str) -> None:
    """Save what can be read at PLACE, put the damaged tables aside, and say what was lost."""
    from miniray.runtime import storage_care

    try:
        done = storage_care.repair(place)
    except StorageError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"kept: {_counted(done.kept)}")
    for line in done.lost:
        click.echo(f"lost: {line}")
    click.echo(f"what was damaged is in {done.aside}")
    click.echo(f"start the head again with --storage {done.place}")


def _counted(rows: dict[str, int]) -> str:
    return ", ".join(f"{count} {table}" for table, count in rows.items()) or "no rows"
