"""Runs over HTTP: connections are kept, limits hold, what nobody waits for ends, and all is recorded."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from reemote.testing import Sandbox
from tests.leaks import alive, eventually
from tests.server.serving import Served, serving, write_inventory

HOSTS = ("server104", "server105")
WAIT = "echo $$ > pid; exec sleep 300"


@pytest.fixture
async def fleet() -> AsyncIterator[Sandbox]:
    hosts = Sandbox(*HOSTS)
    async with hosts:
        yield hosts


@pytest.fixture
async def served(fleet: Sandbox, tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path, inventory=write_inventory(fleet, tmp_path)) as one:
        yield one


def shell(client: httpx2.AsyncClient, cmd: str, **more: object) -> asyncio.Task[httpx2.Response]:
    return asyncio.create_task(client.post("/reemote/host/shell", json={"cmd": cmd, **more}))


async def started(fleet: Sandbox, *names: str) -> list[int]:
    """Wait until WAIT runs on the hosts, and give its process ids."""
    files = [fleet[name].home / "pid" for name in names or HOSTS]
    await eventually(lambda: all(file.exists() and file.read_text().endswith("\n") for file in files))
    return [int(file.read_text()) for file in files]


async def test_the_second_request_opens_no_connection(served: Served, fleet: Sandbox) -> None:
    for _ in range(2):
        done = await shell(served.client, "true")
        assert (done.status_code, [each["host"] for each in done.json()]) == (200, list(HOSTS))

    assert [fleet[name].connections for name in HOSTS] == [1, 1]
    assert await served.metric("reemote_open_connections") == 2


async def test_requests_at_the_same_time_share_connections(served: Served, fleet: Sandbox) -> None:
    done = await asyncio.gather(*(shell(served.client, f"echo {number}") for number in range(10)))

    assert [each.json()[1]["value"]["stdout"] for each in done] == [f"{number}\n" for number in range(10)]
    assert [fleet[name].connections for name in HOSTS] == [1, 1]


async def test_a_client_that_goes_away_ends_the_command_on_the_hosts(served: Served, fleet: Sandbox) -> None:
    request = shell(served.client, WAIT)
    pids = await started(fleet)
    assert await served.metric("reemote_runs_active") == 1

    request.cancel()  # which closes the connection

    await eventually(lambda: not any(map(alive, pids)))
    await eventually(lambda: served.audit()[-1]["event"] == "end")
    assert served.audit()[-1]["outcomes"] == {"cancelled": 1}
    assert await served.metric("reemote_runs_active") == 0
    assert await served.metric('reemote_requests_total{method="POST",route="/reemote/host/shell",status="499"}') == 1
    done = await shell(served.client, "true")
    assert [each["error"] for each in done.json()] == [False, False]


async def test_the_time_limit_of_the_server_answers_cancelled(fleet: Sandbox, tmp_path: Path) -> None:
    async with serving(tmp_path, inventory=write_inventory(fleet, tmp_path), run_timeout=0.5) as served:
        done = await shell(served.client, WAIT)

        assert done.status_code == 200
        assert [(each["host"], each["error"], each["value"]) for each in done.json()] == [
            (name, True, "Cancelled") for name in HOSTS
        ]
        assert {each["outcome"] for each in done.json()} == {"unknown"}
        assert not any(map(alive, await started(fleet)))
        assert await served.metric('reemote_hosts_total{outcome="Cancelled"}') == 2


async def test_the_time_limit_of_a_request(served: Served, fleet: Sandbox) -> None:
    done = await shell(served.client, WAIT, timeout=0.5)

    assert done.status_code == 200
    assert [each["error"] for each in done.json()] == [True, True]
    assert not any(map(alive, await started(fleet)))


async def test_an_operation_without_a_timeout_has_that_of_the_request(served: Served) -> None:
    done = await served.client.get("/reemote/host/getcontext", params={"timeout": "5"})
    assert done.status_code == 200
    for wrong in ("0", "-1", "nan", "x"):
        assert (await served.client.get("/reemote/host/getcontext", params={"timeout": wrong})).status_code == 422


async def test_runs_have_300_seconds_unless_told_otherwise(served: Served) -> None:
    assert served.settings.run_timeout == 300


async def test_too_many_runs_at_the_same_time(fleet: Sandbox, tmp_path: Path) -> None:
    async with serving(tmp_path, inventory=write_inventory(fleet, tmp_path), most_runs=1) as served:
        first = shell(served.client, WAIT)
        await started(fleet)

        refused = await shell(served.client, "echo > ran")
        assert (refused.status_code, refused.json()["error"]) == (429, True)
        assert refused.headers["retry-after"] == "1"
        assert not (fleet["server104"].home / "ran").exists()
        assert (await served.client.get("/healthz")).status_code == 200

        first.cancel()
        await eventually(lambda: len(served.audit()) == 2)
        assert (await shell(served.client, "true")).status_code == 200


async def test_one_host_that_is_down_does_not_disturb_the_other(served: Served, fleet: Sandbox) -> None:
    await fleet["server105"].stop()
    done = await shell(served.client, "echo up")

    up, down = done.json()
    assert done.status_code == 200
    assert (up["value"]["stdout"], up["error"]) == ("up\n", False)
    assert (down["value"], down["error"]) == ("ConnectionRefusedError", True)
    assert await served.metric('reemote_hosts_total{outcome="ConnectionRefusedError"}') == 1
    assert await served.metric('reemote_hosts_total{outcome="changed"}') == 1


# The audit log


async def test_audit_entries(served: Served) -> None:
    headers = {"x-request-id": "mine-1"}
    canary = "s3cret-canary"
    body = {"cmd": f"echo {canary}", "connection": {"password": canary + "-password"}}
    await served.client.post("/reemote/host/shell", json=body, headers=headers)

    begin, end = served.audit()
    assert (begin["event"], end["event"]) == ("begin", "end")
    for entry in (begin, end):
        assert entry["request"] == "mine-1"
        assert entry["actor"].startswith("user ")
        assert entry["operation"] == "host.shell"
        assert entry["time"].endswith("+00:00")
    assert begin["hosts"] == list(HOSTS)
    assert begin["arguments"].startswith("sha256:")
    assert end["seconds"] >= 0
    assert canary not in served.settings.audit_file.read_text()
    assert stat.S_IMODE(served.settings.audit_file.stat().st_mode) == 0o600


async def test_the_same_arguments_have_the_same_digest(served: Served) -> None:
    for cmd in ("true", "true", "false"):
        await shell(served.client, cmd)
    one, two, three = [entry["arguments"] for entry in served.audit() if entry["event"] == "begin"]
    assert one == two != three


async def test_the_audit_log_names_the_hosts_of_the_group_only(served: Served) -> None:
    await shell(served.client, "true", group="nobody")
    assert served.audit()[0]["hosts"] == []


def unwritable(path: Path) -> None:
    """Put something in the place of a file that cannot be written, by root either."""
    path.unlink(missing_ok=True)
    path.mkdir()


async def test_what_must_be_recorded_and_cannot_be_does_not_run(fleet: Sandbox, tmp_path: Path) -> None:
    async with serving(tmp_path, inventory=write_inventory(fleet, tmp_path), audit_required=True) as served:
        unwritable(served.settings.audit_file)
        refused = await shell(served.client, "echo > ran")

        assert refused.status_code == 503
        assert refused.json()["error"]
        assert "audit" in refused.json()["value"]
        assert [fleet[name].commands for name in HOSTS] == [[], []]

        served.settings.audit_file.rmdir()
        assert (await shell(served.client, "true")).status_code == 200


async def test_what_need_not_be_recorded_runs_with_a_warning(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    unwritable(served.settings.audit_file)
    done = await shell(served.client, "true")

    assert done.status_code == 200
    assert any("audit log" in message for message in caplog.messages)


@pytest.mark.parametrize("kind", ["link", "fifo"])
async def test_the_audit_log_goes_to_a_plain_file_only(fleet: Sandbox, tmp_path: Path, kind: str) -> None:
    import os

    async with serving(tmp_path, inventory=write_inventory(fleet, tmp_path), audit_required=True) as served:
        if kind == "link":
            served.settings.audit_file.symlink_to(tmp_path / "elsewhere")
        else:
            os.mkfifo(served.settings.audit_file)
        assert (await shell(served.client, "true")).status_code == 503
        assert not (tmp_path / "elsewhere").exists()


# The metrics


async def test_metrics_count(served: Served) -> None:
    await shell(served.client, "true")
    await served.client.get("/reemote/host/getcontext")
    await served.client.post("/reemote/host/shell", json={"cmd": ""})
    await served.client.request("FROBNICATE", "/nowhere/at/all")

    route = 'route="/reemote/host/shell"'
    assert await served.metric(f'reemote_requests_total{{method="POST",{route},status="200"}}') == 1
    assert await served.metric(f'reemote_requests_total{{method="POST",{route},status="422"}}') == 1
    assert await served.metric('reemote_requests_total{method="other",route="unknown",status="404"}') == 1
    assert await served.metric(f"reemote_request_seconds_count{{{route}}}") == 2
    assert await served.metric('reemote_runs_total{operation="host.shell"}') == 1
    assert await served.metric('reemote_hosts_total{outcome="changed"}') == 2
    assert await served.metric('reemote_hosts_total{outcome="ok"}') == 2
    text = (await served.client.get("/metrics")).text
    assert "server104" not in text


async def test_the_server_is_ready_unless_the_inventory_is_broken(served: Served) -> None:
    assert (await served.client.get("/readyz")).json() == {"status": "ok", "hosts": 2}
    served.settings.inventory.write_text('{"hosts": [\n')

    broken = await served.client.get("/readyz")
    assert broken.status_code == 503
    assert "line 2" in broken.json()["value"]
    assert (await shell(served.client, "true")).status_code == 500
    assert (await served.client.get("/healthz")).status_code == 200


async def test_nothing_is_left_of_a_server(fleet: Sandbox, tmp_path: Path, nothing_left: None) -> None:
    async with serving(tmp_path, inventory=write_inventory(fleet, tmp_path)) as served:
        request = shell(served.client, WAIT)
        pids = await started(fleet)
        begun = asyncio.get_running_loop().time()
        served.server.app.stop()
        stopped = await request
        assert (stopped.status_code, json.loads(stopped.text)["error"]) == (503, True)
        assert not any(map(alive, pids))
    assert asyncio.get_running_loop().time() - begun < 5
