"""`python -m tests.chaos`: see the package. Exit status 1 when a promise was broken."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext

from tests.netns.network import Host, Network, missing

from . import watch
from .run import END_WITHIN_S, NODES, Broken, Run


def report(run: Run) -> None:
    """A table of what was done and what failed."""
    print(f"{sum(run.done.values())} jobs: " + ", ".join(f"{n} {job}" for job, n in sorted(run.done.items())))
    for kind, count in sorted(run.errors.items()):
        print(f"  {count:4} {kind}")


def chaos(seed: int, seconds: float, directory: str, hosts: Sequence[Host] = ()) -> list[str]:
    """One run in an empty directory, perhaps on hosts of their own; returns every promise that was broken."""
    problems = []
    watch.mark_processes()
    os.environ.update(MINIRAY_TMPDIR=directory, XDG_STATE_HOME=f"{directory}.state")
    try:
        with watch.nothing_left(directory, END_WITHIN_S):
            run = Run(directory, seed, lambda line: print(line, flush=True), hosts)
            try:
                run.chaos(seconds)
            except Broken as broken:
                problems.append(str(broken))
            finally:
                problems += run.problems
                run.close()
            report(run)
    except watch.Leftovers as left:
        problems.append(str(left))
    return problems


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, which is printed")
    parser.add_argument("--keep", action="store_true", help="keep the directory with the logs")
    parser.add_argument("--hosts", action="store_true",
                        help="the head and each node in a network namespace: cables pulled, ways lost (root)")
    options = parser.parse_args()
    if options.hosts and (why := missing()):
        parser.error(why)
    seed = random.randrange(1 << 31) if options.seed is None else options.seed
    base = tempfile.mkdtemp(prefix="mrc-", dir="/tmp")
    directory = f"{base}/run"
    os.mkdir(directory)
    print(f"chaos with seed {seed} for {options.minutes:g} minutes in {directory}", flush=True)
    try:
        with Network(1 + NODES) if options.hosts else nullcontext() as network:
            hosts = network.hosts if network else ()
            problems = chaos(seed, options.minutes * 60.0, directory, hosts)
    finally:
        if not options.keep:
            shutil.rmtree(base, ignore_errors=True)
    for problem in problems:
        print(f"BROKEN: {problem}")
    print(f"seed {seed}: {f'{len(problems)} promises broken' if problems else 'every promise kept'}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
