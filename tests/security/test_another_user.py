"""Another user of the same machine: reads nothing, attaches to nothing, sees no secret."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import miniray as ray
from miniray._proto import gcs_pb2 as gcs
from miniray._proto import raylet_pb2 as raylet
from miniray.runtime import bulk, clients, port_owner, rpc
from miniray.runtime.links import StreamEnded
from miniray.runtime.raylet_client import RayletClient
from tests.security.support import until

STRANGER = 65534

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    os.chmod(os.environ["MINIRAY_TMPDIR"], 0o755)  # as /tmp: the session directory itself is what protects
    context = ray.init(num_cpus=1)
    try:
        yield context
    finally:
        ray.shutdown()


def as_stranger(code: str, *arguments: str) -> Any:
    """Run code as another user; what it prints is JSON."""
    become = f"os.setgroups([]); os.setgid({STRANGER}); os.setuid({STRANGER})\n"
    prelude = "import os, sys, json, socket\n" + become
    done = subprocess.run(
        [sys.executable, "-c", prelude + code, *arguments], cwd="/", capture_output=True, text=True,
        timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def directory() -> Path:
    (found,) = Path(os.environ["MINIRAY_TMPDIR"]).glob("miniray-*")
    return found


def processes() -> list[int]:
    """The daemon of this session and all below it."""
    daemon = json.loads((directory() / "node.json").read_text())["pid"]
    found = [daemon]
    for pid in found:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def test_everything_of_a_session_is_this_users_alone(session: Any) -> None:
    assert stat.S_IMODE(directory().stat().st_mode) == 0o700
    for path in directory().rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert not mode & 0o077, f"{path}: {mode:o}"


def test_a_stranger_cannot_enter_list_or_connect(session: Any) -> None:
    code = """
def attempt(work):
    try:
        work()
        return "done"
    except OSError as error:
        return type(error).__name__
where = sys.argv[1]
print(json.dumps([
    attempt(lambda: os.listdir(where)), attempt(lambda: open(where + "/token").read()),
    attempt(lambda: socket.socket(socket.AF_UNIX).connect(where + "/raylet.sock")),
]))
"""
    assert as_stranger(code, str(directory())) == ["PermissionError"] * 3


def test_a_stranger_cannot_reach_the_objects_of_any_process(session: Any) -> None:
    """Shared memory has no name; descriptors, memory and maps of our processes are closed to others."""
    kept = ray.put(np.full(1_000_000, 7, np.uint8))

    @ray.remote
    def read(array: Any) -> int:
        return int(array[0])

    assert ray.get(read.remote(kept), timeout=60) == 7
    code = """
reached = []
for pid in map(int, sys.argv[1:]):
    for name in ("fd", "mem", "maps", "environ", "map_files", "root", "cwd"):
        path = f"/proc/{pid}/{name}"
        try:
            found = os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1)
            reached.append((path, len(found)))
        except OSError:
            continue
    for number in range(64):
        try:
            os.close(os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY))
            reached.append((pid, number))
        except OSError:
            continue
print(json.dumps(reached))
"""
    ours = processes()
    assert len(ours) >= 3, "daemon, zygote and a worker"
    assert as_stranger(code, *map(str, [*ours, os.getpid()])) == []
    owner = subprocess.run(["ls", f"/proc/{ours[0]}/fd"], capture_output=True, text=True, check=True)
    assert len(owner.stdout.split()) > 5, "there was something to reach"


def test_nothing_of_a_session_is_in_shared_directories(session: Any) -> None:
    assert not [path for path in Path("/dev/shm").iterdir() if "miniray" in path.name]
    segments = [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:" in line]
    assert segments, "the store is mapped"


def test_a_stranger_who_gets_to_the_socket_all_the_same_is_turned_away(tmp_path: Path) -> None:
    """Even with the token: the kernel says whose process it is, before a byte is read."""
    code = """
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(30)
sock.connect(sys.argv[1])
try:
    sock.sendall(bytes.fromhex(sys.argv[2]))
    said = sock.recv(100)
except (BrokenPipeError, ConnectionResetError):
    said = b""
print(json.dumps(said.hex()))
"""
    import struct

    from miniray._proto.worker_pb2 import Register, ToRaylet

    body = ToRaylet(register=Register(token="secret")).SerializeToString()
    greeting = struct.pack("<I", len(body)) + body
    registered: list[int] = []

    async def serve() -> None:
        path = str(tmp_path / "raylet.sock")
        server = clients.ClientServer(path, "secret", clients.ClientEvents(
            lambda client, register: registered.append(client.pid), lambda client, message, fd: None,
            lambda client: None, lambda client, slow: None))  # fmt: skip
        os.chmod(path, 0o777)
        for folder in (tmp_path, *list(tmp_path.parents)[:3]):
            os.chmod(folder, 0o755)
        try:
            said = await asyncio.to_thread(as_stranger, code, path, greeting.hex())
            assert said == "" and not registered
            mine = socket.socket(socket.AF_UNIX)
            mine.connect(path)
            mine.sendall(greeting)
            deadline = asyncio.get_running_loop().time() + 30
            while not registered and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            mine.close()
        finally:
            server.close()

    asyncio.run(serve())
    assert registered == [os.getpid()]


def test_a_driver_tells_nothing_to_a_socket_of_another_user(tmp_path: Path) -> None:
    """Whoever it believes to be its raylet gets its token and sends it code."""
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        os.chmod(folder, 0o755)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    code = """
sock = socket.socket(socket.AF_UNIX)
sock.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
sock.listen()
sock.settimeout(60)
near, _ = sock.accept()
near.settimeout(60)
print(json.dumps(near.recv(100).hex()))
"""
    path = str(shared / "raylet.sock")
    heard: list[Any] = []
    listening = threading.Thread(target=lambda: heard.append(as_stranger(code, path)))
    listening.start()
    until(lambda: os.path.exists(path) and os.stat(path).st_mode & 0o002)
    with pytest.raises(ConnectionError, match=f"another user .uid {STRANGER}."):
        connect_when_it_listens(path)
    listening.join(60)
    assert heard == [""]


def connect_when_it_listens(path: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            RayletClient(path).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


LISTEN = """
sock = socket.socket()
sock.bind((sys.argv[1], 0))
sock.listen()
with open(sys.argv[2], "w") as file:
    print(sock.getsockname()[1], file=file)
sock.settimeout(0.1)
heard = b""
while not os.path.exists(sys.argv[2] + ".over"):
    try:
        near, _ = sock.accept()
        near.settimeout(30)
        near.sendall(bytes(32))  # the challenge of a data port
        heard += near.recv(10_000)
    except OSError:
        continue
print(json.dumps(heard.hex()))
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_token_is_not_told_to_who_took_the_port_of_a_daemon_that_ended(tmp_path: Path, host: str) -> None:
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        os.chmod(folder, 0o755)
    tmp_path.chmod(0o777)
    place = tmp_path / "port"
    heard: list[str] = []
    listening = threading.Thread(target=lambda: heard.append(as_stranger(LISTEN, host, str(place))))
    listening.start()
    until(lambda: place.exists() and place.read_text().endswith("\n"))
    address = f"127.0.0.1:{int(place.read_text())}"
    found = f"another user .uid {STRANGER}. listens at {address}"

    async def fetch() -> None:
        async for _ in rpc.fetch(address, "secret", b"n" * 28, raylet.FetchRequest()):
            pass

    async def connect() -> None:
        where = bulk.Address("127.0.0.1", int(address.rpartition(":")[2]))
        await bulk.connect(asyncio.get_running_loop(), where, "secret")

    status = gcs.ControlRequest(status=gcs.StatusQuery())
    for attempt, error in (
        (rpc.call_head(address, "secret", status), rpc.RpcError), (fetch(), ConnectionError),
        (rpc.dial_raylet(address, "secret", b"n" * 28), StreamEnded),
        (rpc.dial_tunnel(address, "secret", b"n" * 28), StreamEnded), (connect(), ConnectionError),
    ):  # fmt: skip
        with pytest.raises(error, match=found):
            asyncio.run(attempt)
    Path(f"{place}.over").touch()
    listening.join(60)
    assert heard == [""]
    with socket.create_server(("127.0.0.1", 0)) as own:
        assert port_owner.stranger_at(f"localhost:{own.getsockname()[1]}") is None
