"""What a machine says of itself: limits and use of memory, by either version of cgroups."""

from __future__ import annotations

import resource
from pathlib import Path

from miniray.runtime import host

GIB = 1 << 30
NEW = ("memory.max", "memory.current", "inactive_file")
OLD = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def group(
    directory: Path, names: tuple[str, str, str], limit: object, used: int = 0, cached: int = 0
) -> None:
    limit_file, usage_file, cache = names
    directory.mkdir(parents=True, exist_ok=True)
    (directory / limit_file).write_text(f"{limit}\n")
    (directory / usage_file).write_text(f"{used}\n")
    (directory / "memory.stat").write_text(f"anon 1\n{cache} {cached}\nfile 2\n")


def test_the_tightest_limit_above_a_process_counts_and_its_group_is_measured(tmp_path: Path) -> None:
    group(tmp_path / "service", NEW, 4 * GIB, used=3 * GIB, cached=GIB)
    group(tmp_path / "service" / "job", NEW, 6 * GIB, used=2 * GIB)
    group(tmp_path / "service" / "job" / "step", NEW, "max")
    tight, loose = host.memory_groups("0::/service/job/step\n", str(tmp_path))
    assert (tight.limit, tight.used(), loose.limit, loose.used()) == (4 * GIB, 2 * GIB, 6 * GIB, 2 * GIB)


def test_limits_of_the_first_version_count_where_it_has_the_memory_controller(tmp_path: Path) -> None:
    group(tmp_path / "memory", OLD, host.NO_LIMIT * 2 - 4096)
    group(tmp_path / "memory" / "docker" / "box", OLD, 2 * GIB, used=GIB, cached=GIB // 4)
    (tmp_path / "unified").mkdir()
    membership = "9:name=systemd:/\n4:cpuset,memory:/docker/box\n3:cpu:/docker\n0::/\n"
    (found,) = host.memory_groups(membership, str(tmp_path))
    assert (found.limit, found.used()) == (2 * GIB, 3 * GIB // 4)
    assert host.memory_groups("4:memory:/\n0::/\n", str(tmp_path)) == []


def test_in_a_container_the_groups_above_are_out_of_sight(tmp_path: Path) -> None:
    group(tmp_path / "memory", OLD, GIB, used=5, cached=9)
    (found,) = host.memory_groups("4:memory:/kubepods/pod/box\n", str(tmp_path))
    assert (found.limit, found.used()) == (GIB, 0)


def test_this_machine_has_memory_and_uses_some_of_it() -> None:
    meter = host.MemoryMeter()
    assert 0 < meter.used() <= 2 * host.memory_total()
    meter.close()


def test_a_process_with_hardly_a_descriptor_left_says_so() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert host.files_open() == ""
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        said = host.files_open()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "at most 3 are allowed (`ulimit -n`)" in said
