"""Fuzz one target: `python -m tests.fuzz TARGET [--seconds N] [--seed N]`; without a target, list them.

With atheris the search is led by what the input reaches, and what it finds is added to the corpus
directory that is given; without it inputs are mutated at random. An input that fails is printed as hex.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time

from tests.fuzz import inputs


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="?", choices=list(inputs.TARGETS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", default="", help="directory that atheris reads and adds to")
    given = parser.parse_args()
    if given.target is None:
        print("\n".join(inputs.TARGETS))
        return 0
    if importlib.util.find_spec("atheris") is not None:
        return _led(given)
    print("atheris is not installed: random inputs, not led by coverage")
    deadline, count = time.monotonic() + given.seconds, 0
    for data in inputs.stream(given.target, given.seed):
        if time.monotonic() > deadline:
            break
        inputs.run(given.target, data)
        count += 1
    print(f"{given.target}: {count} inputs")
    return 0


def _led(given: argparse.Namespace) -> int:
    import atheris

    with atheris.instrument_imports(include=["miniray.core", "miniray.exposition", "miniray.web"]):
        inputs.load()
    arguments = [sys.argv[0], f"-max_total_time={given.seconds}", f"-seed={given.seed}", "-max_len=4096",
                 "-rss_limit_mb=4096", "-timeout=60", "-verbosity=0", "-print_final_stats=1"]  # fmt: skip
    directories = [given.corpus] if given.corpus else []
    atheris.Setup([*arguments, *directories, str(inputs.CORPUS / given.target)],
                  lambda data: inputs.run(given.target, data))
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
