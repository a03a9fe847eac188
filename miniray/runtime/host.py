"""What this machine offers to us: CPUs and memory, as affinity and cgroups allow them.

Read once when a daemon starts; any thread. Linux only.
"""

from __future__ import annotations

import math
import os
import socket
from typing import TYPE_CHECKING, NamedTuple

from miniray import config

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

CGROUP = "/sys/fs/cgroup"
NO_LIMIT = 1 << 62
"""What cgroup v1 says of a group without a memory limit is more than this."""


def cpu_count() -> int:
    """CPUs this process may use: its affinity, lowered by the cgroup's cpu.max; at least 1."""
    count = len(os.sched_getaffinity(0))
    for directory in _own_cgroups():
        quota = _read(f"{directory}/cpu.max").split()
        if len(quota) == 2 and quota[0] != "max":
            count = min(count, max(1, math.ceil(int(quota[0]) / int(quota[1]))))
    return max(1, count)


def is_busy() -> bool:
    """Whether more threads of this machine want to run just now than it has CPUs."""
    figures = _read("/proc/loadavg").split()
    running = figures[3].partition("/")[0] if len(figures) > 3 else ""
    return running.isdigit() and int(running) > (os.cpu_count() or 1)


def is_any(address: str) -> bool:
    """True for an address to listen on that nobody can be reached at."""
    return address in ("0.0.0.0", "::", "")


def endpoint(host: str, port: int) -> str:
    """HOST:PORT as text; an IPv6 address gets its brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """An IPv4 address that is written as an IPv6 one, as itself."""
    return getattr(address, "ipv4_mapped", None) or address


def address_towards(host: str) -> str:
    """This machine's address as `host` sees it; no packet is sent. 127.0.0.1 without a network."""
    try:
        family, _, _, _, place = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(place)
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"


class MemoryGroup(NamedTuple):
    """A cgroup with a memory limit."""

    limit: int
    usage_file: str
    stat_file: str
    cache: str
    """The line of `stat_file` with the file pages that can be given back at once."""

    def used(self) -> int:
        """Bytes in use that could not be given back at once."""
        stat = dict(line.split() for line in _read(self.stat_file).splitlines())
        return max(0, int(_read(self.usage_file) or 0) - int(stat.get(self.cache, 0)))


def memory_groups(membership: str, root: str = CGROUP) -> list[MemoryGroup]:
    """The limited cgroups among those in `membership` (/proc/PID/cgroup) and above, the tightest first.

    Those of cgroup v2, and of v1 where the memory controller is still there.
    """
    found = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, limit, usage, cache = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, cache = f"{root}/memory", "total_inactive_file"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        for directory in _upwards(base, path):
            figure = _read(f"{directory}/{limit}").strip()
            if figure.isdigit() and int(figure) < NO_LIMIT:
                stat = f"{directory}/memory.stat"
                found.append(MemoryGroup(int(figure), f"{directory}/{usage}", stat, cache))
    return sorted(found, key=lambda group: group.limit)


def memory_total() -> int:
    """Bytes of memory this process may use: the machine's, lowered by its cgroups' limits."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    groups = memory_groups(_read("/proc/self/cgroup"))
    return min(total, groups[0].limit) if groups else total


class MemoryMeter:
    """Bytes in use that could not be given back at once, by the same rule as `memory_total`.

    Cheap enough to be asked several times a second: the files stay open.
    """

    def __init__(self) -> None:
        groups = memory_groups(_read("/proc/self/cgroup"))
        self._group = groups[0] if groups and groups[0].limit <= memory_total() else None
        self._meminfo = os.open("/proc/meminfo", os.O_RDONLY | os.O_CLOEXEC)

    def used(self) -> int:
        """Bytes in use now."""
        if self._group is not None:
            return self._group.used()
        text = os.pread(self._meminfo, 256, 0)  # the two figures are among the first three lines
        return _figure(text, b"MemTotal:") - _figure(text, b"MemAvailable:")

    def close(self) -> None:
        """Close the file."""
        os.close(self._meminfo)


def _figure(text: bytes, name: bytes) -> int:
    return int(text[text.index(name) + len(name) :].split(None, 1)[0]) * 1024


def store_bytes(asked: int | None) -> int:
    """Size of the object store: as asked, else a share of the memory within its bounds.

    ValueError when what was asked for is below the least possible size.
    """
    least = config.get("store_min_bytes")
    if asked is not None:
        if asked < least:
            raise ValueError(f"object_store_memory must be at least {least} bytes: {asked}")
        return asked
    wanted = int(memory_total() * config.get("store_share"))
    return int(max(least, min(wanted, config.get("store_max_bytes"))))


def hostname() -> str:
    """This machine's name."""
    return socket.gethostname()


def _own_cgroups() -> list[str]:
    """The cgroup v2 directories of this process, innermost first; [] without cgroup v2."""
    for line in _read("/proc/self/cgroup").splitlines():
        if line.startswith("0::"):
            return _upwards(CGROUP, line[3:])
    return []


def _upwards(base: str, path: str) -> list[str]:
    """The directories of a cgroup and those above it. In a container some may not be there."""
    names = [name for name in path.split("/") if name not in ("", "..")]
    return ["/".join([base, *names[:depth]]) for depth in range(len(names), -1, -1)]


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def holder_of(port: int) -> str:
    """Which process listens on this TCP port, as "name (pid n)"; "" when nobody does."""
    import psutil

    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,):
            if connection.pid is None:
                return "a process of another user"
            return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""


FEW_LEFT = 0.9


def files_open() -> str:
    """A clause for errors: how many files this process has open, if those are nearly all it may; else ""."""
    import resource

    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        count = len(os.listdir("/proc/self/fd")) - 1    # without the one for the listing
    except OSError:
        count = most
    if count < FEW_LEFT * most:
        return ""
    return f"; this process has {count} files open, and at most {most} are allowed (`ulimit -n`)"
