"""The trial of a cluster of four hosts: `python -m tests.netns.trial [--ray-python PATH]` (root).

Four network namespaces, each a node with an address of its own. The same program runs on miniray and, if
asked for, on Ray: a tree of tasks over all nodes, a broadcast, a sort of 100-byte records shuffled to all,
and the same sort with the cable of one host pulled for some seconds in the middle. Each record is looked at.
With `--rounds` the engines take turns, so that what else runs on the machine meets both. Prints a table of
medians; the exit status is 1 if anything was wrong on miniray.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.netns.cluster import PORT, ROOT, NetCluster, each
from tests.netns.network import Host, Network, missing
from tests.system.support import eventually

HOSTS = 4
PARTS = 4
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


PATIENCE = {
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_gcs_server_request_timeout_seconds": "300",
    "RAY_gcs_rpc_server_connect_timeout_s": "300",
}
"""Ray's own limits for starting are for a machine with nothing else to do."""

OWN_DIRECTORIES = 'mount --bind "$1" "$RAY_TMPDIR" && mount --bind "$2" /dev/shm && shift 2 && exec "$@"'
"""A shell script: a command that sees its host's session directory and shared memory, as on a machine."""


@contextmanager
def ray_cluster(network: Network, arguments: argparse.Namespace, directory: str) -> Iterator[Launch]:
    """Ray finds itself under the name that the program imports: a directory with links, and one module.

    Its nodes share files with those on the same machine, so each host gets mounts of its own too.
    """
    Path(directory).mkdir()
    for name in ("examples", "tests"):
        Path(directory, name).symlink_to(ROOT / name)
    Path(directory, "miniray.py").write_text("import sys\nimport ray\nsys.modules['miniray'] = ray\n")
    session = Path(directory, "session")
    session.mkdir()
    address = f"{network.hosts[0].address}:{PORT}"
    environment = {"PYTHONPATH": directory, "TRIAL_ADDRESS": address, "RAY_ADDRESS": address,
                   "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(32).hex(),
                   "RAY_TMPDIR": str(session), **PATIENCE}  # fmt: skip

    with tempfile.TemporaryDirectory(prefix="mrt-trial", dir="/dev/shm") as memory:

        def on(host: Host, *command: str) -> list[str]:
            own = [Path(directory, host.name), Path(memory, host.name)]
            for path in own:
                path.mkdir(exist_ok=True)
            return ["unshare", "--mount", "sh", "-c", OWN_DIRECTORIES, "sh", *map(str, own), *command]

        def start(host: Host) -> None:
            where = ["--head", f"--port={PORT}", "--include-dashboard=false"] if host.number == 0 else [
                f"--address={address}"]
            done = subprocess.run(
                [*host.enter, *on(host, str(Path(arguments.ray_python).parent / "ray"), "start", *where,
                                  f"--node-ip-address={host.address}", f"--num-cpus={arguments.cpus}",
                                  "--disable-usage-stats",
                                  f"--object-store-memory={arguments.store_mb << 20}")],
                cwd=directory, env=os.environ | environment, capture_output=True, text=True,
                check=False)  # fmt: skip
            assert not done.returncode, done.stdout + done.stderr

        try:
            for host in network.hosts:  # one at a time: a start takes seconds of CPU
                start(host)
            driver = on(network.hosts[0], arguments.ray_python, "-m", "tests.netns.trial_driver")
            yield driver, directory, environment
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                for pid in [pid for host in network.hosts for pid in host.processes()]:
                    with suppress(ProcessLookupError):
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
    cuts: list[threading.Thread] = []
    assert process.stdout is not None
    for line in process.stdout:
        if not line.startswith("{"):
            continue
        said = json.loads(line)
        if said.get("begins") and "cable" in said["part"]:
            cuts.append(threading.Thread(target=cut, args=(network.hosts[2], arguments)))
            cuts[-1].start()
        elif "seconds" in said:
            results[said["part"]] = said
            print(f"  {said['part']}: {said['seconds']:.2f} s{'' if said['right'] else ' WRONG'}", flush=True)
    process.wait()
    for one in cuts:    # the sort may have been quicker
        one.join()
    return results


def cut(host: Host, arguments: argparse.Namespace) -> None:
    """Pull a cable in the middle of the sort, and put it back."""
    time.sleep(arguments.cut_after)
    host.pull_cable()
    time.sleep(arguments.cut)
    host.put_cable()


def middle(rounds: list[Result]) -> Result:
    """One part over all rounds: the median time; right if it was right each time."""
    seconds = statistics.median(result["seconds"] for result in rounds)
    return {**rounds[-1], "seconds": seconds, "right": all(result["right"] for result in rounds)}


def table(found: dict[str, dict[str, list[Result]]]) -> str:
    """Rates of each engine, and how the first compares to the second."""
    lines = []
    for part, rounds in found["miniray"].items():
        mine = middle(rounds)
        row = f"{part:20} {mine['seconds']:8.2f} s {mine['amount'] / mine['seconds']:8.1f} {mine['unit']}/s"
        row += "" if mine["right"] else "  WRONG"
        if part in found.get("ray", {}):
            theirs = middle(found["ray"][part])
            row += f"   Ray {theirs['seconds']:8.2f} s{'' if theirs['right'] else ' WRONG'}"
            row += f"   {theirs['seconds'] / mine['seconds']:5.1f}x"
        lines.append(row)
    return "\n".join(lines)


def main() -> int:
    """See the module head."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ray-python", help="an interpreter that has Ray and numpy")
    parser.add_argument("--rounds", type=int, default=1)
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
    found: dict[str, dict[str, list[Result]]] = {name: {} for name in engines}
    with tempfile.TemporaryDirectory(prefix="mrt-trial", dir="/tmp") as directory:
        for number in range(arguments.rounds):
            for name, cluster in engines.items():
                print(name, flush=True)
                place = f"{directory}/{name}{number}"
                with Network(HOSTS) as network, cluster(network, arguments, place) as launch:
                    for part, result in run(network, launch, arguments).items():
                        found[name].setdefault(part, []).append(result)
    print(table(found))
    mine = found["miniray"]
    complete = len(mine) == PARTS and all(len(rounds) == arguments.rounds for rounds in mine.values())
    return 0 if complete and all(middle(rounds)["right"] for rounds in mine.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
