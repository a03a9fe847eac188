"""Nodes that come when work waits for them and go when they are idle.

    from miniray.autoscaler import Autoscaler, LocalProvider, NodeKind

    with Autoscaler(LocalProvider(address), [NodeKind("worker", {"CPU": 4}, max_nodes=10)], address):
        ...

`Autoscaler` looks at what the head publishes as pending, `core.scaling` decides, and a `NodeProvider` of
two methods starts and stops nodes: `LocalProvider` as processes of this machine, `CommandProvider` by
commands. `miniray autoscale` runs it.
"""

from miniray.autoscaler.autoscaler import HANDLE_LABEL, TYPE_LABEL, Autoscaler, NodeKind, NodeProvider
from miniray.autoscaler.command_provider import CommandProvider
from miniray.autoscaler.local_provider import LocalProvider

__all__ = [
    "HANDLE_LABEL", "TYPE_LABEL", "Autoscaler", "CommandProvider", "LocalProvider", "NodeKind",
    "NodeProvider",
]  # fmt: skip
