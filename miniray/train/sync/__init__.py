"""Ways to keep the parameters of several workers together, for loops that do not do it every step.

A model travels as one flat float32 vector, whose parts `Parts` names.

    rules       average, weighted, momentum: pure NumPy; `Merger` applies one, round after round
    collective  the same over torch.distributed: every rank gives its vector and gets the mean
    shared      sums of every step, in memory that the ranks of one machine share
    server      ParameterServer: an actor that workers push to and pull from, each at its own pace
"""

from miniray.train.sync.collective import group_mean
from miniray.train.sync.rules import STRATEGIES, Merger, Parts, Vector, merge
from miniray.train.sync.server import ParameterServer, apply_push

__all__ = [
    "STRATEGIES",
    "Merger",
    "ParameterServer",
    "Parts",
    "Vector",
    "apply_push",
    "group_mean",
    "merge",
]
