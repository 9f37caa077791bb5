"""``reemote serve`` from start to end, as a process."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.cli.conftest import eventually
from tests.leaks import alive
from tests.openssh import RootWorld
from tests.programs import Fleet
from tests.server.starter import Program, Starter

pytestmark = pytest.mark.slow

Start = Callable[..., "Process"]


class Answer(NamedTuple):
    """What a request came to."""

    status: int
    value: Any


class Process:
    """The command ``reemote`` in a process of its own."""

    def __init__(self, popen: subprocess.Popen[str] | Program) -> None:
        self.popen = popen
        self.lines: list[str] = []
        self.url = ""

    def wait_until_ready(self) -> None:
        """Read what it prints until it takes requests."""
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("Stop with"):
                break
        else:
            raise AssertionError(self.end())
        self.url = self.lines[0].removeprefix("Listening at ")

    def ask(self, path: str, body: object = None, *, token: str | None = None, cafile: Path | None = None) -> Answer:
        """Make a request; with a body it is a POST."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
        request = urllib.request.Request(self.url + path, data, headers)
        context = ssl.create_default_context(cafile=cafile) if cafile else None
        handlers: list[Any] = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)]
        try:
            with urllib.request.build_opener(*handlers).open(request, timeout=30) as response:
                return Answer(response.status, json.load(response))
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, json.load(error))

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Wait for its end, and give its exit code and the rest of what it printed."""
        out, err = self.popen.communicate(timeout=30)
        assert self.popen.returncode is not None
        return self.popen.returncode, out, err


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("server104", "server105") as hosts:
        yield hosts


@pytest.fixture
def inventory(fleet: Fleet, tmp_path: Path) -> Path:
    file = fleet.write(tmp_path)
    file.chmod(0o600)
    return file


@pytest.fixture
def run(starter: Starter) -> Iterator[Start]:
    """Start ``reemote``; it is killed at the end of the test if it still runs."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str | Path, **environment: str) -> Process:
            process = Process(starter.start(*map(str, arguments), **environment))
            stack.enter_context(process.popen)
            stack.callback(process.popen.kill)
            return process

        yield start


@pytest.fixture
def serve(run: Start) -> Start:
    """Start a server and wait until it takes requests."""

    def start(*arguments: str | Path, **environment: str) -> Process:
        process = run(*arguments, **environment)
        process.wait_until_ready()
        return process

    return start


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for localhost that vouches for itself, and its key."""
    paths = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    # What Python's strict checks ask of one that signs itself (RFC 5280).
    names, usage = "subjectAltName=DNS:localhost,IP:127.0.0.1", "keyUsage=critical,digitalSignature,keyCertSign"
    more = ["-addext", names, "-addext", usage]
    files = ["-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run([*command.split(), *more, *files], check=True, capture_output=True, timeout=30)
    return paths


def waiting(server: Process, fleet: Fleet, *, ignoring: str = "") -> tuple[subprocess.Popen[bytes], list[int]]:
    """Let a client run a command that does not end; give the client, and the process ids on the hosts."""
    files = [fleet.home(name) / f"pid-{server.popen.pid}" for name in ("server104", "server105")]
    body = json.dumps({"cmd": f"{ignoring} echo $$ > {files[0].name}; while :; do sleep 0.2; done"})
    url = f"{server.url}/reemote/host/shell"
    command = ["curl", "-sS", "--noproxy", "*", "-H", "content-type: application/json", "-d", body, url]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    eventually(lambda: all(file.exists() and file.read_text().endswith("\n") for file in files))
    return client, [int(file.read_text()) for file in files]


# Start


@pytest.fixture
def really_started(inventory: Path, request: pytest.FixtureRequest) -> Iterator[Process]:
    """A server that a new interpreter runs, as a user starts it."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-m", "reemote", *request.param.format(inventory).split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as popen:
        process = Process(popen)
        try:
            process.wait_until_ready()
            yield process
        finally:
            popen.kill()


@pytest.mark.parametrize(
    "really_started",
    ["serve --port 0 --inventory {}", "--port=0 --inventory={}"],
    indirect=True,
    ids=["serve", "--port"],
)
def test_it_tells_where_it_listens_and_how_to_call_it(really_started: Process, inventory: Path) -> None:
    server = really_started

    assert re.fullmatch(r"Listening at http://127\.0\.0\.1:\d+", server.lines[0])
    assert server.lines[1] == f"Inventory: {inventory} (2 hosts)"
    assert server.lines[2] == f"Documentation: {server.url}/docs"
    curl = shlex.split(server.lines[3].removeprefix("Try: "))
    done = subprocess.run([*curl, "-sS"], capture_output=True, text=True, check=True, timeout=30)
    assert [each["host"] for each in json.loads(done.stdout)] == ["server104", "server105"]
    assert all("load average" in each["value"]["stdout"] for each in json.loads(done.stdout))
    server.send(signal.SIGINT)
    assert server.end() == (0, "", "Stopped.\n")


def test_an_inventory_that_is_not_there_is_told_of(serve: Start, tmp_path: Path) -> None:
    server = serve("--port=0", f"--inventory={tmp_path / 'typo.json'}")
    assert server.lines[1].endswith("typo.json (there is no such file yet)")
    assert server.ask("/readyz") == (200, {"status": "ok", "hosts": 0})


def test_the_inventory_of_the_environment(serve: Start, inventory: Path) -> None:
    assert serve("--port=0", REEMOTE_INVENTORY=str(inventory)).ask("/readyz").value["hosts"] == 2


def test_first_start_of_a_new_user(serve: Start, home: Path) -> None:
    server = serve("--port=0")
    assert server.ask("/reemote/inventory/add/", {"connection": {"host": "web1"}}).status == 200
    assert json.loads((home / ".config" / "reemote" / "inventory.json").read_text())["hosts"]
    for name in ("token", "audit.jsonl"):
        assert stat.S_IMODE((home / ".local" / "share" / "reemote" / name).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "needs TLS"),
        (["--host", "::"], "needs TLS"),
        (["--host", "0.0.0.0", "--no-auth"], "--no-auth is for loopback addresses only"),
        (["--certificate", "here.pem"], "both a certificate and its key"),
        (["--certificate", "gone.pem", "--key", "gone.pem"], "gone.pem"),
        (["--certificate", "here.pem", "--key", "here.pem"], "cannot be used"),
        (["--host", "192.0.2.1", "--certificate", "cert", "--key", "key"], "192.0.2.1"),
        (["--workers", "2"], "one process, since it owns the connections"),
        (["--logging", "gone/log"], "gone/log cannot be written: No such file"),
        (["--audit", "here.pem/audit", "--audit-required"], "here.pem/audit cannot be written"),
        (["--token-file", "here.pem"], "here.pem"),
        (["--token-file", "here.pem/token"], "here.pem/token"),
        (["--inventory", "here.pem"], "here.pem: not JSON: line 1"),
        (["--port", "70000"], "70000"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(
    run: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.pem").write_text("not what you think\n")
    if "cert" in arguments:
        arguments = [{"cert": "here.pem", "key": "here.pem"}.get(word, word) for word in arguments]
        message = "cannot be used"

    code, out, err = run("serve", "--port=0", *arguments).end()

    assert (code, out) == (2, "")
    assert message in err
    assert [line for line in err.splitlines() if line.startswith("Error: ")] == err.splitlines()[-1:]
    assert "Traceback" not in err


def test_a_port_that_is_taken(run: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = run("serve", f"--port={port}").end()
    assert (code, err) == (2, f"Error: cannot listen at 127.0.0.1:{port}: Address already in use\n")


def test_two_servers_do_not_share_a_port(serve: Start, run: Start) -> None:
    port = serve("serve", "--port=0").url.rpartition(":")[2]
    code, _, err = run("serve", f"--port={port}").end()
    assert (code, "Address already in use" in err) == (2, True)


# End


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_what_runs_on_the_hosts(
    serve: Start, fleet: Fleet, inventory: Path, number: signal.Signals
) -> None:
    server = serve("--port=0", f"--inventory={inventory}")
    client, pids = waiting(server, fleet)
    begun = time.monotonic()
    server.send(number)
    end = server.end()

    assert time.monotonic() - begun < 5
    assert end == (0, "", "Stopped.\n")
    assert not any(map(alive, pids))
    assert json.loads(client.communicate(timeout=10)[0]) == {"error": True, "value": "the server is being stopped"}


def test_a_command_that_does_not_heed_the_signal_is_killed(serve: Start, fleet: Fleet, inventory: Path) -> None:
    server = serve("--port=0", f"--inventory={inventory}")
    client, pids = waiting(server, fleet, ignoring="trap '' TERM HUP INT;")
    begun = time.monotonic()
    server.send(signal.SIGTERM)
    end = server.end()

    assert time.monotonic() - begun < 5
    assert end == (0, "", "Stopped.\n")
    eventually(lambda: not any(map(alive, pids)))
    client.communicate(timeout=10)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_waits_for_nothing(
    serve: Start, fleet: Fleet, inventory: Path, second: signal.Signals
) -> None:
    server = serve("--port=0", f"--inventory={inventory}")
    client, _ = waiting(server, fleet, ignoring="trap '' TERM HUP INT;")
    server.send(signal.SIGTERM)
    # It answers no more once it has taken the first one; two at once would be one to it.
    eventually(lambda: _refuses(server))
    begun = time.monotonic()
    server.send(second)
    code, _, err = server.end()

    assert time.monotonic() - begun < 1
    assert code in (0, 130)
    assert "Traceback" not in err
    client.communicate(timeout=10)


def _refuses(server: Process) -> bool:
    host, _, port = server.url.removeprefix("http://").partition(":")
    try:
        socket.create_connection((host, int(port)), 5).close()
    except OSError:
        return True
    return False


def test_idle_clients_do_not_hold_up_the_end(serve: Start) -> None:
    server = serve("--port=0")
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as silent, socket.create_connection((host, int(port))) as half:
        half.sendall(b"POST /reemote/host/shell HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\n1")
        begun = time.monotonic()
        server.send(signal.SIGINT)
        assert server.end()[0] == 0
        assert time.monotonic() - begun < 5
        assert silent.recv(1) == b""


# Who may call


def test_tls_needs_the_token(serve: Start, run: Start, inventory: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    server = serve(
        *("--host", "0.0.0.0", "--port=0", "--allowed-host=localhost", f"--inventory={inventory}"),
        *("--certificate", cert, "--key", key),
    )
    assert re.fullmatch(r"https://localhost:\d+", server.url)
    code, printed, _ = run("token").end()
    token = printed.strip()

    assert code == 0
    assert len(token) >= 32
    assert server.ask("/healthz", cafile=cert).status == 401
    assert server.ask("/healthz", cafile=cert, token="x" * 40).status == 401
    done = server.ask("/reemote/host/shell", {"cmd": "true"}, cafile=cert, token=token)
    assert (done.status, [each["error"] for each in done.value]) == (200, [False, False])
    assert "reemote token" in server.lines[3]
    assert str(cert) in server.lines[3]


def test_an_encrypted_key_is_refused_without_a_question(
    run: Start, tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    encrypted = tmp_path / "encrypted.pem"
    command = [
        "openssl",
        "pkcs8",
        "-topk8",
        "-in",
        str(certificate[1]),
        "-out",
        str(encrypted),
        "-passout",
        "pass:x1y2z3",
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    code, out, err = run("serve", "--port=0", "--certificate", certificate[0], "--key", encrypted).end()
    assert (code, out) == (2, "")
    assert err.count("\n") == 1


def test_a_rotated_token_counts_at_once(serve: Start, run: Start, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    tls = ("--host", "0.0.0.0", "--port=0", "--certificate", cert, "--key", key)
    server = serve("serve", *tls)
    first = run("token").end()[1].strip()
    assert run("token").end()[1].strip() == first
    assert server.ask("/healthz", cafile=cert, token=first).status == 200

    second = run("token", "--rotate").end()[1].strip()
    assert second != first
    assert server.ask("/healthz", cafile=cert, token=first).status == 401
    assert server.ask("/healthz", cafile=cert, token=second).status == 200


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users")
def test_another_user_needs_the_token_unless_everybody_is_let_in(serve: Start) -> None:
    code = (
        "import sys,urllib.request as r\ntry: print(r.urlopen(sys.argv[1]).status)\nexcept OSError as e: print(e.code)"
    )
    as_nobody = ["setpriv", "--reuid=65533", "--regid=65533", "--clear-groups", "/usr/bin/python3", "-c", code]
    for arguments, status in (((), "401"), (("--no-auth",), "200")):
        server = serve("--port=0", *arguments)
        assert server.ask("/healthz").status == 200
        done = subprocess.run(
            [*as_nobody, f"{server.url}/healthz"], capture_output=True, text=True, check=False, timeout=30, cwd="/"
        )
        assert (done.stdout.strip(), done.stderr) == (status, "")


def test_token_that_cannot_be_kept(run: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, out, err = run("token", "--token-file", tmp_path / "file" / "token").end()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("Error: ")


# What it writes


def test_the_log(serve: Start, inventory: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    server = serve("--port=0", f"--inventory={inventory}", f"--logging={log}")
    canary = "canary-of-the-query"
    server.ask(f"/reemote/host/shell?cmd=echo%20{canary}", {})
    server.ask("/nowhere%0Aelse")
    server.send(signal.SIGINT)
    code, _, err = server.end()

    lines = log.read_text().splitlines()
    assert (code, err) == (0, "Stopped.\n")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert canary not in log.read_text()
    [shell] = [line for line in lines if "/reemote/host/shell" in line]
    assert re.search(r"INFO [0-9a-f]{16} POST .* 200 ", shell)
    assert all(re.match(r"\d{4}-\d\d-\d\d ", line) for line in lines)


def test_a_log_that_was_moved_away_is_begun_anew(serve: Start, tmp_path: Path) -> None:
    log = tmp_path / "log"
    server = serve("--port=0", f"--logging={log}")
    server.ask("/healthz")
    eventually(lambda: "/healthz" in log.read_text())  # written once the answer has been sent
    log.rename(tmp_path / "log.1")
    server.ask("/readyz")
    eventually(lambda: log.exists() and "/readyz" in log.read_text())
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_a_full_disk_does_not_end_the_server(serve: Start) -> None:
    server = serve("--port=0", "--logging=/dev/full")
    for _ in range(3):
        assert server.ask("/healthz").status == 200
    server.send(signal.SIGINT)
    code, _, err = server.end()
    assert code == 0
    assert err.splitlines() == ["/dev/full cannot be written: [Errno 28] No space left on device", "Stopped."]


# The tutorial

CURL = """
curl -X 'POST' \\
  'http://127.0.0.1:8001/reemote/host/shell?cmd=echo%20%22Hello%20World%22&name=print%20hello' \\
  -H 'accept: application/json' -H 'Content-Type: application/json' \\
  -d '{"connection": {}, "session": {}}'
"""

PROGRAM = """
import asyncio, json, sys
from reemote.execute import execute
from reemote.host import Shell

responses = asyncio.run(execute(lambda: Shell(cmd='echo "Hello World"', name="print hello"), sys.argv[1]))
print(json.dumps(responses))
"""


def test_the_curl_line_of_the_tutorial(world: RootWorld) -> None:
    hosts = [
        {"connection": {"host": name, "username": "user", "password": "password"}}
        for name in ("server104", "server105")
    ]
    inventory = world.write("inventory.json", json.dumps({"hosts": hosts}))
    program = world.write("program.py", PROGRAM)
    # The network is the world's own, so that the port of the tutorial is free.
    server = world.popen(
        [sys.executable, "-X", "dev", "-W", "error", "-m", "reemote", "--port=8001", f"--inventory={inventory}"]
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "Listening at http://127.0.0.1:8001\n"
        before = [machine.accepted() for machine in world.machines.values()]
        answers = [world.run(["sh", "-c", CURL], check=True).stdout for _ in range(2)]
        after = [machine.accepted() for machine in world.machines.values()]
        expected = world.run([sys.executable, program, inventory], check=True).stdout

        assert [json.loads(answer) for answer in answers] == [json.loads(expected)] * 2
        assert json.loads(answers[0])[1]["value"]["stdout"] == "Hello World\n"
        # The same keys in the same order, too.
        assert json.dumps(json.loads(answers[0])) == expected.strip()
        assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1]

        others = world.run(
            ["setpriv", "--reuid=65533", "--regid=65533", "--clear-groups", "sh", "-c", CURL], cwd=Path("/")
        )
        assert json.loads(others.stdout)["error"] is True
        server.send_signal(signal.SIGINT)
        assert server.communicate(timeout=10)[1] == "Stopped.\n"
    finally:
        server.kill()
    for machine in world.machines.values():
        machine.wait_idle()
