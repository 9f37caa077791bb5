"""The server as ``reemote serve`` starts it: its memory, and what its answers and logs must not show."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reemote.server.callers import Token
from reemote.testing import Sandbox
from tests.programs import Fleet
from tests.server.starter import Starter

pytestmark = pytest.mark.slow

CANARIES = {name: f"canary-{name}-7f3a" for name in ("stored", "sudo", "sent", "phrase", "query")}


class Process:
    """``reemote serve`` on a free port, with all its files in one directory."""

    def __init__(self, directory: Path, starter: Starter) -> None:
        self.inventory, self.log, self.audit = directory / "inventory.json", directory / "log", directory / "audit"
        self.token = directory / "token"
        files = (
            "--inventory",
            self.inventory,
            "--logging",
            self.log,
            "--audit",
            self.audit,
            "--token-file",
            self.token,
        )
        self.process = starter.start("serve", "--port", "0", *map(str, files))
        line = self.process.stdout.readline()
        assert line.startswith("Listening at http://127.0.0.1:"), line
        self.port = int(line.split()[2].rpartition(":")[2])

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)

    def call(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
        """Make a request, and give the status, and headers and body in one."""
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Type": "application/json"} | {key.replace("_", "-"): value for key, value in headers.items()}
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            connection.request(method, path, data, given)
            answer = connection.getresponse()
            return answer.status, str(answer.getheaders()).encode() + answer.read()

    def memory(self) -> int:
        """Give the most memory that it ever had, in kB."""
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found is not None
        return int(found[1])


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    fleet = Fleet("web")
    fleet.sandbox = Sandbox("web", password=CANARIES["stored"])
    with fleet:
        yield fleet


@pytest.fixture
def process(fleet: Fleet, tmp_path: Path, starter: Starter) -> Iterator[Process]:
    file = fleet.write(tmp_path)
    data = json.loads(file.read_text())
    data["hosts"][0]["authentication"] = {"sudo_password": CANARIES["sudo"], "su_password": CANARIES["sudo"]}
    file.write_text(json.dumps(data))
    file.chmod(0o600)
    process = Process(tmp_path, starter)
    with process.process, contextlib.closing(process):
        yield process


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("more", ["", "Via: 1.1 proxy\r\n"], ids=["of the user", "of a stranger"])
def test_endless_bodies_take_no_memory(process: Process, more: str) -> None:
    assert process.call("GET", "/openapi.json")[0] == 200
    assert process.call("POST", "/reemote/host/shell", b"x")[0] == 400
    before, chunk = process.memory(), b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    head = f"POST /reemote/host/shell HTTP/1.1\r\nHost: localhost\r\n{more}Transfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", process.port), timeout=20) as client:
        client.sendall(head.encode())
        with contextlib.suppress(ConnectionError):
            for _ in range(1024):  # 64 MiB
                client.sendall(chunk)
    assert process.memory() - before < 20_000
    assert process.call("GET", "/healthz")[0] == 200


def _sent_wrongly() -> Iterator[tuple[str, object]]:
    sent = {"password": CANARIES["sent"], "passphrase": CANARIES["phrase"]}
    for options in (
        sent | {"port": "x"},
        sent | {"proxy_command": CANARIES["sent"]},
        {"password": [CANARIES["sent"]]},
        {"password": {"x": CANARIES["sent"]}},
        {"x": CANARIES["sent"]},
    ):
        yield "host/shell", {"cmd": "true", "connection": options}
    yield "host/shell", {"cmd": ["x"], "connection": sent}
    yield "host/shell", {"cmd": "true", "connection": CANARIES["sent"]}
    yield "host/shell", {"cmd": "true", "session": {"env": CANARIES["sent"]}}
    yield "host/shell", {"cmd": "true", "session": {"env": {"A": [CANARIES["sent"]]}}}
    yield "host/shell", {"cmd": "true", "timeout": CANARIES["sent"]}
    yield "host/shell", json.dumps({"cmd": CANARIES["sent"]}).encode()[:-1]
    item = {"connection": {"host": "new", "port": "x", **sent}, "authentication": {"sudo_password": [CANARIES["sent"]]}}
    shapes = [
        item,
        item | {"connection": {"host": "new", **sent}},
        {"connection": {"host": "new", "config": CANARIES["sent"]}},
    ]
    for shape in shapes:
        yield "inventory/add/", shape
        yield "inventory/create/", {"hosts": [shape]}
    yield "inventory/add/", sent
    yield "inventory/create/", CANARIES["sent"]
    yield "inventory/add/", json.dumps(item).encode()[:-1]


def test_secrets_show_nowhere(process: Process) -> None:
    """Not in what answers wrong requests, describes the server, or tells of failures; not in the logs."""
    seen = b""
    for path, body in _sent_wrongly():
        status, answer = process.call("POST", f"/reemote/{path}", body)
        assert status in ((400, 422) if isinstance(body, bytes) else (422,)), body  # 400: it is no JSON
        seen += answer
    for path in ("openapi.json", "docs", "reemote/inventory/get", "reemote/host/getcontext", "metrics", "readyz", "x"):
        seen += process.call("GET", f"/{path}")[1]
    wrong = {"cmd": "true", "connection": {"password": CANARIES["sent"]}}
    status, answer = process.call("POST", "/reemote/host/shell", wrong)
    assert status == 200
    assert b'"error":true' in answer.replace(b" ", b"")
    assert process.call("POST", f"/reemote/host/shell?cmd=true+{CANARIES['query']}")[0] == 200
    token = Token(process.token).value()
    seen += answer + process.call("GET", "/healthz", Authorization=f"Bearer {token}x")[1]
    assert process.call("GET", "/healthz", Authorization=f"Bearer {token}")[0] == 200
    process.inventory.write_text(process.inventory.read_text()[:-2])
    for path in ("reemote/inventory/get", "reemote/host/getcontext", "readyz"):
        status, answer = process.call("GET", f"/{path}")
        assert status in (500, 503)
        seen += answer
    process.close()
    logged = process.log.read_bytes() + process.audit.read_bytes()
    assert b"host.shell" in logged
    for secret in (*CANARIES.values(), token):
        assert secret.encode() not in seen
        assert secret.encode() not in logged


def test_the_log_has_one_line_for_each_request_with_its_id(process: Process) -> None:
    forged = "/x%0d%0a2026-01-01%20INFO%20forged%1b[2J%e2%80%a8%c2%85%22%00"
    for number, (path, headers) in enumerate(
        [
            ("/healthz?hunter2", {}),
            ("/reemote/host/getcontext?group=hunter2", {}),
            (f"{forged}?hunter2", {}),
            ("/refused?hunter2", {"Via": "hunter2", "User_Agent": "hunter2", "Referer": "hunter2"}),
            ("/refused?hunter2", {"Origin": "http://hunter2"}),
            ("/refused?hunter2", {"Host": "hunter2"}),
        ]
    ):
        process.call("GET", path, X_Request_ID=f"id-{number}", **headers)
    process.close()
    text = process.log.read_text()
    for number in range(6):
        assert len([line for line in text.splitlines() if f"id-{number} " in line and " ms, " in line]) == 1
    asked = [line for line in text.splitlines() if re.search("healthz|getcontext|forged|refused", line)]
    assert len(asked) == 6
    assert all(re.search(r"\bid-[0-5]\b", line) for line in asked)
    assert "hunter2" not in text
    assert not re.search("[\x00-\x09\x0b-\x1f\x85\u2028]", text)
