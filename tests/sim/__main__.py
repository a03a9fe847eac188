"""`python -m tests.sim --seeds 0-99` runs many, `--seed N` one; the exit status tells.

`--with "nodes=3 worker_crash=1"` changes figures of what a seed stands for, `--shrink` looks for
the smallest such change under which a failing seed still fails, `--story` prints a whole trace.
"""

from __future__ import annotations

import argparse
import sys
import traceback

from . import copies, references, services
from .run import Failure, Simulation, scenario_of
from .shrink import shrink

FAMILIES = {
    "references": references.scenario_of, "copies": copies.scenario_of, "services": services.scenario_of,
}


def seeds_of(text: str) -> range:
    """`A-B` (both included), or a count from 0."""
    first, dash, last = text.partition("-")
    return range(int(first), int(last) + 1) if dash else range(int(first))


def changes_of(text: str) -> dict[str, float]:
    """`name=number name=number …`."""
    pairs = (pair.partition("=") for pair in text.split())
    return {name: float(value) for name, _, value in pairs}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=seeds_of, default=range(20), help="A-B, or how many from 0")
    parser.add_argument("--seed", type=int, help="one seed, told at length")
    parser.add_argument("--with", type=changes_of, default={}, dest="changes", metavar="NAME=NUMBER …",
                        help="figures of the scenario to change")
    parser.add_argument("--shrink", action="store_true", help="make each failing seed smaller")
    parser.add_argument("--check-every", type=int, default=8, help="machine.check() after each Nth stimulus")
    parser.add_argument("--references", action="store_true", help="short seeds about references alone")
    parser.add_argument("--copies", action="store_true", help="short seeds about large objects")
    parser.add_argument("--services", action="store_true", help="short seeds about services and groups")
    parser.add_argument("--story", action="store_true", help="print the whole trace")
    parser.add_argument("--trace", help="write the trace of the (last) seed to this file")
    return parser.parse_args()


def run(seed: int, options: argparse.Namespace) -> bool:
    """One seed, told on stdout; True when it kept every promise."""
    drawn = next((FAMILIES[name] for name in FAMILIES if getattr(options, name)), scenario_of)
    simulation = Simulation(seed, drawn(seed, options.changes), options.check_every)
    failure = None
    try:
        trace = simulation.run()
    except Failure as error:
        failure = error
    if options.story:
        print("\n".join(simulation.world.lines))
    if options.trace:
        with open(options.trace, "w") as file:
            file.write("\n".join(simulation.world.lines) + "\n")
    if failure is None:
        if options.seed is not None:
            print(simulation.setting())
        print(f"seed {seed}: {trace} {simulation.summary()}", flush=True)
        return True
    if options.shrink:
        options.changes, failure = shrink(seed, options.changes, failure, print, drawn)
    print(failure, flush=True)
    if options.seed is not None:
        traceback.print_exception(failure.__cause__)
    if options.changes:
        print(f'  with "{" ".join(f"{name}={value:g}" for name, value in options.changes.items())}"')
    return False


def main() -> int:
    """1 when a seed failed."""
    options = parse()
    seeds = range(options.seed, options.seed + 1) if options.seed is not None else options.seeds
    given, failed = options.changes, []
    for seed in seeds:
        options.changes = given
        if not run(seed, options):
            failed.append(seed)
    if failed:
        print(f"{len(failed)} of {len(seeds)} seeds failed: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
