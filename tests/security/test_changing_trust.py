"""What holds a cluster together can be replaced while it works: token, certificates, the CA itself."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import miniray as ray
from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.runtime import certificates, join_string, launch, rpc
from miniray.runtime.access import Access, Identity, NotAdmitted
from miniray.runtime.daemon import HeadOptions
from miniray.runtime.meeting import introduce
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
        ends = max(certificates.valid_until(one) for one in first)
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
