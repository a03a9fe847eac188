"""A cluster beyond loopback: who is let in, who is not, and how that changes while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import miniray as ray
from miniray._proto import gcs_pb2 as gcs
from miniray._proto import raylet_pb2 as raylet
from miniray.runtime import admission, bulk, certificates, rpc, rpc_server
from miniray.runtime.access import Access, Identity, NotAdmitted, fingerprint
from miniray.runtime.landing import Landing
from miniray.runtime.meeting import introduce
from tests.security.support import ROOT, Encrypted, own_address, until

STATUS = gcs.ControlRequest(status=gcs.StatusQuery())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Encrypted]:
    made = Encrypted()
    try:
        made.add_node()
        made.add_node(resources={"far": 1})
        ray.init(str(made.join_string))
        yield made
    finally:
        ray.shutdown()
        made.close()


@ray.remote(resources={"far": 0.01}, num_cpus=0)
class Far:
    def echo(self, value: Any) -> Any:
        return value


def call(address: str, access: str | Access) -> gcs.ControlReply:
    return asyncio.run(rpc.call_head(address, access, STATUS))


def admitted(cluster: Encrypted) -> Access:
    return asyncio.run(introduce(cluster.address, cluster.token, cluster.join_string.fingerprint))


def node_access(cluster: Encrypted, node_id: bytes) -> Access:
    """What a node of the cluster has."""
    terms = admission.Terms(cluster.address, cluster.token, cluster.join_string.fingerprint)
    return asyncio.run(admission.join(terms, node_id))


def test_a_program_runs_across_its_nodes(cluster: Encrypted) -> None:
    far = Far.remote()
    assert ray.get([far.echo.remote(n) for n in range(200)], timeout=60) == list(range(200))
    assert ray.get(far.echo.remote(b"x" * 3_000_000), timeout=60) == b"x" * 3_000_000


def test_the_token_alone_is_enough_where_the_head_knows_it_too(cluster: Encrypted) -> None:
    access = asyncio.run(introduce(cluster.address, cluster.token))
    assert access.identity is not None
    assert fingerprint(access.identity.ca) == cluster.join_string.fingerprint
    assert len(call(cluster.address, access).status.nodes) == 2


def test_a_wrong_token_ends_with_the_handshake(cluster: Encrypted) -> None:
    for expected in (b"", cluster.join_string.fingerprint):
        with pytest.raises(NotAdmitted, match="does not accept this cluster token"):
            asyncio.run(introduce(cluster.address, "wrong", expected))


def test_another_cluster_at_the_same_place_is_found_out(cluster: Encrypted) -> None:
    with pytest.raises(NotAdmitted, match="is not the cluster of this join string"):
        asyncio.run(introduce(cluster.address, cluster.token, secrets.token_bytes(32)))


def test_somebody_in_between_cannot_vouch_for_a_ca_of_his_own(cluster: Encrypted) -> None:
    """He takes any certificate and passes the nonce on to the true head."""
    true = admitted(cluster)

    async def lie() -> None:
        mine = certificates.Authority.create()
        key, request = certificates.key_and_request()
        identity = Identity(mine.certificate, mine.sign(request, "head.miniray", 600) + mine.certificate, key)
        identity.admit(certificates.token_authority(cluster.token))  # he need not look at it closely

        async def pass_on(request: gcs.HandshakeRequest, context: Any) -> gcs.HandshakeReply:
            return await rpc.handshake(cluster.address, true, request.nonce)  # the message has it, too

        server = grpc.aio.server()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(rpc.GCS, {
            "Handshake": grpc.unary_unary_rpc_method_handler(
                pass_on, gcs.HandshakeRequest.FromString, gcs.HandshakeReply.SerializeToString)}),))
        credentials = rpc_server._server_credentials(Access(cluster.token, identity))
        port = server.add_secure_port(f"{cluster.host}:0", credentials)
        await server.start()
        try:
            with pytest.raises(NotAdmitted, match="does not know this cluster token"):
                await introduce(f"{cluster.host}:{port}", cluster.token)
        finally:
            await server.stop(0)

    asyncio.run(lie())


def ports_of(cluster: Encrypted) -> dict[str, int]:
    nodes = call(cluster.address, admitted(cluster)).status.nodes
    head = int(cluster.address.rpartition(":")[2])
    return {"head": head, "raylet": nodes[0].port, "data": nodes[0].data_port}


def test_nobody_can_talk_a_port_down_to_plain_text(cluster: Encrypted) -> None:
    for name, port in ports_of(cluster).items():
        address = f"{cluster.host}:{port}"
        if name != "data":
            with pytest.raises(rpc.RpcError, match="cannot be reached|did not answer"):
                call(address, Access(cluster.token))
        with socket.create_connection((cluster.host, port), 10) as sock:
            sock.settimeout(30)
            sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64))
            sock.shutdown(socket.SHUT_WR)   # else the data port waits for the rest of a handshake
            try:
                said = sock.recv(1000)
            except ConnectionResetError:
                said = b""
            assert said[:1] in (b"", b"\x15"), f"{name}: nothing, or a TLS alert: {said!r}"


def test_a_client_that_was_told_of_encryption_does_not_go_on_without() -> None:
    """Whoever can answer in the head's place cannot have the token."""
    heard = []
    with socket.create_server(("127.0.0.1", 0)) as impostor:
        address = f"127.0.0.1:{impostor.getsockname()[1]}"

        async def join() -> None:
            loop = asyncio.get_running_loop()
            joining = asyncio.ensure_future(introduce(address, "token" * 10, b"f" * 32))
            sock, _ = await loop.run_in_executor(None, impostor.accept)
            with sock:
                heard.append(sock.recv(10_000))
                sock.sendall(b"\x00\x00\x18\x04\x00\x00\x00\x00\x00" * 10)  # HTTP/2 in plain text
                with pytest.raises(NotAdmitted, match="does not speak TLS"):
                    await joining

        asyncio.run(join())
    assert heard[0][:1] == b"\x16" and b"token" not in heard[0]


@pytest.mark.parametrize("name", ["head", "raylet", "data"])
def test_a_certificate_of_another_ca_opens_nothing(cluster: Encrypted, name: str) -> None:
    other = certificates.Authority.create()
    key, request = certificates.key_and_request()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    from miniray.runtime.access import load_key
    load_key(context, key + other.sign(request, "head.miniray", 600))
    with socket.create_connection((cluster.host, ports_of(cluster)[name]), 10) as raw:
        raw.settimeout(30)
        try:
            with context.wrap_socket(raw) as sock:
                assert sock.recv(100) == b"", "closed without a word"
        except (ssl.SSLError, ConnectionResetError):
            pass


def test_the_tokens_certificate_is_for_the_head_alone(cluster: Encrypted) -> None:
    node = call(cluster.address, admitted(cluster)).status.nodes[0]

    async def dial(access: Access) -> None:
        stream = await rpc.dial_raylet(f"{node.host}:{node.port}", access, b"m" * 28, node.node_id)
        await asyncio.wait_for(stream.read(), 3)

    with pytest.raises(rpc.StreamEnded, match="cannot be reached|broken"):
        asyncio.run(dial(admitted(cluster)))
    with contextlib.suppress(asyncio.TimeoutError):  # one of the CA's is let in; it need not be spoken to
        asyncio.run(dial(node_access(cluster, b"m" * 28)))


def test_a_node_cannot_speak_for_another(cluster: Encrypted) -> None:
    me, other = b"m" * 28, bytes.fromhex(cluster.nodes[0]["node_id"])
    access = node_access(cluster, me)

    async def dial() -> None:
        stream = await rpc.dial_head(cluster.address, access, other)
        await stream.read()

    with pytest.raises(rpc.StreamEnded, match="not that of the node it speaks for"):
        asyncio.run(dial())
    assert len(call(cluster.address, access).status.nodes) == 2


def test_a_node_cannot_pass_for_the_head(cluster: Encrypted) -> None:
    """Its certificate is of the CA, and says who it is."""
    access = node_access(cluster, b"m" * 28)

    async def serve() -> None:
        server = await rpc_server._start(cluster.host, 0, access, rpc.GCS, {}, rpc_server._Streams())
        try:
            with pytest.raises(rpc.RpcError, match="cannot be reached"):
                await rpc.call_head(f"{cluster.host}:{server.port}", access, STATUS, 20)
        finally:
            await server.stop()

    asyncio.run(serve())


def test_the_data_port_wants_certificate_and_token(cluster: Encrypted) -> None:
    node = call(cluster.address, admitted(cluster)).status.nodes[0]
    address = bulk.Address(cluster.host, node.data_port, f"{node.node_id.hex()}.miniray")

    async def fetch(access: Access) -> None:
        reader = bulk.BulkReader(access)
        try:
            await reader.fetch(address, raylet.FetchRequest(object_id=b"o" * 28, reader=b"m" * 28), begin)
        finally:
            reader.close()

    def begin(header: raylet.Chunk) -> Landing:
        seen.append(header)
        return Landing(memoryview(bytearray()))

    seen: list[raylet.Chunk] = []
    access = node_access(cluster, b"m" * 28)
    asyncio.run(fetch(access))
    assert seen[0].failure.message, "it is answered that there is no such object"
    for stranger in (admitted(cluster), Access("wrong", access.identity)):
        with pytest.raises(OSError):
            asyncio.run(fetch(stranger))
    assert len(seen) == 1


def secrets_of(cluster: Encrypted) -> list[bytes]:
    return [cluster.token.encode(), str(cluster.join_string).encode()]


def test_no_secret_is_in_a_command_line_or_a_log(cluster: Encrypted) -> None:
    ray.get(Far.remote().echo.remote(1), timeout=60)
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _readable(path)]
    assert any(b"miniray" in line for line in lines)
    texts = lines
    for session in Path(os.environ["MINIRAY_TMPDIR"]).glob("miniray-*"):
        texts += [path.read_bytes() for path in session.glob("logs/**/*") if path.is_file()]
    state = Path(os.environ["XDG_STATE_HOME"])
    texts += [path.read_bytes() for path in state.glob("**/*.log")]
    listed = [str(ray.util.state.list_tasks()), str(ray.util.state.list_actors()), str(ray.nodes())]
    texts += [text.encode() for text in listed]
    for secret in secrets_of(cluster):
        assert not any(secret in text for text in texts)


def _readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def test_a_join_string_in_a_command_line_is_wiped_at_once(cluster: Encrypted, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "miniray", "node", "--join", str(cluster.join_string), "--num-cpus", "0"]
    environment = os.environ | {"MINIRAY_TMPDIR": str(tmp_path), "MINIRAY_STORE_MAX_BYTES": "80000000"}
    node = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        until(lambda: list(tmp_path.glob("*/node.json")), 60)
        seen = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _readable(path)]
        assert not any(str(cluster.join_string).encode() in line for line in seen)
    finally:
        node.terminate()
        assert node.wait(30) == 0


def test_the_command_line_shows_the_join_string(cluster: Encrypted) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "miniray", "token", "show", "--address", cluster.address],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert shown.stdout.strip() == str(cluster.join_string), shown.stderr
    asked = subprocess.run(
        [sys.executable, "-m", "miniray", "status", "--address", str(cluster.join_string)],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
        env=os.environ | {"MINIRAY_TMPDIR": "/nonexistent"})
    assert "of 1 far" in asked.stdout, asked.stderr


def test_plain_text_beyond_loopback_is_said_in_red(
    cluster: Encrypted, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from miniray.commands import daemons
    from miniray.runtime import daemon

    monkeypatch.setattr(daemon, "run_head", lambda options: 0)
    head = ["--host", cluster.host, "--port", "0"]
    said = CliRunner().invoke(daemons.head, [*head, "--insecure-plaintext"], color=True)
    assert "\x1b[31m" in said.stderr and "not encrypted" in said.stderr
    for arguments in (head, ["--port", "0", "--insecure-plaintext"]):
        assert CliRunner().invoke(daemons.head, arguments).stderr == ""


def test_http_beyond_loopback_is_https() -> None:
    pytest.importorskip("uvicorn")
    made = Encrypted(http_host=own_address(), http_port=0)
    try:
        assert made.head["http"].startswith("https://")
        identity = Identity.load(made.head["session_dir"])
        assert identity is not None
        context = ssl.create_default_context(cadata=identity.ca.decode())
        wanted = urllib.request.Request(
            made.head["http"] + "/api/v1/status", headers={"Authorization": f"Bearer {made.token}"})
        with urllib.request.urlopen(wanted, context=context, timeout=60) as answer:
            assert answer.status == 200
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(wanted, timeout=60)
    finally:
        made.close()
