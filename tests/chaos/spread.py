"""The cluster under test on hosts of their own: a head, and nodes, each in a network namespace.

The run itself enters the head's host, so it asks the head as anybody there would; daemons and drivers of
a node are started on its host. What the network does to them is in `faults`: cables, ways, slow links.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from miniray.runtime.daemon import HeadOptions, NodeOptions
from tests.netns.network import NETNS, Host

from .cluster import Cluster, Node

PORT = 6379
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def enter(path: str) -> None:
    """This thread, and what it starts from now on, is on the host of that namespace."""
    with open(path) as namespace:
        if _libc.setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {path}")


@contextmanager
def on(host: Host) -> Iterator[None]:
    """The same for a while."""
    with open("/proc/thread-self/ns/net") as before:
        enter(str(NETNS / host.name))
        try:
            yield
        finally:
            enter(f"/proc/self/fd/{before.fileno()}")


class Spread(Cluster):
    """The head on the first host, one node on each further one."""

    def __init__(self, directory: str, hosts: Sequence[Host], cpus: int) -> None:
        self.hosts = hosts
        enter(str(NETNS / hosts[0].name))
        super().__init__(directory, len(hosts) - 1, cpus)

    def host_of(self, node: Node) -> Host:
        """Where a node runs."""
        return self.hosts[1 + node.index]

    def command_on(self, node: Node) -> tuple[str, ...]:
        """Put before a command, it runs beside the node."""
        return self.host_of(node).enter

    def _meeting_point(self) -> str:
        return f"{self.hosts[0].address}:{PORT}"

    def _head_options(self) -> HeadOptions:
        options = super()._head_options()
        options.host, options.port, options.plain = self.hosts[0].address, PORT, True
        return options

    def _node_options(self, index: int) -> NodeOptions:
        options = super()._node_options(index)
        options.host, options.plain, options.is_head = self.hosts[1 + index].address, True, False
        return options

    def beside(self, index: int) -> AbstractContextManager[None]:
        """On that node's host for a while."""
        return on(self.hosts[1 + index])

    def close(self) -> None:
        """End everything; every cable is put back first."""
        for host in self.hosts:
            host.put_cable()
        super().close()
