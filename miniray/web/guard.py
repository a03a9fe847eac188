"""The one door of the HTTP surface: every request passes here before anything else looks at it.

::

    request ─▶ Host ─▶ Origin, Sec-Fetch-Site ─▶ no upgrade ─▶ method, body ─▶ token ─▶ application
                 │            │                      │              │            │
                421          403                    403          405, 413       401

- *Host* must be the address that the connection came to, `localhost` on loopback, or a name the
  operator gave: a page that rebinds its own name to this machine sends that name.
- *Origin*, where a browser sends one, must be this very server; a WebSocket must have one. There
  are no CORS headers, so no other origin reads an answer, and no cookies, so none sends a token.
- *Token*: `Authorization: Bearer …`, compared in constant time, for all but `/healthz`. It is not
  looked for in URLs, which end up in histories and logs.

A refusal closes the connection: what else was sent on it is not read. Pure ASGI, event loop's thread.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from miniray.runtime.access import Access
from miniray.runtime.host import unmapped

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_PLAIN = re.compile(r"[a-z0-9.:\[\]-]+")
"""Characters of an address with its port: no user, path, query or zone."""

OPEN_PATHS = ("/healthz",)
METHODS = ("GET", "HEAD")
MAX_BODY_BYTES = 0
"""What is served so far only reads: no request has a body."""

SECURITY_HEADERS = (
    (b"content-security-policy", b"default-src 'none'; base-uri 'none'; form-action 'none'; "
                                 b"frame-ancestors 'none'; sandbox"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)  # fmt: skip


class Refused(Exception):
    """Why a request is not answered: an HTTP status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


class Guard:
    """See the module head. `origins` are those under which a proxy shows this server ("https://ray.lan")."""

    def __init__(
        self, application: Application, token: str | Access, origins: Iterable[str] = ()
    ) -> None:
        self._application = application
        self._access = Access.of(token)
        assert self._access.token, "a server without a token"
        self._origins = {urlsplit(origin).netloc.lower(): origin.lower().rstrip("/") for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        assert scope["type"] == "http", scope["type"]
        try:
            self.check(scope)
        except Refused as refusal:
            await answer_error(_with_headers(send), refusal.status, refusal.sentence, close=True)
            return
        await self._application(scope, receive, _with_headers(send))

    def check(self, scope: Scope) -> None:
        """Raise Refused unless the request may be looked at."""
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value)
        host = self._checked_host(scope, headers)
        self._check_origin(scope, headers, host)
        if scope["method"] not in METHODS:
            raise Refused(405, f"only {' and '.join(METHODS)} are served here")
        if headers.get(b"content-length", [b"0"]) != [b"0"] or b"transfer-encoding" in headers:
            raise Refused(413, f"a request has at most {MAX_BODY_BYTES} bytes of body here")
        if scope["path"] not in OPEN_PATHS:
            self._check_token(headers)

    def _checked_host(self, scope: Scope, headers: dict[bytes, list[bytes]]) -> str:
        values = headers.get(b"host", [])
        host = values[0].decode("latin-1").lower() if len(values) == 1 else ""
        if not (host in self._origins or _is_own_address(host, scope.get("server"))):
            raise Refused(421, "this server is not known under that name: use its address, or start it with "
                               "--http-origin for the name that a proxy gives it")  # fmt: skip
        return host

    def _check_origin(self, scope: Scope, headers: dict[bytes, list[bytes]], host: str) -> None:
        own = self._origins.get(host) or f"{scope['scheme']}://{host}"
        origins = headers.get(b"origin", [])
        if origins and origins != [own.encode("latin-1")]:
            raise Refused(403, "requests of other origins are not answered")
        if any(site not in (b"same-origin", b"none") for site in headers.get(b"sec-fetch-site", [])):
            raise Refused(403, "requests of other sites are not answered")
        if b"upgrade" in headers:
            raise Refused(403, "there is no WebSocket here")

    def _check_token(self, headers: dict[bytes, list[bytes]]) -> None:
        given = headers.get(b"authorization", [])
        word, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        if not self._access.accepts(token.decode("latin-1")) or word != b"Bearer":
            raise Refused(401, "the cluster token is missing or wrong: send it as `Authorization: Bearer "
                               "TOKEN`; it is not taken from URLs or cookies")  # fmt: skip


def _is_own_address(host: str, server: tuple[str, int | None] | None) -> bool:
    """Whether a Host header is the address that the connection came to, on whichever forwarded port."""
    try:
        parts = urlsplit(f"//{host}")
        name, _port = parts.hostname or "", parts.port
        local = ipaddress.ip_address((server or ("", 0))[0].partition("%")[0])
    except ValueError:
        return False
    if not _PLAIN.fullmatch(host):
        return False
    if name == "localhost":
        return local.is_loopback
    try:
        given = ipaddress.ip_address(name)
    except ValueError:
        return False
    return unmapped(given) == unmapped(local)


def _with_headers(send: Send) -> Send:
    """Put the headers on every answer that keep browsers from doing anything else with it."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = {name for name, _ in SECURITY_HEADERS}
            kept = [pair for pair in message.get("headers", ()) if pair[0].lower() not in own]
            message = {**message, "headers": [*kept, *SECURITY_HEADERS]}
        await send(message)

    return sending


async def answer_error(send: Send, status: int, sentence: str, *, close: bool = False) -> None:
    """An error as JSON: {"error": {"status", "message"}}."""
    body = json.dumps({"error": {"status": status, "message": sentence}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
