"""`python -m ml.gan train …`, `generate …`, `measure …`: one door to all commands."""

from __future__ import annotations

import sys

_USAGE = """usage: python -m ml.gan {train,generate,measure,compare,bench} [options]

  train      train a DCGAN, in this process or in N workers on a cluster
  generate   draw images with a trained generator
  measure    how good a generator's images are beside a data set
  compare    what workers learn beside what one plain PyTorch process learns
  bench      what the engine costs: images/s beside torchrun

Each command has its own --help.
"""


def main(argv: list[str]) -> int:
    """Hand the rest of the command line to its command; exit code 2 for anything else."""
    command, rest = (argv[0], argv[1:]) if argv else ("", [])
    if command == "train":
        from ml.gan.train import main as train

        return train(rest)
    if command == "generate":
        from ml.gan.generate import main as generate

        return generate(rest)
    if command == "measure":
        from ml.gan.measure import main as measure

        return measure(rest)
    if command == "compare":
        from ml.gan.compare import main as compare

        return compare(rest)
    if command == "bench":
        from ml.gan.bench import main as bench

        return bench(rest)
    asked = command in ("-h", "--help")
    print(_USAGE, end="", file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
