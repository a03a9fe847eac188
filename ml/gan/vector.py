"""Models as flat vectors: the layout of `sync.Parts`, filled from torch modules and written back into them.

The layout depends only on the modules' names and shapes, so processes that build the same model agree on it
without talking. A vector that comes out of the object store is a read-only view of shared memory, and torch
would write through such a view; so every vector first goes into a writable staging buffer of ours.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from miniray.train.sync.rules import Parts, Vector

_ENDINGS = ("running_mean", "running_var", "num_batches_tracked")  # BatchNorm's buffers; all else is a weight


class Layout:
    """Where each tensor of some named modules lies in one flat vector."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        tensors = _tensors(modules)
        weights = [(name, value) for name, value in tensors if not name.endswith(_ENDINGS)]
        groups = [weights, *[[item for item in tensors if item[0].endswith(end)] for end in _ENDINGS]]
        sizes = [sum(value.numel() for _, value in group) for group in groups]
        if sizes[1] != sizes[2]:
            raise ValueError("every running mean needs a running variance")
        self.parts = Parts(weights=sizes[0], statistics=sizes[1], counters=sizes[3])
        self._places: dict[str, tuple[int, torch.Size]] = {}
        offset = 0
        for name, value in [item for group in groups for item in group]:
            self._places[name] = (offset, value.shape)
            offset += value.numel()
        self._staging = torch.zeros(self.parts.size)

    def pack(self, modules: Mapping[str, nn.Module]) -> Vector:
        """A new flat vector of the modules' state."""
        with torch.no_grad():
            for name, value in _tensors(modules):
                self._slot(name).copy_(value)
        vector: Vector = self._staging.numpy().copy()
        return vector

    def unpack(self, vector: Vector, modules: Mapping[str, nn.Module]) -> None:
        """Write a vector into the modules, on whatever device they are. `vector` may be read-only."""
        np.copyto(self._staging.numpy(), vector)
        with torch.no_grad():
            for name, value in _tensors(modules):
                value.copy_(self._slot(name))

    def state_dict(self, vector: Vector, module: str) -> dict[str, Tensor]:
        """The state dict of one module out of a vector, as torch.save wants it: fresh tensors of its own."""
        np.copyto(self._staging.numpy(), vector)
        found = {}
        for name in self._places:
            owner, _, key = name.partition(".")
            if owner == module:
                counter = key.endswith(_ENDINGS[2])
                found[key] = self._slot(name).long() if counter else self._slot(name).clone()
        return found

    def _slot(self, name: str) -> Tensor:
        offset, shape = self._places[name]
        return self._staging[offset : offset + shape.numel()].view(shape)


def _tensors(modules: Mapping[str, nn.Module]) -> list[tuple[str, Tensor]]:
    """Every tensor of the modules' state by its full name; they share memory with the modules' own."""
    states = ((name, module.state_dict()) for name, module in modules.items())
    return [(f"{name}.{key}", value) for name, state in states for key, value in state.items()]
