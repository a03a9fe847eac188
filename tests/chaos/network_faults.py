"""What the network does to a cluster whose head and nodes are hosts, beside what befalls processes and disks.

A cable is pulled (nothing comes or leaves), a way is lost in one direction, a link becomes slow. Each is
mended after a while; a node whose cable was out for longer than the head waits comes back to its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .faults import KINDS, SILENT_S, Fault, Faults

if TYPE_CHECKING:
    from .run import Run
    from .spread import Spread

MEGABITS = 40
FAST_MEGABITS = 10_000


class NetworkFaults(Faults):
    """See the module head. One fault at a time for each cable and each way."""

    kinds = {**{kind: often for kind, often in KINDS.items() if kind not in ("cut_head", "silence_head")},
             "pull_cable": 1.5, "pull_heads_cable": 1.0, "lose_way": 3.0, "slow_link": 1.0}  # noqa: RUF012

    def __init__(self, run: Run, cluster: Spread) -> None:
        super().__init__(run)
        self._hosts = cluster
        self._faulty: dict[object, None] = {}

    def _for_a_while(self, what: object, seconds: float, mend: object) -> None:
        """`what` has a fault now; it is mended after `seconds`."""
        self._faulty[what] = None

        def end() -> None:
            mend()  # type: ignore[operator]
            del self._faulty[what]

        self._run.later(seconds, end)

    def _pull_cable(self, fault: Fault) -> str:
        node = self._node(fault.draw)
        if node is None or (host := self._hosts.host_of(node)) in self._faulty:
            return ""
        node.given_up = fault.seconds > SILENT_S
        host.pull_cable()
        self._for_a_while(host, fault.seconds, host.put_cable)
        return f"the cable of node {node.index} is out for {fault.seconds:.1f} s"

    def _pull_heads_cable(self, fault: Fault) -> str:
        host = self._hosts.hosts[0]
        if host in self._faulty:
            return ""
        host.pull_cable()
        self._for_a_while(host, fault.seconds, host.put_cable)
        return f"the cable of the head is out for {fault.seconds:.1f} s"

    def _lose_way(self, fault: Fault) -> str:
        hosts = self._hosts.hosts
        pairs = [(one, other) for one in hosts for other in hosts if one is not other]
        one, other = pairs[int(fault.draw * len(pairs))]
        if (one, other) in self._faulty:
            return ""
        one.lose_way_to(other)
        self._for_a_while((one, other), fault.seconds, lambda: one.find_way_to(other))
        return f"the way from {one.address} to {other.address} is lost for {fault.seconds:.1f} s"

    def _slow_link(self, fault: Fault) -> str:
        hosts = self._hosts.hosts
        host = hosts[int(fault.draw * len(hosts))]
        if ("slow", host) in self._faulty:
            return ""
        host.limit(MEGABITS)
        self._for_a_while(("slow", host), fault.seconds, lambda: host.limit(FAST_MEGABITS))
        return f"{host.address} sends {MEGABITS} Mbit/s for {fault.seconds:.1f} s"
