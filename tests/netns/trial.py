"""The trial of a cluster of four hosts: `python -m tests.netns.trial [--ray-python PATH]` (root).

Four network namespaces, each a node with an address of its own. The same program runs on miniray and, if
asked for, on Ray: a tree of tasks over all nodes, a broadcast, a sort of 100-byte records shuffled to all,
and the same sort with the cable of one host pulled for some seconds in the middle. Each record is looked at.
Prints a table; the exit status is 1 if anything was wrong on miniray.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.netns.cluster import PORT, ROOT, NetCluster, each
from tests.netns.network import Host, Network, missing
from tests.system.support import eventually

HOSTS = 4
Result = dict[str, Any]


@contextmanager
def miniray_cluster(network: Network, arguments: argparse.Namespace, directory: str) -> Iterator[Launch]:
    cluster = NetCluster(network.hosts, [arguments.cpus] * HOSTS, directory, plain=arguments.plain,
                         store_bytes=arguments.store_mb << 20)  # fmt: skip
    try:
        environment = {**cluster.environment(network.hosts[0]), "TRIAL_ADDRESS": cluster.address}
        yield [sys.executable, "-m", "tests.netns.trial_driver"], str(ROOT), environment
    finally:
        cluster.close()


@contextmanager
def ray_cluster(network: Network, arguments: argparse.Namespace, directory: str) -> Iterator[Launch]:
    """Ray finds itself under the name that the program imports: a directory with links, and one module."""
    Path(directory).mkdir()
    for name in ("examples", "tests"):
        Path(directory, name).symlink_to(ROOT / name)
    Path(directory, "miniray.py").write_text("import sys\nimport ray\nsys.modules['miniray'] = ray\n")
    address = f"{network.hosts[0].address}:{PORT}"
    environment = {"PYTHONPATH": directory, "TRIAL_ADDRESS": address, "RAY_ADDRESS": address,
                   "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(32).hex(),
                   "RAY_TMPDIR": directory, "RAY_raylet_start_wait_time_s": "180"}  # fmt: skip

    def start(host: Host) -> None:
        where = ["--head", f"--port={PORT}", "--include-dashboard=false"] if host.number == 0 else [
            f"--address={address}"]
        done = subprocess.run(
            [*host.enter, str(Path(arguments.ray_python).parent / "ray"), "start", *where,
             f"--node-ip-address={host.address}", f"--num-cpus={arguments.cpus}", "--disable-usage-stats",
             f"--object-store-memory={arguments.store_mb << 20}"],
            cwd=directory, env=os.environ | environment, capture_output=True, text=True,
            check=False)  # fmt: skip
        assert not done.returncode, done.stdout + done.stderr

    try:
        for host in network.hosts:  # at once they would choose one another's sockets
            start(host)
        yield [arguments.ray_python, "-m", "tests.netns.trial_driver"], directory, environment
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for host in network.hosts:
                for pid in host.processes():
                    os.kill(pid, number)
            time.sleep(2)
        each(lambda host: eventually(lambda: not host.processes()), network.hosts)


Launch = tuple[list[str], str, dict[str, str]]
"""A command, where, and its environment."""


def run(network: Network, launch: Launch, arguments: argparse.Namespace) -> dict[str, Result]:
    """One program on one engine. Returns its results by part; the last of equal parts counts."""
    command, directory, environment = launch
    process = subprocess.Popen(
        [*network.hosts[0].enter, *command, str(HOSTS), str(arguments.depth), str(arguments.records),
         str(arguments.parts), str(arguments.broadcast_mb * 10**6)],
        cwd=directory, env=os.environ | environment, stdout=subprocess.PIPE, text=True)  # fmt: skip
    results: dict[str, Result] = {}
    assert process.stdout is not None
    for line in process.stdout:
        if not line.startswith("{"):
            continue
        said = json.loads(line)
        if said.get("begins") and "cable" in said["part"]:
            threading.Thread(target=cut, args=(network.hosts[2], arguments)).start()
        elif "seconds" in said:
            results[said["part"]] = said
            print(f"  {said['part']}: {said['seconds']:.2f} s{'' if said['right'] else ' WRONG'}", flush=True)
    process.wait()
    return results


def cut(host: Host, arguments: argparse.Namespace) -> None:
    """Pull a cable in the middle of the sort, and put it back."""
    time.sleep(arguments.cut_after)
    host.pull_cable()
    time.sleep(arguments.cut)
    host.put_cable()


def table(found: dict[str, dict[str, Result]]) -> str:
    """Rates of each engine, and how the first compares to the second."""
    lines = []
    for part, mine in found["miniray"].items():
        row = f"{part:20} {mine['seconds']:8.2f} s {mine['amount'] / mine['seconds']:8.1f} {mine['unit']}/s"
        row += "" if mine["right"] else "  WRONG"
        theirs = found.get("ray", {}).get(part)
        if theirs:
            row += f"   Ray {theirs['seconds']:8.2f} s{'' if theirs['right'] else ' WRONG'}"
            row += f"   {theirs['seconds'] / mine['seconds']:5.1f}x"
        lines.append(row)
    return "\n".join(lines)


def main() -> int:
    """See the module head."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ray-python", help="an interpreter that has Ray and numpy")
    parser.add_argument("--depth", type=int, default=6, help="of the tree of tasks: each has two below it")
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--parts", type=int, default=16)
    parser.add_argument("--broadcast-mb", type=int, default=256)
    parser.add_argument("--cpus", type=int, default=2, help="that each host offers")
    parser.add_argument("--store-mb", type=int, default=1500)
    parser.add_argument("--plain", action="store_true", help="miniray without encryption too, as Ray is")
    parser.add_argument("--cut", type=float, default=5.0, help="seconds without the cable")
    parser.add_argument("--cut-after", type=float, default=2.0)
    arguments = parser.parse_args()
    if missing():
        print(missing(), file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # and leave nothing behind
    engines = {"miniray": miniray_cluster, **({"ray": ray_cluster} if arguments.ray_python else {})}
    found: dict[str, dict[str, Result]] = {}
    with tempfile.TemporaryDirectory(prefix="mrt-trial", dir="/tmp") as directory:
        for name, cluster in engines.items():
            print(name, flush=True)
            with Network(HOSTS) as network, cluster(network, arguments, f"{directory}/{name}") as launch:
                found[name] = run(network, launch, arguments)
    print(table(found))
    mine = found["miniray"]
    return 0 if len(mine) == 4 and all(result["right"] for result in mine.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
