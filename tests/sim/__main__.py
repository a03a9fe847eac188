"""`python -m tests.sim --seeds 0-99` runs many, `--seed N` one; the exit status tells."""

from __future__ import annotations

import argparse
import sys
import traceback

from .run import Failure, Simulation, scenario_of


def seeds_of(text: str) -> range:
    """`A-B` (both included), or a count from 0."""
    first, dash, last = text.partition("-")
    return range(int(first), int(last) + 1) if dash else range(int(first))


def main() -> int:
    """The number of seeds that failed, at most 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=seeds_of, default=range(20), help="A-B, or how many from 0")
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--nodes", type=int, help="that many nodes instead of what the seed says")
    parser.add_argument("--check-every", type=int, default=8, help="machine.check() after each Nth stimulus")
    parser.add_argument("--trace", help="write the trace of the (last) seed to this file")
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + 1) if options.seed is not None else options.seeds
    failed = []
    for seed in seeds:
        simulation = Simulation(seed, scenario_of(seed, options.nodes), options.check_every)
        try:
            trace = simulation.run()
        except Failure as failure:
            failed.append(seed)
            print(failure, flush=True)
            if options.seed is not None:
                traceback.print_exception(failure.__cause__)
        else:
            oracle = simulation.cluster.oracle
            print(
                f"seed {seed}: {trace} {len(oracle.tasks)} tasks, {oracle.read} values, "
                f"errors {oracle.errors}, "
                f"{simulation.world.now:.0f} s of the cluster in {simulation.wall_s:.1f} s",
                flush=True,
            )
        if options.trace:
            with open(options.trace, "w") as file:
                file.write("\n".join(simulation.world.lines) + "\n")
    if failed:
        print(f"{len(failed)} of {len(seeds)} seeds failed: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
