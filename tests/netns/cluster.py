"""A cluster whose head and nodes are hosts of a `Network`, started by the command line as users do.

Each host has its own directory of sessions, so nothing on one sees another but through the network.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tests.netns.network import Host
from tests.system.support import Script, eventually

ROOT = Path(__file__).resolve().parents[2]
PORT = 6379
NODE_PORT = 7000
"""The first of the two ports of each node."""
START_S = 60.0

PRELUDE = """
ray.init(configure_logging=False)

def on(name, **more):
    return {"resources": {name: 0.1}, "num_cpus": 0, **more}

def until(condition, what):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)

until(lambda: sum(node["Alive"] for node in ray.nodes()) == len(NAMES), "all nodes")
"""
"""What each driver begins with: NAMES are its hosts, `on(name)` the options that place something on one."""

PLAIN = ("--insecure-plaintext",)
JOIN = re.compile(r"--join (\S+)")


def each(work: Callable[[Host], object], hosts: Sequence[Host]) -> None:
    """Do it for all hosts at once."""
    with ThreadPoolExecutor(max(1, len(hosts))) as threads:
        list(threads.map(work, hosts))


class NetCluster:
    """A head with a node on the first host, a node on each further one. `cpus` of each node."""

    def __init__(
        self, hosts: Sequence[Host], cpus: Sequence[int], directory: str, *, store_bytes: int = 150 << 20,
        join: int | None = None, plain: bool = False, six: bool = False, seen_at: Sequence[str] = (),
        keeps_tables: bool = False,
    ) -> None:
        """`join`: how many hosts take part at first, all by default. `plain`: without encryption.
        `six`: over IPv6. `seen_at`: where each is reached, if not at its own address.
        `keeps_tables`: the head can be started again when it was killed."""
        self.hosts = hosts
        self._listen = [host.address6 if six else host.address for host in hosts]
        self._seen_at = seen_at
        head = seen_at[0] if seen_at else self._listen[0]
        self.address = f"[{head}]:{PORT}" if six else f"{head}:{PORT}"
        self._cpus = cpus
        self._store_bytes = store_bytes
        self._directory = directory
        self._plain = plain
        self._later_heads: list[subprocess.Popen[bytes]] = []
        self._secrets = {"MINIRAY_AUTH_TOKEN": os.urandom(32).hex()}
        for host in self.hosts:
            os.makedirs(self._home(host), exist_ok=True)
        try:
            tables = () if keeps_tables else ("--storage=:memory:",)
            said = self.start(self.hosts[0], "--head", f"--port={PORT}", *tables)
            if not plain:
                (self.join_string,) = JOIN.findall(said)
            each(self.join, self.hosts[1:join])
        except BaseException:
            self.close()
            raise

    def _home(self, host: Host) -> str:
        return f"{self._directory}/h{host.number}"

    def environment(self, host: Host) -> dict[str, str]:
        """What differs on a host from this process's environment."""
        return {"MINIRAY_TMPDIR": self._home(host), "XDG_STATE_HOME": f"{self._home(host)}/state",
                "MINIRAY_ADDRESS": self.address, "PYTHONPATH": str(ROOT)}  # fmt: skip

    def start(self, host: Host, *arguments: str, code: int = 0) -> str:
        """`miniray start` on a host. Returns what it said."""
        cpus = self._cpus[host.number]
        seen_at = [f"--advertise={self._seen_at[host.number]}"] if self._seen_at else []
        return self.run(
            host, "start", *arguments, f"--host={self._listen[host.number]}", *seen_at,
            *(PLAIN if self._plain else ()), f"--node-port={NODE_PORT}", f"--num-cpus={cpus}",
            f'--resources={{"h{host.number}": 10}}', f"--node-name=h{host.number}",
            f"--object-store-memory={self._store_bytes}", code=code)  # fmt: skip

    def join(self, host: Host, *arguments: str, code: int = 0) -> str:
        """A node on this host."""
        where = [f"--address={self.address}"] if self._plain else [f"--join={self.join_string}"]
        return self.start(host, *where, *arguments, code=code)

    def run(self, host: Host, *arguments: str, code: int = 0) -> str:
        """The command line on a host."""
        environment = os.environ | self.environment(host) | self._secrets
        done = subprocess.run(
            [*host.enter, sys.executable, "-m", "miniray", *arguments], cwd=ROOT, capture_output=True,
            env=environment, text=True, timeout=START_S, check=False)  # fmt: skip
        assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def driver(self, code: str, host: Host | None = None) -> Script:
        """A driver on a host, the head's by default."""
        host = host or self.hosts[0]
        names = [f"h{one.number}" for one in self.hosts if one.processes()]
        code = f"NAMES = {names}" + PRELUDE + textwrap.dedent(code)
        return Script(code, enter=host.enter, **self.environment(host))

    def kill(self, host: Host) -> None:
        """The machine is gone: every process on it, and its disk."""
        for pid in host.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        eventually(lambda: not host.processes(), f"processes on {host.name}")
        for left in Path(self._home(host)).glob("miniray-*"):
            shutil.rmtree(left)

    def kill_head(self) -> None:
        """The head's process is gone; the node beside it goes on."""
        (path,) = Path(self._home(self.hosts[0])).glob("miniray-*/head.json")
        os.kill(json.loads(path.read_text())["pid"], signal.SIGKILL)
        eventually(lambda: not path.parent.exists(), "its session directory")

    def start_head_again(self) -> None:
        """With the tables that it had."""
        host = self.hosts[0]
        self._later_heads.append(subprocess.Popen(
            [*host.enter, sys.executable, "-m", "miniray",
             "head", f"--port={PORT}", f"--host={host.address}"],
            cwd=ROOT, env=os.environ | self.environment(host) | self._secrets,
            stdout=subprocess.DEVNULL))  # fmt: skip

    def close(self) -> None:
        """Stop every daemon. Nothing may run on any host then."""
        for host in self.hosts:
            host.put_cable()
        each(lambda host: self.run(host, "stop"), [host for host in self.hosts if host.processes()])
        for head in self._later_heads:
            head.wait(START_S)
        for host in self.hosts:
            eventually(lambda: not host.processes(), f"processes on {host.name}")
            assert not list(Path(self._home(host)).glob("miniray-*"))
