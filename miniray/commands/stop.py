"""`miniray stop`: end the sessions of this user on this machine, at once.

Daemons are found by their session files, held by pidfd (a pid that is used again is not met) and
signalled, nodes before heads. Two SIGTERMs mean "do not wait for running tasks"; whoever is still
there after the grace gets SIGKILL. A node's zygote then ends the workers and removes the session
directory; a killed head has no zygote, so its directory is removed here.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time

import click

from miniray.runtime import agent, remains, sessions

GRACE_S = 2.0
CLEANUP_S = 5.0
POLL_S = 0.01


class Target:
    """One daemon to end."""

    def __init__(self, session: sessions.Session) -> None:
        self.session = session
        self.fd = agent.pidfd(session.pid)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this very process, if it is still there."""
        if self.fd is not None and not self.ended(0):
            signal.pidfd_send_signal(self.fd, number)

    def ended(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` for its end."""
        return self.fd is None or bool(select.select([self.fd], [], [], max(0.0, timeout_s))[0])


@click.command()
@click.option("--address", metavar="HOST:PORT", help="Only the daemons of this cluster.")
@click.option("-f", "--force", is_flag=True, help="SIGKILL at once.")
def stop(address: str | None, force: bool) -> None:
    """End every session of this user on this machine, at once."""
    targets = [Target(session) for session in sessions.living() if address in (None, session.address)]
    remains.sweep(sessions.root())
    if not targets:
        click.echo("No session of this user is running here.")
        return
    targets.sort(key=lambda target: target.session.kind != "node")
    left = end(targets, force)
    if left:
        click.echo(f"still running: pid {', '.join(str(target.session.pid) for target in left)}", err=True)
        sys.exit(1)
    click.echo(f"Stopped {len(targets)} daemon{'s' if len(targets) > 1 else ''}.")


def end(targets: list[Target], force: bool) -> list[Target]:
    """End daemons and wait until their directories are gone. Returns those that live on."""
    for target in targets:
        if target.session.kind == "head":
            sessions.declare_over(target.session.directory)
    if not force:
        for repeated in (False, True):
            for target in targets:
                if target.session.kind == "node" or not repeated:
                    target.signal(signal.SIGTERM)
            _wait(targets, 0.05)
        _wait(targets, GRACE_S)
    for target in targets:
        target.signal(signal.SIGKILL)
    _wait(targets, GRACE_S)
    deadline = time.monotonic() + CLEANUP_S
    for target in targets:
        directory = target.session.directory
        while os.path.exists(directory) and time.monotonic() < deadline:
            if target.session.kind == "head" and target.ended(0):
                shutil.rmtree(directory, ignore_errors=True)
            time.sleep(POLL_S)
    return [target for target in targets if not target.ended(0)]


def _wait(targets: list[Target], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    for target in targets:
        target.ended(deadline - time.monotonic())
