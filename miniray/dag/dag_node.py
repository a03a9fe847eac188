"""Ray's path to what all nodes are."""

from miniray.dag import DAGNode

__all__ = ["DAGNode"]
