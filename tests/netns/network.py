"""Machines of a test: network namespaces on one bridge, each with an address of its own.

::

    host 0 ── veth ──┐
    host 1 ── veth ──┤ bridge, in a namespace of its own: nothing appears in this machine's network
    host 2 ── veth ──┘

A host's cable can be pulled (its bridge port goes down), a way from one host to another can be taken
away (a blackhole route: one direction only), and what a host sends can be limited (tbf). Needs root and
iproute2; `missing()` says what stands in the way. Everything goes with `close()`, and what a killed
test run left goes with the next `Network`.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

PREFIX = "mrnet"
NETNS = Path("/run/netns")
SUBNET = "10.77.0"
SUBNET6 = "fd77::"

_numbers = itertools.count()


def ip(*arguments: str, tool: str = "ip") -> None:
    """Run iproute2. RuntimeError with what it said when it fails."""
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{tool} {' '.join(arguments)}: {done.stderr.strip()}")


@functools.cache
def missing() -> str:
    """Why there can be no namespaces here; "" when there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "tc", "nsenter"):
        if shutil.which(tool) is None:
            return f"network namespaces need {tool}"
    try:
        Network(1).close()
    except RuntimeError as error:
        return f"no network namespaces here: {error}"
    return ""


class Host:
    """One namespace: a machine as far as TCP can tell."""

    def __init__(self, network: str, number: int) -> None:
        self.name = f"{network}h{number}"
        self.number = number
        self.address = f"{SUBNET}.{number + 1}"
        self.address6 = f"{SUBNET6}{number + 1}"
        self.enter = ("nsenter", f"--net={NETNS / self.name}")
        """Put before a command, it runs on this host."""
        self._switch = network
        self._port = f"p{number}"

    def plug_in(self) -> None:
        """Make the namespace and its cable."""
        ip("netns", "add", self.name)
        ip("link", "add", "eth0", "netns", self.name, "type", "veth",
           "peer", "name", self._port, "netns", self._switch)  # fmt: skip
        ip("-n", self._switch, "link", "set", self._port, "master", "bridge", "up")
        ip("-n", self.name, "link", "set", "lo", "up")
        ip("-n", self.name, "link", "set", "eth0", "up")
        self.add_address(self.address)
        self.add_address(self.address6)

    def add_address(self, address: str) -> None:
        """One more address of this host."""
        if ":" in address:
            ip("-n", self.name, "addr", "add", f"{address}/64", "dev", "eth0", "nodad")
        else:
            ip("-n", self.name, "addr", "add", f"{address}/24", "dev", "eth0")

    def pull_cable(self) -> None:
        """Nothing comes to this host or leaves it from now on."""
        ip("-n", self._switch, "link", "set", self._port, "down")

    def put_cable(self) -> None:
        """The opposite of `pull_cable`."""
        ip("-n", self._switch, "link", "set", self._port, "up")

    def lose_way_to(self, other: Host) -> None:
        """What this host sends to the other is lost; the other direction works."""
        ip("-n", self.name, "route", "add", "blackhole", f"{other.address}/32")

    def find_way_to(self, other: Host) -> None:
        """The opposite of `lose_way_to`."""
        ip("-n", self.name, "route", "del", "blackhole", f"{other.address}/32")

    def admit_to(self, port: int, other: Host) -> None:
        """Of this host the other reaches this TCP port and nothing else; this host does not reach it."""
        for host, far, which in ((other, self, "dport"), (self, other, "sport")):
            rule = ("-n", host.name, "rule", "add", "to", far.address)
            ip(*rule, "ipproto", "tcp", which, str(port), "lookup", "main", "pref", "100")
            ip(*rule, "blackhole", "pref", "200")

    def limit(self, megabits: int) -> None:
        """This host sends at most so many megabits a second."""
        ip("-n", self.name, "qdisc", "replace", "dev", "eth0", "root", "tbf",
           "rate", f"{megabits}mbit", "burst", "256kb", "latency", "200ms", tool="tc")  # fmt: skip

    def sent_bytes(self) -> int:
        """What this host has put on its cable so far."""
        done = subprocess.run(["ip", "-n", self.name, "-s", "-j", "link", "show", "eth0"],
                              capture_output=True, text=True, check=True)  # fmt: skip
        return int(json.loads(done.stdout)[0]["stats64"]["tx"]["bytes"])

    def processes(self) -> list[int]:
        """Those that run on this host."""
        done = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return [int(pid) for pid in done.stdout.split()]


class Network:
    """`count` hosts and what connects them."""

    def __init__(self, count: int) -> None:
        sweep()
        self._switch = f"{PREFIX}{os.getpid()}x{next(_numbers)}"
        self.hosts = [Host(self._switch, number) for number in range(count)]
        try:
            ip("netns", "add", self._switch)
            ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
            ip("-n", self._switch, "link", "set", "bridge", "up")
            for host in self.hosts:
                host.plug_in()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove it all. Processes that still run in a namespace keep its inside alive."""
        for name in (*(host.name for host in self.hosts), self._switch):
            if (NETNS / name).exists():
                ip("netns", "del", name)

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sweep() -> None:
    """Remove namespaces of test runs that were killed."""
    for path in NETNS.glob(f"{PREFIX}*x*"):
        pid = path.name.removeprefix(PREFIX).split("x")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            ip("netns", "del", path.name)
