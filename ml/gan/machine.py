"""How many cores this process may really use: by affinity and cgroup quota, not by the host's count."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores() -> int:
    """At least 1. A container that may use 1.5 CPUs counts as 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(affinity, int(quota)) if quota else affinity)


def _cgroup_quota() -> float | None:
    """CPUs that cgroup v2 grants, the tightest limit on the way up; None without one."""
    try:
        own = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2]
    except OSError:
        return None
    quotas = []
    folder = Path("/sys/fs/cgroup") / own.lstrip("/")
    for place in [folder, *folder.parents]:
        if not place.is_relative_to("/sys/fs/cgroup"):
            break
        try:
            limit, period = (place / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue
        if limit != "max":
            quotas.append(int(limit) / int(period))
    return min(quotas, default=None)
