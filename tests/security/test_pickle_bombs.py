"""Daemons never unpickle: a pickle that acts, in every bytes field of every message, from one with the token.

The audit hook of the daemons ends a process at the attempt, and the bomb would leave a directory.
Neither may happen, no message may make a machine fail, and the cluster goes on working.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from miniray._proto import gcs_pb2 as gcs
from miniray._proto import raylet_pb2, worker_pb2
from miniray.runtime import launch, rpc
from miniray.runtime.access import Access
from miniray.runtime.daemon import HeadOptions, NodeOptions
from miniray.runtime.raylet_client import RayletClient
from tests.security.hostile import bomb, bytes_fields, filled_fields, variants

TOKEN = "b0" * 32
WITHIN_S = 30.0
SIZES = {
    "job_id": 4, "actor_id": 16, "task_id": 24, "parent_task_id": 24, "object_id": 28, "node_id": 28,
    "worker_id": 28, "placement_group_id": 18, "target_worker_id": 28, "target_node_id": 28, "reader": 28,
}  # fmt: skip
"""Ids in some of the messages are of the right size, so that they come further."""


class Cluster:
    """A head and a node whose output is kept."""

    def __init__(self, where: Path) -> None:
        self.trace = where / "bomb-went-off"
        self.log = where / "daemons.log"
        with self.log.open("wb") as output:
            self.head = launch.start_daemon(
                "head", HeadOptions(port=0, token=TOKEN, driver_pid=os.getpid()), output=output.fileno())
            self.address = self.head["address"]
            self.node = launch.start_daemon("node", NodeOptions(
                gcs_address=self.address, token=TOKEN, num_cpus=1, driver_pid=os.getpid(),
                object_store_memory=80 << 20), output=output.fileno())  # fmt: skip
        self.data = bomb(str(self.trace))

    def messages(self, kind: type[Any]) -> list[Any]:
        """Every message of a type, filled with bombs; then with ids of the right size and bombs elsewhere."""
        def sized(field: Any) -> bytes:
            return os.urandom(SIZES[field.name]) if field.name in SIZES else self.data

        bombs = variants(kind, lambda field: self.data)
        filled = set().union(*map(filled_fields, bombs))
        assert filled == bytes_fields(kind)  # the test reaches every one of them
        return bombs + variants(kind, sized)

    def unharmed(self) -> None:
        """No bomb, no end, no failure of a machine; and a program runs."""
        assert not self.trace.exists()
        for daemon in (self.head, self.node):
            assert Path(f"/proc/{daemon['pid']}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        said = self.log.read_text()
        assert "unpickle" not in said
        assert "Traceback" not in said, said
        program = "import miniray as ray; ray.init(); print(ray.get(ray.remote(lambda: 6 * 7).remote()))"
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "MINIRAY_ADDRESS": self.address, "MINIRAY_AUTH_TOKEN": TOKEN},
        )  # fmt: skip
        assert done.stdout.split() == ["42"], done.stderr + said


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("bombs"))
    yield made
    for daemon in (made.node, made.head):
        os.kill(daemon["pid"], signal.SIGTERM)


async def test_requests_to_the_head(cluster: Cluster) -> None:
    for request in cluster.messages(gcs.ControlRequest):
        if request.WhichOneof("body") != "drain":
            await rpc.call_head(cluster.address, TOKEN, request, WITHIN_S)
    cluster.unharmed()


async def test_messages_of_a_node_to_the_head(cluster: Cluster) -> None:
    node_id = os.urandom(28)
    stream = await rpc.dial_head(cluster.address, TOKEN, node_id)
    register = gcs.NodeMessage(register=gcs.NodeRegister())
    register.register.info.node_id = node_id
    await _speak(stream, gcs.Packet, [register, *cluster.messages(gcs.NodeMessage)])
    stream.cancel()
    cluster.unharmed()


async def test_messages_of_a_node_to_another(cluster: Cluster) -> None:
    node = await _node(cluster)
    address = f"{node.host}:{node.port}"
    stream = await rpc.dial_raylet(address, TOKEN, os.urandom(28))
    await _speak(stream, raylet_pb2.PeerPacket, cluster.messages(raylet_pb2.PeerMessage))
    stream.cancel()
    for request in cluster.messages(raylet_pb2.FetchRequest):
        with pytest.raises(ConnectionError):
            async for chunk in rpc.fetch(address, TOKEN, os.urandom(28), request):
                if chunk.failure.kind:
                    raise ConnectionError(chunk.failure.message)
    cluster.unharmed()


async def _speak(stream: Any, packet: Any, messages: list[Any]) -> None:
    """Greet the other end, then send each message in a packet of its own, until all is acknowledged."""
    await stream.write(packet(incarnation=1))
    peer = (await asyncio.wait_for(stream.read(), WITHIN_S)).incarnation
    for number, message in enumerate(messages, 1):
        head = {"incarnation": 1, "peer_incarnation": peer, "first_sequence": number}
        await stream.write(packet(**head, messages=[message]))
    while (await asyncio.wait_for(stream.read(), WITHIN_S)).ack < len(messages):
        pass


async def _node(cluster: Cluster) -> Any:
    request = gcs.ControlRequest(node_list=gcs.NodeList())
    reply = await rpc.call_head(cluster.address, TOKEN, request, WITHIN_S)
    [node] = [node for node in reply.nodes.nodes if node.pid == cluster.node["pid"]]
    return node


def _registered(cluster: Cluster, path: str) -> RayletClient:
    client = RayletClient(path)
    info, store = client.register(worker_pb2.Register(
        token=TOKEN, is_driver=True, job=gcs.JobStart(entrypoint="hostile")))  # fmt: skip
    assert not info.failure.kind
    os.close(store)
    return client


async def test_messages_of_a_driver(cluster: Cluster) -> None:
    """Each on a connection of its own, for some of them end it."""
    path = (await _node(cluster)).socket_path
    for message in cluster.messages(worker_pb2.ToRaylet):
        if message.WhichOneof("body") == "control" and message.control.WhichOneof("body") != "job_finish":
            continue  # they have been to the head
        client = _registered(cluster, path)
        client.send(message)
        last = gcs.ControlRequest(request_id=2**40, status=gcs.StatusQuery())
        client.send(worker_pb2.ToRaylet(control=last))
        while (answer := client.receive()) is not None and answer.control.request_id != last.request_id:
            pass
        client.close()
    for message in cluster.messages(worker_pb2.Register):
        client = RayletClient(path)
        message.token = TOKEN
        client.send(worker_pb2.ToRaylet(register=message))
        client.receive()
        client.close()
    cluster.unharmed()


async def test_requests_on_the_data_port(cluster: Cluster) -> None:
    node = await _node(cluster)
    for request in cluster.messages(raylet_pb2.BulkRequest):
        with socket.create_connection((node.host, node.data_port), timeout=WITHIN_S) as sock:
            sock.sendall(Access.of(TOKEN).proof(sock.recv(32, socket.MSG_WAITALL)))
            data = request.SerializeToString()
            sock.sendall(struct.pack("<I", len(data)) + data)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                pass
    cluster.unharmed()
