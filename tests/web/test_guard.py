"""The guard of the HTTP surface, request by request, as a hostile page or client would make them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from miniray.web.guard import Guard, Refused

TOKEN = "0123456789abcdef" * 4
BEARER = ("authorization", f"Bearer {TOKEN}")


def guard(*origins: str) -> Guard:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [
            (b"content-type", b"text/plain"), (b"Content-Security-Policy", b"default-src *")]})
        await send({"type": "http.response.body", "body": b"secret"})

    return Guard(application, TOKEN, origins)


def request(*headers: tuple[str, str], path: str = "/api/v1/status", method: str = "GET",
            server: str = "127.0.0.1", scheme: str = "http", query: str = "") -> dict[str, Any]:
    return {
        "type": "http", "method": method, "path": path, "scheme": scheme, "query_string": query.encode(),
        "server": (server, 8265),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
    }  # fmt: skip


def status(scope: dict[str, Any], *origins: str) -> int:
    try:
        guard(*origins).check(scope)
    except Refused as refusal:
        assert TOKEN not in refusal.sentence
        return refusal.status
    return 200


@pytest.mark.parametrize(
    ("host", "server"),
    [
        ("127.0.0.1:8265", "127.0.0.1"),
        ("localhost:8265", "127.0.0.1"),
        ("localhost:9000", "127.0.0.1"),    # a forwarded port
        ("LOCALHOST", "127.0.0.1"),
        ("[::1]:8265", "::1"),
        ("10.1.2.3:8265", "10.1.2.3"),
        ("10.1.2.3:8265", "::ffff:10.1.2.3"),
    ],
)  # fmt: skip
def test_the_address_that_was_connected_to_is_a_good_host(host: str, server: str) -> None:
    assert status(request(("host", host), BEARER, server=server)) == 200


@pytest.mark.parametrize(
    "host",
    [
        "attacker.example:8265", "127.0.0.1.attacker.example", "localhost.attacker.example", "localhost.",
        "10.9.9.9:8265", "127.0.0.2:8265", "attacker@127.0.0.1", "127.0.0.1@attacker.example", "127.0.0.1#.x",
        "127.0.0.1:8265/x", "127.0.0.1?", "", " ", "0", "2130706433", "127.1", "0x7f000001", "[::1", "::1",
        "localhost:x", "localhost:99999", "local\xadhost", "[::ffff:127.0.0.1%eth0]",
    ],
)  # fmt: skip
def test_a_name_that_was_rebound_to_this_machine_is_refused(host: str) -> None:
    assert status(request(("host", host), BEARER)) == 421
    assert status(request(("host", host), path="/healthz")) == 421


def test_one_host_is_needed() -> None:
    assert status(request(BEARER)) == 421
    assert status(request(("host", "127.0.0.1"), ("host", "127.0.0.1"), BEARER)) == 421


def test_localhost_is_no_name_of_an_address_that_others_reach() -> None:
    assert status(request(("host", "localhost:8265"), BEARER, server="10.1.2.3")) == 421


@pytest.mark.parametrize(
    "origin",
    ["http://attacker.example", "null", "", "http://localhost:8265", "https://127.0.0.1:8265", "http://127.0.0.1",
     "http://127.0.0.1:8265/", "http://127.0.0.1:8265.attacker.example", "http://127.0.0.1:3000"],
)  # fmt: skip
def test_another_origin_is_refused(origin: str) -> None:
    assert status(request(("host", "127.0.0.1:8265"), ("origin", origin), BEARER)) == 403


def test_the_own_origin_is_not() -> None:
    own = ("origin", "http://127.0.0.1:8265")
    assert status(request(("host", "127.0.0.1:8265"), own, ("sec-fetch-site", "same-origin"), BEARER)) == 200
    assert status(request(("host", "127.0.0.1:8265"), own, own, BEARER)) == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site", "SAME-ORIGIN", ""])
def test_what_a_browser_says_comes_from_another_site_is_refused(site: str) -> None:
    assert status(request(("host", "127.0.0.1:8265"), ("sec-fetch-site", site), BEARER)) == 403


def test_a_proxy_shows_it_under_the_origins_that_were_named() -> None:
    named = "https://ray.lan:8443"
    host = ("host", "ray.lan:8443")
    assert status(request(host, BEARER), named) == 200
    assert status(request(host, ("origin", named), BEARER), named) == 200
    assert status(request(host, ("origin", "http://ray.lan:8443"), BEARER), named) == 403
    assert status(request(("host", "ray.lan"), BEARER), named) == 421
    assert status(request(host), named) == 401


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "Bearer wrong")],
        [("authorization", f"Bearer {TOKEN}x")],
        [("authorization", f"bearer {TOKEN}")],
        [("authorization", TOKEN)],
        [("authorization", f"Basic {TOKEN}")],
        [("authorization", "Bearer \xff\xfe")],
        [BEARER, BEARER],
        [("cookie", f"token={TOKEN}")],
        [("x-authorization", f"Bearer {TOKEN}")],
        [("proxy-authorization", f"Bearer {TOKEN}")],
    ],
)  # fmt: skip
def test_without_the_one_right_header_nothing_is_shown(headers: list[tuple[str, str]]) -> None:
    for path in ("/", "/metrics", "/api/v1/status", "/healthz/", "//healthz", "/healthz/..", "/HEALTHZ"):
        assert status(request(("host", "127.0.0.1:8265"), *headers, path=path)) == 401


def test_a_token_in_the_url_is_none() -> None:
    for query in (f"token={TOKEN}", f"authorization=Bearer%20{TOKEN}", f"access_token={TOKEN}"):
        assert status(request(("host", "127.0.0.1:8265"), query=query)) == 401


def test_health_needs_no_token() -> None:
    assert status(request(("host", "127.0.0.1:8265"), path="/healthz")) == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
def test_nothing_can_be_changed_and_no_preflight_is_answered(method: str) -> None:
    assert status(request(("host", "127.0.0.1:8265"), BEARER, method=method)) == 405


@pytest.mark.parametrize(
    "header", [("content-length", "10000000000"), ("content-length", "1"), ("transfer-encoding", "chunked")]
)
def test_no_body_is_taken(header: tuple[str, str]) -> None:
    assert status(request(("host", "127.0.0.1:8265"), BEARER, header)) == 413


def test_no_websocket_is_opened() -> None:
    upgrade = [("upgrade", "websocket"), ("connection", "Upgrade"), ("sec-websocket-version", "13")]
    assert status(request(("host", "127.0.0.1:8265"), *upgrade, BEARER)) == 403
    own = ("origin", "http://127.0.0.1:8265")
    assert status(request(("host", "127.0.0.1:8265"), own, *upgrade, BEARER)) == 403
    said, _ = answered({"type": "websocket", "headers": []})
    assert said == {"type": "websocket.close", "code": 1008}


def answered(scope: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    messages: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        messages.append(dict(message))

    asyncio.run(guard()(scope, None, send))  # type: ignore[arg-type]
    return messages[0], b"".join(message.get("body", b"") for message in messages[1:])


@pytest.mark.parametrize("headers", [[BEARER], []])
def test_every_answer_tells_browsers_to_do_nothing_with_it(headers: list[tuple[str, str]]) -> None:
    start, body = answered(request(("host", "127.0.0.1:8265"), *headers))
    found = {}
    for name, value in start["headers"]:
        found.setdefault(name.lower(), []).append(value)
    assert found[b"content-security-policy"] == [
        b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox"
    ]
    assert found[b"x-content-type-options"] == [b"nosniff"]
    assert found[b"x-frame-options"] == [b"DENY"]
    assert found[b"referrer-policy"] == [b"no-referrer"]
    assert found[b"cache-control"] == [b"no-store"]
    assert not found.keys() & {b"set-cookie", b"server", b"access-control-allow-origin"}
    if headers:
        assert body == b"secret"
    else:
        assert start["status"] == 401
        assert found[b"connection"] == [b"close"]
        assert set(json.loads(body)["error"]) == {"status", "message"}
