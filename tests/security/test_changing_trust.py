"""What holds a cluster together can be replaced while it works: token, certificates, the CA itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import miniray as ray
from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.runtime import certificates, join_string, launch, rpc, rpc_server
from miniray.runtime.access import Access, Identity, NotAdmitted
from miniray.runtime.daemon import HeadOptions
from miniray.runtime.gcs import GcsShell
from miniray.runtime.head_security import HeadSecurity
from miniray.runtime.links import LinkEvents, StreamEnded
from miniray.runtime.meeting import introduce
from miniray.runtime.storage import MemoryStorage, MemoryTables
from tests.security.support import ROOT, Encrypted, own_address, until


@ray.remote(resources={"far": 0.01}, num_cpus=0)
class Far:
    def echo(self, value: bytes) -> bytes:
        return value


def test_rotation_refuses_the_old_and_costs_the_connected_nothing() -> None:
    cluster = Encrypted()
    try:
        node = cluster.add_node()
        old = cluster.join_string
        token = Path(node["session_dir"], "token")
        rotated = subprocess.run(
            [sys.executable, "-m", "miniray", "token", "rotate", "--address", str(old)],
            cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
        assert rotated.returncode == 0, rotated.stderr
        with pytest.raises(NotAdmitted, match="revoked"):
            asyncio.run(introduce(old.address, old.token, old.fingerprint))
        new = join_string.parse(rotated.stdout)
        assert new.fingerprint == old.fingerprint and new.token != old.token
        until(lambda: token.read_text() == new.token)
        with pytest.raises(RuntimeError, match="revoked"):
            cluster.add_node()
        cluster.token = new.token
        cluster.add_node(resources={"far": 1})
        with pytest.raises(ray.exceptions.AuthenticationError, match="token was replaced"):
            ray.init(str(old))
        ray.init(str(new))
        assert ray.get(Far.remote().echo.remote(b"5"), timeout=60) == b"5", "old and new node speak"
        assert len(ray.nodes()) == 2 and all(one["Alive"] for one in ray.nodes())
    finally:
        ray.shutdown()
        cluster.close()


async def test_a_node_that_was_cut_off_meanwhile_learns_the_new_token(tmp_path: Path) -> None:
    """It comes back with its certificate and the former token, which open nothing else to anybody."""
    shell = GcsShell.open(MemoryStorage(MemoryTables()))
    security = HeadSecurity(shell, [], "former", str(tmp_path))
    security.encrypt()
    server = await rpc_server.serve_gcs(shell, "127.0.0.1", 0, security.access, security=security)
    address = f"127.0.0.1:{server.port}"
    member, stranger = await certified(security, MEMBER), await certified(security, STRANGER)
    heard: list[gcs.NodeMessage] = []
    downs: list[StreamEnded] = []
    events = LinkEvents(heard.append, on_down=lambda ended, seconds: downs.append(ended))
    passing = await Cable.to(server.port)
    link = rpc.head_link(passing.address, member, MEMBER, 1, events)
    try:
        link.send(gcs.NodeMessage(register=gcs.NodeRegister(info=pb.NodeInfo(node_id=MEMBER))))
        await soon(lambda: shell.has_node(MEMBER))
        passing.cut()
        await soon(lambda: downs)
        await rpc.rotate_token(address, security.access)
        assert security.access.token != "former" and not rotated(heard)
        for access, node_id in ((stranger, STRANGER), (stranger, MEMBER), (member, STRANGER)):
            with pytest.raises(StreamEnded) as refused:
                await rpc.dial_head(address, access, node_id)
            assert refused.value.final or "certificate" in refused.value.detail
        with pytest.raises(rpc.RpcError, match="does not accept"):
            await rpc.call_head(address, member, gcs.ControlRequest(status=gcs.StatusQuery()))
        passing.mend()
        await soon(lambda: rotated(heard))
        assert rotated(heard) == [security.access.token]
        assert not any(ended.final for ended in downs)
    finally:
        link.close()
        passing.close()
        security.close()
        await server.stop()
        shell.close()


MEMBER, STRANGER = b"m" * 28, b"s" * 28


async def certified(security: HeadSecurity, node_id: bytes) -> Access:
    """What a node has that joined before the token was replaced."""
    key, request = certificates.key_and_request()
    reply = await security.certify(gcs.CertifyRequest(node_id=node_id, request=request), None)
    assert security.access.identity is not None
    ca = security.access.identity.ca
    return Access("former", Identity(ca, reply.certificate + ca, key))


def rotated(heard: list[gcs.NodeMessage]) -> list[str]:
    return [one.token_rotated.token for one in heard if one.HasField("token_rotated")]


async def soon(condition: Callable[[], object]) -> None:
    deadline = asyncio.get_running_loop().time() + 30
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "not so within 30 s"
        await asyncio.sleep(0.01)


class Cable:
    """Passes connections on to a port of this machine until it is cut."""

    @classmethod
    async def to(cls, port: int) -> Cable:
        self = cls()
        self._port, self._whole, self._writers = port, True, set[asyncio.StreamWriter]()
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._whole:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, far_writer}
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.transport.abort()

    def cut(self) -> None:
        self._whole = False
        for writer in self._writers:
            writer.transport.abort()

    def mend(self) -> None:
        self._whole = True

    def close(self) -> None:
        self.cut()
        self._server.close()


def test_a_head_that_is_started_again_is_the_same_cluster(tmp_path: Path) -> None:
    """Its CA and its token are with its tables; nodes and join strings go on."""
    storage = str(tmp_path / "tables")
    cluster = Encrypted(storage=storage)
    try:
        known = Path(cluster.add_node()["session_dir"], "token")
        old = cluster.join_string
        token = asyncio.run(rpc.rotate_token(old.address, access_of(cluster))).token
        cluster.token = token
        until(lambda: known.read_text() == token)
        os.kill(cluster.head["pid"], signal.SIGKILL)
        port = int(cluster.address.rpartition(":")[2])
        for given in ("", old.token):  # the environment of a service still has the token that was revoked
            until(lambda: not _is_open(cluster.host, port))
            head = launch.start_daemon("head", HeadOptions(
                host=cluster.host, port=port, token=given, storage=storage, driver_pid=os.getpid()))
            cluster.head = head
            assert head["token"] == token and bytes.fromhex(head["fingerprint"]) == old.fingerprint
            until(lambda: [node.state for node in status(cluster).nodes if node.state == pb.NODE_ALIVE], 60)
            with pytest.raises(NotAdmitted):
                asyncio.run(introduce(old.address, old.token, old.fingerprint))
            if not given:
                os.kill(head["pid"], signal.SIGKILL)
        cluster.add_node(resources={"far": 1})
        ray.init(str(cluster.join_string))
        assert ray.get(Far.remote().echo.remote(b"5"), timeout=60) == b"5"
    finally:
        ray.shutdown()
        cluster.close()


@pytest.mark.parametrize("given", ["", "t" * 40])
def test_a_head_in_the_foreground_prints_one_line(given: str) -> None:
    """With the join string, unless all have the token already: then it would be in a log for nothing."""
    head = subprocess.Popen(
        [sys.executable, "-m", "miniray", "head", "--host", "0.0.0.0", "--port", "0"], cwd=ROOT,
        stdout=subprocess.PIPE, text=True, env=os.environ | {"MINIRAY_AUTH_TOKEN": given})
    try:
        assert head.stdout is not None
        line = head.stdout.readline()
        assert line.startswith("Join with: miniray-node --join ")
        if given:
            assert "mr1_" not in line and "miniray token show" in line
        else:
            joined = join_string.parse(line.split()[-1])
            access = asyncio.run(introduce(joined.address, joined.token, joined.fingerprint))
            request = gcs.ControlRequest(status=gcs.StatusQuery())
            assert asyncio.run(rpc.call_head(joined.address, access, request)).status.uptime_s >= 0
    finally:
        head.terminate()
        rest, _ = head.communicate(timeout=60)
    assert rest == "" and head.returncode == 0


def access_of(cluster: Encrypted) -> Access:
    return asyncio.run(introduce(cluster.address, cluster.token, cluster.join_string.fingerprint))


def status(cluster: Encrypted) -> gcs.ClusterStatus:
    request = gcs.ControlRequest(status=gcs.StatusQuery())
    return asyncio.run(rpc.call_head(cluster.address, access_of(cluster), request)).status


def _is_open(host: str, port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((host, port)) == 0


@pytest.mark.slow
def test_certificates_are_renewed_while_the_cluster_works(monkeypatch: pytest.MonkeyPatch) -> None:
    life_s = 6.0
    monkeypatch.setenv("MINIRAY_CERTIFICATE_LIFE_S", str(life_s))
    cluster = Encrypted()
    try:
        nodes = [cluster.add_node(), cluster.add_node(resources={"far": 1})]
        monkeypatch.delenv("MINIRAY_CERTIFICATE_LIFE_S")
        identities = [one["session_dir"] for one in (*nodes, cluster.head)]
        first = [_certificate(directory) for directory in identities]
        assert {round(certificates.life(one)) for one in first} == {life_s}
        ends = time.time() + life_s
        ray.init(str(cluster.join_string))
        until(lambda: time.time() > ends + 1, 60)
        assert all(_certificate(directory) not in first for directory in identities)
        far = Far.remote()  # between two nodes that have not met: all certificates of the start have ended
        assert ray.get(far.echo.remote(b"x" * 1_000_000), timeout=60) == b"x" * 1_000_000
        assert len(status(cluster).nodes) == 2
    finally:
        ray.shutdown()
        cluster.close()


def _certificate(directory: str) -> bytes:
    identity = Identity.load(directory)
    assert identity is not None
    return identity.certificate


def own_pki(folder: Path, host: str, *more: str) -> list[str]:
    """CA, certificate and key as files, as an administrator would make them."""
    authority = certificates.Authority.create()
    key, request = certificates.key_and_request()
    (folder / "ca.pem").write_bytes(authority.certificate)
    (folder / "cert.pem").write_bytes(authority.sign(request, "some.name", 600, [host, *more]))
    (folder / "key.pem").write_bytes(key)
    return [str(folder / name) for name in ("ca.pem", "cert.pem", "key.pem")]


def test_an_own_pki_is_used_instead(tmp_path: Path) -> None:
    pki = own_pki(tmp_path, own_address())
    cluster = Encrypted(pki=pki)
    try:
        assert cluster.head["fingerprint"] == ""
        cluster.add_node(pki=pki)
        cluster.add_node(pki=pki, resources={"far": 1})
        ray.init(cluster.address)
        far = Far.remote()
        assert ray.get(far.echo.remote(b"x" * 1_000_000), timeout=60) == b"x" * 1_000_000
        with pytest.raises(RuntimeError, match="does not accept"):
            cluster.add_node()
    finally:
        ray.shutdown()
        cluster.close()
