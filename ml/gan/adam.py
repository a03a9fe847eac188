"""Adam (Kingma & Ba, 2015), as torch.optim.Adam computes it without weight decay and amsgrad.

Of our own because of what it does not do: the first optimiser that torch.optim makes in a process imports
torch's compiler, 1.5 s and 72 MB in every worker, and this job compiles nothing. A test holds the two
against each other. Its state goes out and in as one flat vector, which is what a checkpoint stores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

_EPSILON = 1e-8


class Adam:
    """Updates `parameters` in place from their gradients; its state lies where and as they lie."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, betas: tuple[float, float]) -> None:
        self._parameters = list(parameters)
        self._lr, self._betas, self._steps = lr, betas, 0
        self._means = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self._parameters]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def step(self) -> None:
        """One update; every parameter must have a gradient."""
        self._steps += 1
        first, second = self._betas
        rate = self._lr / (1 - first**self._steps)
        correction = math.sqrt(1 - second**self._steps)
        with torch.no_grad():
            for parameter, mean, square in zip(self._parameters, self._means, self._squares):
                gradient = parameter.grad
                assert gradient is not None, "step before backward"
                mean.lerp_(gradient, 1 - first)
                square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
                parameter.addcdiv_(mean, square.sqrt().div_(correction).add_(_EPSILON), value=-rate)

    def moments(self) -> Tensor:
        """Both running means of every parameter, flat, on the CPU: those of gradients, then of squares."""
        return torch.cat([value.flatten().cpu() for value in (*self._means, *self._squares)])

    def load_moments(self, values: Tensor, steps: int) -> None:
        """Continue from `moments()` as they were after `steps` steps."""
        self._steps = steps
        state = [*self._means, *self._squares]
        for mine, part in zip(state, torch.split(values, [value.numel() for value in state])):
            mine.copy_(part.view(mine.shape))
