"""The attack table of the threat model, row by row, over real sockets."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import logging
import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from reemote.server.guard import HEADERS, Guard
from reemote.server.metrics import Metrics
from reemote.server.settings import Settings
from tests.cli.conftest import eventually
from tests.programs import Fleet
from tests.server.clients import JSON, NOBODY, Client, Serving, needs_root, received, settings_in, status_of

TOUCH = "/reemote/host/shell?cmd=touch%20marker"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("server104") as hosts:
        yield hosts


@pytest.fixture(scope="module")
def serving(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server that all tests of this module share."""
    directory = tmp_path_factory.mktemp("serving")
    fleet.write(directory)
    with Serving(settings_in(directory, allowed_hosts=("ops.example",))) as shared:
        yield shared


@pytest.fixture
def marker(fleet: Fleet) -> Iterator[Path]:
    """The file on the host that shows that something ran."""
    path = fleet.home("server104") / "marker"
    path.unlink(missing_ok=True)
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def token(serving: Serving) -> str:
    return serving.settings.token_file.read_text().strip()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# The Host header

RIGHT_HOSTS = ["127.0.0.1", "127.0.0.1:1", "localhost", "LocalHost:65535", "[::1]", "[::1]:8001"]
WRONG_HOSTS = {
    "evil.example": 421,
    "evil.example:8001": 421,
    "127.0.0.1.evil.example": 421,
    "localhost.evil": 421,
    "localhost.": 421,
    "0.0.0.0": 421,
    "0.0.0.0:8001": 421,
    "127.0.0.2": 421,
    "127.1": 421,
    "2130706433": 421,
    "[::]": 421,
    "[::ffff:127.0.0.1]": 421,
    "": 400,
    " ": 400,
    ":": 400,
    ":8001": 400,
    "127.0.0.1:": 400,
    "127.0.0.1:99999": 400,
    "127.0.0.1:-1": 400,
    "127.0.0.1:8001:8001": 400,
    "[::1]evil": 400,
    "[::1": 400,
    "x/../docs?": 400,
    "127.0.0.1/docs": 400,
    "127.0.0.1#": 400,
    "user@127.0.0.1": 400,
    "127.0.0.1, evil.example": 400,
    "127.0.0.1 evil": 400,
    "127.0.0.1\t": 200,  # white space around a value is none of it (RFC 9110, section 5.5)
    "localhost\xff": 400,
}


@pytest.mark.parametrize("host", RIGHT_HOSTS)
def test_hosts_that_are_ours(serving: Serving, host: str) -> None:
    assert serving.get("/healthz", Host=host).status == 200


@pytest.mark.parametrize("host", WRONG_HOSTS)
def test_other_hosts_are_refused_before_anything_else(serving: Serving, marker: Path, host: str) -> None:
    # Even the user who runs the server, as a page that was rebound in the user's browser is.
    raw = f"POST {TOUCH if WRONG_HOSTS[host] != 200 else '/nothing'} HTTP/1.1\r\nHost: {host}\r\n"
    response = serving.raw(raw.encode("latin-1") + b"Content-Length: 0\r\nConnection: close\r\n\r\n")
    assert status_of(response) == (WRONG_HOSTS[host] if WRONG_HOSTS[host] != 200 else 404)
    assert not marker.exists()


@pytest.mark.parametrize(
    "head",
    [
        b"POST %s HTTP/1.1\r\n",
        b"POST %s HTTP/1.0\r\n",
        b"POST %s HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n",
        b"POST %s HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n",
        b"POST %s HTTP/1.1\r\nHost: evil.example\r\nhost: localhost\r\n",
        b"POST %s HTTP/1.0\r\nHost: localhost\r\nHOST: localhost\r\n",
        b"POST %s HTTP/1.1\r\nHost : localhost\r\n",
        b"POST %s HTTP/1.1\r\nHost: localhost\r\n evil.example\r\n",
        b"POST %s HTTP/1.1\r\nHost: localhost\0\r\n",
        b"POST %s\r\n",
        b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n",
        b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n",
        b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0x1\r\n",
        b"POST %s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01%s",
    ],
)
def test_malformed_requests_are_answered_with_400_or_less(serving: Serving, marker: Path, head: bytes) -> None:
    response = serving.raw(head % TOUCH.encode() + b"Connection: close\r\n\r\n")
    assert status_of(response) in (400, 501)
    assert b"x-content-type-options: nosniff" in response
    assert not marker.exists()


def test_a_body_whose_length_is_told_twice_is_refused(serving: Serving, marker: Path) -> None:
    head = f"POST {TOUCH} HTTP/1.1\r\nHost: localhost\r\n".encode()
    body = b"0\r\n\r\n"
    response = serving.raw(head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    assert status_of(response) == 400
    assert b"connection: close" in response
    assert not marker.exists()


def test_the_target_decides_not_what_a_url_could_be_made_of(serving: Serving, marker: Path) -> None:
    for target in (f"http://evil.example{TOUCH}", f"http://127.0.0.1{TOUCH}", f"//evil.example{TOUCH}", "*"):
        head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        assert status_of(serving.raw(head.encode())) == 404
    assert not marker.exists()


# Other origins

ORIGINS = [
    "https://evil.example",
    "http://evil.example",
    "null",
    "http://localhost",
    "http://127.0.0.1:3000",
    "https://{host}",
    "http://{host}.evil.example",
    "http://{host}, http://evil.example",
]
SITES = ["cross-site", "same-site", "same-origin", "none"]
TYPES = ["application/json", "text/plain", "application/x-www-form-urlencoded"]


def routes_of(app: Any) -> list[tuple[str, str]]:
    """Every method and path of an application, with values for the parameters of paths."""
    found = []
    queue = list(app.routes)
    while queue:
        route = queue.pop()
        queue += getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", [])
        if isinstance(route, Route):
            path = re.sub(r"\{[^}]*\}", "server104", route.path)
            found += [(method, path) for method in sorted(route.methods or {"GET"})]
    return found


def all_targets(serving: Serving) -> list[tuple[str, str]]:
    found = dict.fromkeys(routes_of(serving.app))
    document = serving.get("/openapi.json").json
    for path, methods in document["paths"].items():
        for method in methods:
            found[method.upper(), path.replace("{host}", "server104")] = None
    found["POST", TOUCH] = None
    return list(found)


def test_every_route_is_known_to_these_tests(serving: Serving) -> None:
    paths = {path for _, path in all_targets(serving)}
    assert {"/docs", "/redoc", "/openapi.json", "/healthz", "/readyz", "/metrics", "/assets/server104"} <= paths
    assert {"/reemote/host/shell", "/reemote/host/getcontext", "/reemote/inventory/delete/server104"} <= paths


def test_nothing_runs_for_pages_of_other_origins(serving: Serving, marker: Path) -> None:
    before = serving.settings.inventory.read_bytes()
    targets = all_targets(serving)
    with contextlib.closing(Client(serving)) as client:
        for origin, site, kind in itertools.product(ORIGINS, SITES, TYPES):
            headers = {"Origin": origin.format(host=serving.host), "Sec-Fetch-Site": site, "Content-Type": kind}
            for method, path in targets:
                answer = client.call(method, path, b"{}", headers)
                assert answer.status == 403, (method, path, headers)
                assert not [name for name in answer.headers if name.startswith("access-control")]
    assert not marker.exists()
    assert serving.settings.inventory.read_bytes() == before
    assert serving.get("/metrics").body.count(b"reemote_runs_total{") == 0


@pytest.mark.parametrize("site", ["cross-site", "same-site", "", "Same-Origin", "same-origin, none"])
def test_pages_of_other_sites_are_refused_without_an_origin_too(serving: Serving, marker: Path, site: str) -> None:
    assert serving.post(TOUCH, **{"Sec-Fetch-Site": site}).status == 403
    assert serving.get("/reemote/host/getcontext", **{"Sec-Fetch-Site": site}).status == 403
    assert not marker.exists()


def test_two_origins_are_one_too_many(serving: Serving, marker: Path) -> None:
    for order in ((serving.host, "evil.example"), ("evil.example", serving.host)):
        origins = "".join(f"Origin: http://{each}\r\n" for each in order)
        head = (
            f"POST {TOUCH} HTTP/1.1\r\nHost: {serving.host}\r\n{origins}Content-Length: 0\r\nConnection: close\r\n\r\n"
        )
        assert status_of(serving.raw(head.encode())) == 403
    assert not marker.exists()


def test_our_own_page_may_call(serving: Serving, marker: Path) -> None:
    own = {"Origin": f"http://{serving.host}", "Sec-Fetch-Site": "same-origin"}
    answer = serving.post(TOUCH, **own)
    assert answer.status == 200
    assert marker.exists()
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_preflight_requests_get_no_permission(serving: Serving) -> None:
    for headers in (
        {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"},
        {"Access-Control-Request-Method": "POST", "Access-Control-Request-Private-Network": "true"},
    ):
        answer = serving.call("OPTIONS", TOUCH, headers=headers)
        assert answer.status in (403, 405)
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_get_has_no_side_effect(serving: Serving, marker: Path) -> None:
    # What an <img> of another page sends, from a browser that tells nothing.
    assert serving.get(TOUCH).status == 405
    assert serving.call("HEAD", TOUCH).status == 405
    assert not marker.exists()


# Who may call


@needs_root
@pytest.mark.parametrize("given", [{}, {"Authorization": "Bearer wrong"}], ids=["without a token", "wrong token"])
def test_all_routes_need_the_token_from_other_users(serving: Serving, marker: Path, given: dict[str, str]) -> None:
    before = serving.settings.inventory.read_bytes()
    unknown = [("GET", "/"), ("GET", "/nothing"), ("POST", "/docs"), ("BREW", "/"), ("GET", "/%2e%2e/etc/passwd")]
    with contextlib.closing(Client(serving, NOBODY)) as client:
        for method, path in [*all_targets(serving), *unknown]:
            answer = client.call(method, path, b"{}", {**JSON, **given})
            assert answer.status == 401, (method, path)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert {name.decode() for name in HEADERS} <= set(answer.headers)
    assert not marker.exists()
    assert serving.settings.inventory.read_bytes() == before


@needs_root
def test_other_users_with_the_token(serving: Serving, marker: Path, token: str) -> None:
    answer = serving.call("POST", TOUCH, b"{}", {**JSON, **bearer(token)}, user=NOBODY)
    assert answer.status == 200
    assert marker.exists()


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic {token}",
        "{token}",
        "Bearer {token}x",
        "Bearer {short}",
        "Token {token}",
        "Bearer \xff",
    ],
)
def test_what_is_no_token(serving: Serving, marker: Path, token: str, header: str) -> None:
    # A wrong token is refused even from the user who needs none.
    given = header.format(token=token, short=token[:-1])
    assert serving.post(TOUCH, Authorization=given).status == 401
    assert not marker.exists()


def test_the_scheme_is_written_in_any_case(serving: Serving, token: str) -> None:
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert serving.get("/healthz", Authorization=f"{scheme} {token}").status == 200


def test_two_authorizations_are_one_too_many(serving: Serving, token: str) -> None:
    given = f"Authorization: Bearer {token}\r\n" * 2
    head = f"GET /healthz HTTP/1.1\r\nHost: localhost\r\n{given}Connection: close\r\n\r\n"
    assert status_of(serving.raw(head.encode())) == 401


@needs_root
def test_a_token_in_the_query_counts_for_nothing(serving: Serving, token: str) -> None:
    for name in ("token", "access_token", "authorization"):
        assert serving.call("GET", f"/healthz?{name}={token}", user=NOBODY).status == 401


def test_basic_authentication_with_the_token_is_none(serving: Serving, token: str) -> None:
    basic = base64.b64encode(f"user:{token}".encode()).decode()
    assert serving.get("/healthz", Authorization=f"Basic {basic}").status == 401


@pytest.mark.parametrize("name", ["Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP"])
def test_behind_a_proxy_the_token_is_needed(serving: Serving, token: str, name: str) -> None:
    # The connection is the proxy's, whoever runs it: it says nothing of the caller.
    assert serving.get("/healthz", **{name: "127.0.0.1"}).status == 401
    assert serving.get("/healthz", **{name: "127.0.0.1"}, **bearer(token)).status == 200


def test_a_name_that_was_allowed_leads_here_from_elsewhere(serving: Serving, token: str) -> None:
    host = {"Host": "ops.example"}
    assert serving.get("/healthz", **host).status == 401
    assert serving.get("/healthz", **host, **bearer(token)).status == 200
    for origin, status in [("https://ops.example", 200), ("http://ops.example", 200), ("https://evil.example", 403)]:
        assert serving.get("/healthz", **host, **bearer(token), Origin=origin).status == status


@needs_root
def test_websockets_are_closed_with_4401(serving: Serving) -> None:
    key = base64.b64encode(os.urandom(16)).decode()
    for path in ("/", "/docs", "/reemote/host/shell", "/nothing"):
        upgrade = (
            f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        )
        head = f"GET {path} HTTP/1.1\r\nHost: {serving.host}\r\n{upgrade}\r\n"
        with serving.connect(NOBODY) as client:
            client.sendall(head.encode())
            response = b""
            while b"\r\n\r\n" not in response or len(response.partition(b"\r\n\r\n")[2]) < 4:
                response += client.recv(4096)
        frame = response.partition(b"\r\n\r\n")[2]
        assert status_of(response) == 101
        assert frame[0] == 0x88  # a closing frame
        assert int.from_bytes(frame[2:4], "big") == 4401


def test_websockets_of_other_pages_are_refused(serving: Serving) -> None:
    key = base64.b64encode(os.urandom(16)).decode()
    upgrade = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
    head = f"GET / HTTP/1.1\r\nHost: {serving.host}\r\nOrigin: https://evil.example\r\n{upgrade}\r\n"
    with serving.connect() as client:
        client.sendall(head.encode())
        response = b""
        while b"\r\n\r\n" not in response or len(response.partition(b"\r\n\r\n")[2]) < 4:
            response += client.recv(4096)
    assert int.from_bytes(response.partition(b"\r\n\r\n")[2][2:4], "big") == 1008


# Answers


def test_all_answers_bear_the_security_headers(serving: Serving) -> None:
    for method, path in [("GET", "/healthz"), ("GET", "/nothing"), ("PUT", TOUCH), ("POST", "/reemote/host/shell")]:
        answer = serving.call(method, path, b"{}", JSON)
        for name, value in HEADERS.items():
            assert answer.headers[name.decode()] == value.decode(), (method, path)
        assert answer.headers["content-type"] == "application/json"
        assert "server" not in answer.headers
    page = serving.get("/docs")
    assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert page.headers["x-content-type-options"] == "nosniff"


def test_a_script_from_a_host_stays_text(serving: Serving) -> None:
    answer = serving.post("/reemote/host/shell", {"cmd": "echo '<script>alert(1)</script>'"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.json[0]["value"]["stdout"] == "<script>alert(1)</script>\n"


def test_the_identity_of_a_request_goes_in_and_out(serving: Serving) -> None:
    assert serving.get("/healthz", **{"X-Request-ID": "my.id-1"}).headers["x-request-id"] == "my.id-1"
    for wrong in ("", "a b", "x" * 65, "a\xff", "a;b", "<script>"):
        assert re.fullmatch("[0-9a-f]{16}", serving.get("/healthz", **{"X-Request-ID": wrong}).headers["x-request-id"])
    one, two = serving.get("/healthz"), serving.get("/healthz")
    assert one.headers["x-request-id"] != two.headers["x-request-id"]


def access_log(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "reemote.access"]


def test_the_access_log_has_no_queries_and_cannot_be_injected(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "reemote")
    serving.get("/healthz?secret=S3CR3T-query")
    serving.get("/x%0a2026-01-01%20INFO%20forged%1b%5b31m?S3CR3T-query", **{"X-Request-ID": "a b"})
    starts = ['GET "/healthz" 200 ', r'GET "/x\n2026-01-01 INFO forged\u001b[31m" 404 ']

    def are_there() -> bool:
        return all(any(line.startswith(start) for line in access_log(caplog)) for start in starts)

    # An answer may be here before its line in the log is, and lines of earlier requests beside ours.
    eventually(are_there)
    assert not any("S3CR3T" in line or "\n" in line or "\x1b" in line for line in access_log(caplog))


def test_what_forwarding_headers_say_changes_no_log(
    serving: Serving, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "reemote")
    serving.get("/healthz", **{"X-Forwarded-For": "203.0.113.9"}, **bearer(token))
    serving.get("/healthz")  # a line is written after its answer, and before the next one
    eventually(lambda: "from 127.0.0.1" in caplog.text)
    assert "203.0.113.9" not in caplog.text


def test_made_up_methods_do_not_fill_the_metrics(serving: Serving) -> None:
    with contextlib.closing(Client(serving)) as client:
        for number in range(20):
            client.call(f"MADEUP{number}", "/healthz")
    text = serving.get("/metrics").body.decode()
    assert "MADEUP" not in text
    assert 'method="other"' in text


# Limits


def chunks(total: int) -> bytes:
    piece = b"x" * 65536
    return (b"10000\r\n" + piece + b"\r\n") * (total // len(piece)) + b"0\r\n\r\n"


@pytest.mark.parametrize("way", ["content-length", "chunked"])
def test_a_body_that_is_too_long(serving: Serving, marker: Path, way: str) -> None:
    length = serving.settings.body_limit + 65536
    head = f"POST {TOUCH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
    with serving.connect() as client:
        if way == "content-length":
            client.sendall(head + f"Content-Length: {length}\r\n\r\n".encode())
        else:
            with contextlib.suppress(ConnectionError):
                client.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks(length))
        response = received(client)
    assert status_of(response) == 413
    assert not marker.exists()


def test_a_body_of_the_exact_limit_is_read(serving: Serving) -> None:
    empty = b'{"cmd": "true"}'
    body = empty + b" " * (serving.settings.body_limit - len(empty))
    assert serving.call("POST", "/reemote/host/shell", body, JSON).status == 200
    head = f"POST /reemote/host/shell HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body) + 1}\r\n\r\n"
    with serving.connect() as client:  # the answer comes before the body has gone out
        client.sendall(head.encode())
        assert status_of(received(client)) == 413


@pytest.mark.parametrize("length", ["1" + "0" * 30, "9" * 4000])
def test_numbers_of_absurd_length(serving: Serving, length: str) -> None:
    head = f"POST {TOUCH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
    assert status_of(serving.raw(head.encode())) in (400, 413)


def test_a_head_that_is_too_long(serving: Serving) -> None:
    with serving.connect() as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000)
        assert status_of(received(client)) == 400


@pytest.fixture
def impatient(fleet: Fleet, tmp_path: Path) -> Iterator[Serving]:
    fleet.write(tmp_path)
    with Serving(settings_in(tmp_path, body_timeout=0.2, header_timeout=0.3, most_runs=2)) as serving:
        yield serving


def test_a_body_that_does_not_come_in_time(impatient: Serving, marker: Path) -> None:
    head = f"POST {TOUCH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n"
    response = impatient.raw(head.encode() + b"{")
    assert status_of(response) == 408
    assert b"connection: close" in response
    assert not marker.exists()


@pytest.mark.parametrize("head", [b"", b"POST /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_a_head_that_does_not_come_in_time(impatient: Serving, head: bytes) -> None:
    assert impatient.raw(head) == b""


def test_a_head_that_drips(impatient: Serving) -> None:
    with impatient.connect() as client, contextlib.suppress(ConnectionError):
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ")
        client.settimeout(0.02)
        for _ in range(200):
            client.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                assert client.recv(1) == b""
                return
        pytest.fail("it was never cut off")


def test_a_second_request_may_take_its_time_and_so_may_a_run(impatient: Serving) -> None:
    with contextlib.closing(Client(impatient)) as client:
        # Longer than the time for a head: that is over once the head is there.
        assert client.call("POST", "/reemote/host/shell?cmd=sleep%200.6", b"{}", JSON).status == 200
        assert client.call("GET", "/healthz").status == 200


def test_more_runs_than_there_may_be(impatient: Serving, fleet: Fleet) -> None:
    home = fleet.home("server104")
    gate = home / "gate"
    wait = "/reemote/host/shell?cmd=until%20test%20-e%20gate%3B%20do%20sleep%200.02%3B%20done"
    clients = [Client(impatient) for _ in range(2)]
    try:
        waiting = [threading.Thread(target=c.call, args=("POST", wait, b"{}", JSON)) for c in clients]
        for thread in waiting:
            thread.start()
        while b"reemote_runs_active 2.0" not in impatient.get("/metrics").body:
            pass
        answer = impatient.post("/reemote/host/shell?cmd=true")
        assert answer.status == 429
        assert answer.headers["retry-after"] == "1"
        assert impatient.get("/healthz").status == 200
        gate.touch()
        for thread in waiting:
            thread.join(20)
        assert impatient.post("/reemote/host/shell?cmd=true").status == 200
    finally:
        gate.touch()
        for client in clients:
            client.close()
        gate.unlink()


def test_the_connections_of_one_moment_are_limited(impatient: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reemote.server.serve.MOST_CONNECTIONS", 5)
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.callback(impatient.connect().close)
        late = stack.enter_context(impatient.connect())
        assert received(late) == b""


# The guard alone: what no client of a real server can bring about


class Unsent:
    """A client whose body is a matter of the test."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages = list(messages)
        self.asked = 0
        self.sent: list[Any] = []

    async def receive(self) -> dict[str, Any]:
        self.asked += 1
        return self.messages.pop(0) if self.messages else await asyncio.Future()

    async def send(self, message: Any) -> None:
        self.sent.append(message)


def scope(**more: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": "/",
        "scheme": "http",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        **more,
    }


def guard(tmp_path: Path, called: list[Any], **more: Any) -> Guard:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        called.append(await receive())

    return Guard(app, settings_in(tmp_path, **more), Metrics())


async def test_the_guard_reads_no_body_of_a_stranger(tmp_path: Path) -> None:
    called: list[Any] = []
    client = Unsent({"type": "http.request", "body": b"x" * 100, "more_body": True})
    await guard(tmp_path, called)(scope(), client.receive, client.send)
    assert client.asked == 0
    assert called == []
    assert client.sent[0]["status"] == 401


async def test_the_guard_stops_reading_at_the_limit(tmp_path: Path) -> None:
    called: list[Any] = []
    part = {"type": "http.request", "body": b"x" * 600, "more_body": True}
    client = Unsent(part, part, part, part)
    await guard(tmp_path, called, authenticate=False, body_limit=1000)(scope(), client.receive, client.send)
    assert client.asked == 2
    assert called == []
    assert client.sent[0]["status"] == 413


async def test_a_client_that_leaves_within_its_body_is_not_answered(tmp_path: Path) -> None:
    called: list[Any] = []
    client = Unsent({"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"})
    await guard(tmp_path, called, authenticate=False)(scope(), client.receive, client.send)
    assert called == []
    assert client.sent == []


@pytest.mark.parametrize(
    "ends",
    [
        {"client": None},
        {"server": None},
        {"server": ("/run/socket", None)},
        {"client": ("192.0.2.1", 5)},
        {"client": ("not an address", 5)},
    ],
)
async def test_a_peer_that_cannot_be_known_needs_the_token(tmp_path: Path, ends: dict[str, Any]) -> None:
    client = Unsent()
    await guard(tmp_path, [])(scope(**ends), client.receive, client.send)
    assert client.sent[0]["status"] == 401


async def test_without_authentication_host_and_origin_count_all_the_same(tmp_path: Path) -> None:
    for headers in ([(b"host", b"evil.example")], [(b"host", b"localhost"), (b"origin", b"https://evil.example")]):
        client = Unsent()
        await guard(tmp_path, [], authenticate=False)(scope(headers=headers), client.receive, client.send)
        assert client.sent[0]["status"] in (403, 421)


def test_a_socket_of_another_user_is_one(serving: Serving) -> None:
    """The tests' own tool does what it says."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be another user")
    with serving.connect(NOBODY) as client:
        assert os.fstat(client.fileno()).st_uid == NOBODY
    with socket.socket() as own:
        assert os.fstat(own.fileno()).st_uid == 0


def test_the_defaults_of_the_limits() -> None:
    settings = Settings()
    assert (settings.host, settings.port, settings.authenticate) == ("127.0.0.1", 8001, True)
    assert (settings.body_limit, settings.run_timeout, settings.most_runs) == (1024 * 1024, 300, 100)
    assert json.dumps(settings.allowed_hosts) == "[]"
