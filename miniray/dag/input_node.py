"""Ray's path to the nodes of a graph's input."""

from miniray.dag import InputAttributeNode, InputNode

__all__ = ["InputAttributeNode", "InputNode"]
