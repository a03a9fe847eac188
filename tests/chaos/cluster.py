"""The daemons under test: a head that can be started again, nodes that are replaced when they end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import secrets
import signal
import subprocess
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.runtime import agent, launch, rpc
from miniray.runtime.daemon import HeadOptions, NodeOptions

from . import watch
from .wires import Proxy

MIB = 1 << 20
STORE_BYTES = 80 * MIB
DISK_BYTES = 256 * MIB
ANSWER_WITHIN_S = 60.0
launch.READY_WITHIN_S = 120.0     # the machine may be as busy as it likes


class Disk:
    """Where one node spills to: a small file system of its own where that is allowed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        options = ["-o", f"size={DISK_BYTES}", "none", str(path)]
        done = subprocess.run(["mount", "-t", "tmpfs", *options], capture_output=True, check=False)
        self.is_small = done.returncode == 0

    def fill(self) -> bool:
        """Leave no room; False where the disk is not ours alone to fill."""
        if not self.is_small:
            return False
        free = os.statvfs(self.path)
        with (self.path / "ballast").open("ab") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, free.f_bavail * free.f_frsize)
        return True

    def empty(self) -> None:
        """Give the room back."""
        (self.path / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        """Take it away."""
        self.empty()
        if self.is_small:
            subprocess.run(["umount", str(self.path)], check=True)
        self.path.rmdir()


@dataclass(eq=False)
class Node:
    """One node's processes; `index` says which member of the cluster it is, also after a replacement."""

    index: int
    pid: int
    node_id: str
    session_dir: str
    given_up: bool = False
    """It was silent for so long that the head has declared it dead."""

    @property
    def is_up(self) -> bool:
        """Its raylet runs (or is stopped)."""
        return watch.alive(self.pid)

    @property
    def zygote(self) -> int:
        """The pid of its zygote, 0 when it has none."""
        named = [pid for pid in agent.descendants_of(self.pid) if watch.name_of(pid) == "miniray-zygote"]
        return next(iter(named), 0)

    @property
    def workers(self) -> list[int]:
        """The pids of its workers."""
        zygote = self.zygote
        return sorted(agent.children_of(zygote)) if zygote else []


class Cluster:
    """See the module head. Everything lives in `directory`, and ends with this process."""

    def __init__(self, directory: str, nodes: int, cpus: int) -> None:
        self.directory = Path(directory)
        self.cpus = cpus
        self.token = secrets.token_hex(32)
        self.proxy = Proxy()
        self.address = self._meeting_point()
        self.head_pid = 0
        self.log = Path(f"{directory}.daemons.log").open("ab")
        self.start_head()
        self.disks = [Disk(self.directory / f"disk{index}") for index in range(nodes)]
        self.nodes = [self._start_node(index) for index in range(nodes)]

    def _meeting_point(self) -> str:
        """Where nodes look for the head."""
        return f"127.0.0.1:{self.proxy.port}"

    def _head_options(self) -> HeadOptions:
        return HeadOptions(port=0, token=self.token, storage=f"sqlite:{self.directory}/head.sqlite",
                           driver_pid=os.getpid())

    def start_head(self) -> None:
        """Start the head on its database, behind the proxy. RuntimeError says why it did not come up."""
        ready = launch.start_daemon("head", self._head_options(), output=self.log.fileno())
        self.head_pid = ready["pid"]
        self.proxy.target = int(ready["address"].rpartition(":")[2])

    @property
    def head_is_up(self) -> bool:
        """The head's process runs."""
        return watch.alive(self.head_pid)

    def replace(self, node: Node) -> Node:
        """Start a node in the place of one that has ended."""
        fresh = self.nodes[node.index] = self._start_node(node.index)
        return fresh

    def _node_options(self, index: int) -> NodeOptions:
        return NodeOptions(
            gcs_address=self.address, token=self.token, num_cpus=self.cpus, num_gpus=0, memory=4 << 30,
            object_store_memory=STORE_BYTES, is_head=index == 0, driver_pid=os.getpid(),
            spill_dir=str(self.disks[index].path), resources={f"place{index}": 100})

    def beside(self, index: int) -> AbstractContextManager[None]:
        """Within it, what is started runs where that node does."""
        return contextlib.nullcontext()

    def command_on(self, node: Node) -> tuple[str, ...]:
        """Put before a command, it runs beside the node."""
        return ()

    def _start_node(self, index: int) -> Node:
        with self.beside(index):
            ready = launch.start_daemon("node", self._node_options(index), output=self.log.fileno())
        return Node(index, ready["pid"], ready["node_id"], ready["session_dir"])

    def living(self) -> list[str]:
        """The ids (hex) of the nodes that the head takes for alive."""
        reply = self.ask(gcs.ControlRequest(node_list=gcs.NodeList()))
        return [node.node_id.hex() for node in reply.nodes.nodes if node.state != pb.NODE_DEAD]

    def ask(self, request: gcs.ControlRequest) -> gcs.ControlReply:
        """One request to the head; asked again while it cannot be reached. RpcError in the end."""
        deadline = time.monotonic() + ANSWER_WITHIN_S
        while True:
            try:
                return asyncio.run(rpc.call_head(self.address, self.token, request))
            except rpc.RpcError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def close(self) -> None:
        """End everything, as `miniray stop` does: two SIGTERMs each."""
        pids = [node.pid for node in self.nodes] + [self.head_pid]
        for _ in range(2):
            for pid in pids:
                agent.signal_process(pid, signal.SIGTERM)
            watch.wait_for(lambda: not any(map(watch.alive, pids)), 0.3)
        watch.wait_for(lambda: not any(map(watch.alive, pids)), 10.0)
        for pid in pids:
            agent.signal_process(pid, signal.SIGKILL)
        self.proxy.close()
        self.log.close()
        for disk in self.disks:
            disk.close()
        for path in self.directory.glob("head.sqlite*"):
            path.unlink()


def die_with_parent() -> None:
    """In a child before it executes: end when the run ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
