"""Words of the collective library: backends and reductions."""

from __future__ import annotations

from enum import Enum


class Backend:
    """What carries the tensors. Names are compared without case."""

    NCCL = "NCCL"
    GLOO = "GLOO"

    @staticmethod
    def named(name: str) -> str:
        """The backend of this name. ValueError if there is none."""
        upper = name.upper()
        if upper in ("GLOO", "TORCH_GLOO"):
            return Backend.GLOO
        if upper == "NCCL":
            return Backend.NCCL
        raise ValueError(f"Unrecognized backend {name!r}: use 'gloo' or 'nccl'.")


class ReduceOp(Enum):
    """How elements of the same place are combined."""

    SUM = 0
    PRODUCT = 1
    MIN = 2
    MAX = 3
