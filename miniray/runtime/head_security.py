"""The head's side of trust: the cluster's CA, its own certificate, the token and its replacement.

CA and token are rows of the head's storage, so a head that is started again on it goes on as the
same cluster. A token that was replaced never comes back: the storage keeps the digests of those,
and a head that is given one of them by its environment uses the present token instead.

Runs on the head's event loop. `certify` and `rotate` are methods of the GCS's port: the token was
checked before they are called.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from typing import TYPE_CHECKING, Any

from miniray import config
from miniray._proto import common_pb2, gcs_pb2
from miniray.core.ids import NODE_ID_SIZE
from miniray.runtime import sessions
from miniray.runtime.access import HEAD_NAME, Access, Identity, fingerprint, load_key, node_name, vouch
from miniray.runtime.admission import RENEW_AT
from miniray.runtime.gcs import GcsShell
from miniray.runtime.storage import Row

if TYPE_CHECKING:
    import ssl

log = logging.getLogger(__name__)

TABLE = "security"
_AUTHORITY, _TOKEN, _REVOKED = b"authority", b"token", b"revoked:"


class HeadSecurity:
    """See the module head. `directory` is where commands of this machine find what they need."""

    def __init__(self, shell: GcsShell, rows: list[Row], token: str, directory: str) -> None:
        saved = {key: value for table, key, value in rows if table == TABLE}
        self._shell = shell
        self._directory = directory
        self._authority: Any = None
        self._rotating = asyncio.Lock()
        self._renewing: asyncio.Task[None] | None = None
        self._web: tuple[ssl.SSLContext, list[str]] | None = None
        self._saved_authority = saved.get(_AUTHORITY)
        self.access = Access(self._present_token(token, saved))

    def _present_token(self, given: str, saved: dict[bytes, bytes]) -> str:
        present = saved.get(_TOKEN, b"").decode()
        if given and present and _REVOKED + _digest(given) in saved:
            log.warning("the token that this head was given was revoked: the present one holds, "
                        "`miniray token show` prints it")
            return present
        token = given or present or os.urandom(32).hex()
        if token != present:
            self._shell.persist(TABLE, _TOKEN, token.encode())
        return token

    def encrypt(self) -> None:
        """Be a CA, with a certificate of the head's own."""
        self._be_authority()
        self.access.identity = Identity(self._authority.certificate, b"", b"")
        self._renew()
        self._admit_token_holders()

    def _be_authority(self) -> None:
        from miniray.runtime.certificates import Authority

        if self._authority is not None:
            return
        if self._saved_authority is not None:
            self._authority = Authority.load(self._saved_authority)
        else:
            self._authority = Authority.create()
            self._shell.persist(TABLE, _AUTHORITY, self._authority.dump())
        self._renewing = asyncio.get_running_loop().create_task(self._keep_renewed())

    def web_context(self, hosts: list[str]) -> ssl.SSLContext:
        """For HTTPS at these hosts: browsers show no certificate, and look at the host in ours."""
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        identity = self.access.identity
        if identity is not None and identity.by_host:
            load_key(context, identity.key + identity.certificate)
            return context
        self._be_authority()
        self._web = (context, [host for host in hosts if host])
        self._renew_web()
        return context

    def use_pki(self, files: tuple[str, str, str]) -> None:
        """An own PKI: CA, certificate, key."""
        self.access.identity = Identity.of_files(*files)

    def publish(self) -> None:
        """Write token and certificates where processes of this user find them."""
        sessions.write_private(os.path.join(self._directory, "token"), self.access.token)
        if self.access.identity is not None:
            self.access.identity.save(self._directory)

    def close(self) -> None:
        """Renew no more."""
        if self._renewing is not None:
            self._renewing.cancel()

    @property
    def fingerprint(self) -> bytes:
        """That of the CA which a join string names; b"" when there is none of the cluster's own."""
        return fingerprint(self._authority.certificate) if self._authority is not None else b""

    # ---- the GCS's methods

    def vouch(self, nonce: bytes) -> bytes:
        """That the CA is this cluster's."""
        if not nonce or len(nonce) > 64 or self._authority is None:
            return b""
        return vouch(self.access.token, nonce, self._authority.certificate)

    async def certify(self, request: gcs_pb2.CertifyRequest, context: Any) -> gcs_pb2.CertifyReply:
        """A node's certificate."""
        if self._authority is None:
            return gcs_pb2.CertifyReply(failure=_refusal("this cluster makes no certificates"))
        if len(request.node_id) != NODE_ID_SIZE:
            return gcs_pb2.CertifyReply(failure=_refusal(
                f"a node id has {NODE_ID_SIZE} bytes, not {len(request.node_id)}"))
        from miniray.runtime.certificates import BadRequest

        life_s = config.get("certificate_life_s")
        try:
            made = self._authority.sign(request.request, node_name(request.node_id), life_s)
        except BadRequest as error:
            return gcs_pb2.CertifyReply(failure=_refusal(str(error)))
        return gcs_pb2.CertifyReply(certificate=made)

    async def rotate(self, request: gcs_pb2.RotateTokenRequest, context: Any) -> gcs_pb2.RotateTokenReply:
        """Another token: the former is refused from now on, connected nodes get the new one."""
        async with self._rotating:
            token, former = os.urandom(32).hex(), self.access.token
            self._shell.persist(TABLE, _REVOKED + _digest(former), b"1")
            self._shell.persist(TABLE, _TOKEN, token.encode())
            await self._shell.drained()
            self.access.replace_token(token)
            if self._authority is not None:
                self._admit_token_holders()
            self.publish()
            self._shell.tell_nodes(gcs_pb2.NodeMessage(token_rotated=gcs_pb2.TokenRotated(token=token)))
            return gcs_pb2.RotateTokenReply(token=token)

    # ---- the head's own certificates

    def _renew_web(self) -> None:
        if self._web is not None:
            context, hosts = self._web
            key, certificate = self._signed(hosts)
            load_key(context, key + certificate)

    def _admit_token_holders(self) -> None:
        from miniray.runtime.certificates import token_authority

        assert self.access.identity is not None
        self.access.identity.admit(token_authority(self.access.token))

    def _renew(self) -> None:
        if self.access.identity is not None:
            key, certificate = self._signed([])
            self.access.identity.renew(certificate, key)

    def _signed(self, hosts: list[str]) -> tuple[bytes, bytes]:
        from miniray.runtime.certificates import key_and_request

        key, request = key_and_request()
        made = self._authority.sign(request, HEAD_NAME, config.get("certificate_life_s"), hosts)
        return key, made + self._authority.certificate

    async def _keep_renewed(self) -> None:
        while True:
            await asyncio.sleep(config.get("certificate_life_s") * RENEW_AT)
            self._renew()
            self._renew_web()
            self.publish()


def _digest(token: str) -> bytes:
    return hashlib.sha256(b"miniray revoked token" + token.encode()).hexdigest().encode()


def _refusal(message: str) -> common_pb2.Failure:
    return common_pb2.Failure(kind=common_pb2.INVALID_ARGUMENT, message=message)
