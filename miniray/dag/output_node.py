"""Ray's path to the node of several outputs."""

from miniray.dag import MultiOutputNode

__all__ = ["MultiOutputNode"]
