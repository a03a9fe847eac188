"""A driver: `python -m tests.chaos.driver SESSION_DIR SEED` runs jobs until its input ends.

Says one line of JSON on stdout per job: {"job", "seconds", "error": "" or "Type: text", "problem":
"" or why that is not allowed}. With `--rounds N` it runs every job N times, and none may fail.
"""

from __future__ import annotations

import argparse
import json
import random
import select
import sys
import time
from collections.abc import Callable, Iterator

import miniray as ray
from miniray import exceptions

from . import jobs

ALLOWED = (
    exceptions.WorkerCrashedError, exceptions.NodeDiedError, exceptions.LocalRayletDiedError,
    exceptions.RayActorError, exceptions.ObjectLostError,
)  # fmt: skip
"""What a fault may show as in a job that is not sure."""
WANT_OF_ROOM = (exceptions.ObjectStoreFullError, exceptions.OutOfDiskError)
"""A full disk may show as these in any job."""


def problem_of(error: Exception, sure: bool) -> str:
    """Why an error of a job is not allowed; "" when it is."""
    if isinstance(error, jobs.Wrong):
        return "a wrong answer"
    if isinstance(error, exceptions.GetTimeoutError):
        return "a call that hangs"
    cause = error.cause if isinstance(error, exceptions.RayTaskError) else error
    if isinstance(cause, WANT_OF_ROOM) or isinstance(error, WANT_OF_ROOM):
        return ""
    if not isinstance(error, exceptions.RayError):
        return "an error that is not typed"
    if sure:
        return "an error in a job that allows any number of retries"
    return "" if isinstance(error, ALLOWED) or isinstance(cause, ALLOWED) else "an error of the wrong type"


def run_job(job: Callable[[random.Random], None], rng: random.Random) -> dict[str, object]:
    """One job, and what is to be said about it."""
    started = time.monotonic()
    text = problem = ""
    try:
        job(rng)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        problem = problem_of(error, job in jobs.SURE)
    return {"job": job.__name__, "seconds": round(time.monotonic() - started, 2), "error": text,
            "problem": problem}


def chosen(rng: random.Random, rounds: int) -> Iterator[Callable[[random.Random], None]]:
    """The jobs to run: all of them `rounds` times, or with 0 any until stdin ends."""
    every = (*jobs.SURE, *jobs.UNSURE)
    for _ in range(rounds):
        yield from every
    while not rounds and not select.select([sys.stdin], [], [], 0)[0]:
        yield rng.choice(every)


def main() -> int:
    """0 at the end of the input, 3 when the session has gone."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.driver", description=__doc__)
    parser.add_argument("session_dir")
    parser.add_argument("seed")
    parser.add_argument("--rounds", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(f"driver {options.seed}")
    ray.init(options.session_dir, configure_logging=False, log_to_driver=False)
    print(json.dumps({"ready": True}), flush=True)
    for job in chosen(rng, options.rounds):
        print(json.dumps(run_job(job, rng)), flush=True)
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
