"""The inventory over HTTP: create, add, delete, get."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from reemote.core.secrets import MASK
from reemote.testing import Sandbox
from tests.server.serving import Served, serving, write_inventory


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as one:
        yield one


def host(name: str, **more: Any) -> dict[str, Any]:
    return {"connection": {"host": name, **more}}


async def create(served: Served, *hosts: Any) -> Any:
    return await served.client.post("/reemote/inventory/create/", json={"hosts": list(hosts)})


async def add(served: Served, given: Any) -> Any:
    return await served.client.post("/reemote/inventory/add/", json=given)


async def get(served: Served) -> Any:
    return (await served.client.get("/reemote/inventory/get")).json()


def stored(served: Served) -> Any:
    return json.loads(served.settings.inventory.read_text())


async def test_the_messages(served: Served) -> None:
    created = await create(served, host("server104"))
    added = await add(served, host("server105"))
    deleted = await served.client.delete("/reemote/inventory/delete/server104")

    assert [(each.status_code, each.json()) for each in (created, added, deleted)] == [
        (200, {"error": False, "value": "Inventory created successfully."}),
        (200, {"error": False, "value": "Host added successfully: server105"}),
        (200, {"error": False, "value": "Host deleted successfully: server104"}),
    ]
    assert await get(served) == {"hosts": [host("server105")]}


async def test_there_is_an_empty_inventory_before_the_first_change(served: Served) -> None:
    assert await get(served) == {"hosts": []}
    assert (await served.client.post("/reemote/host/shell?cmd=true", json={})).json() == []


async def test_secrets_are_masked_and_kept_when_sent_back(served: Served) -> None:
    full: dict[str, Any] = {
        "connection": {"host": "web1", "username": "user", "password": "pass-canary"},
        "session": {"encoding": "utf-8"},
        "authentication": {"sudo_password": "sudo-canary", "su_user": "root", "su_password": "su-canary"},
        "groups": ["web"],
    }
    await create(served, full)
    before = stored(served)
    response = await served.client.get("/reemote/inventory/get")
    assert "canary" not in response.text
    assert response.json()["hosts"][0]["connection"] == full["connection"] | {"password": MASK}

    sent_back = await served.client.post("/reemote/inventory/create/", json=response.json())
    assert sent_back.json() == {"error": False, "value": "Inventory created successfully."}
    assert stored(served) == before == {"hosts": [full]}


async def test_what_the_operator_wrote_may_be_sent_back(served: Served) -> None:
    written = host("web1", known_hosts="/etc/ssh/ssh_known_hosts", password="canary")
    served.settings.inventory.write_text(json.dumps({"hosts": [written]}))

    assert (await create(served, *(await get(served))["hosts"], host("web2"))).status_code == 200
    assert stored(served) == {"hosts": [written, host("web2")]}
    elsewhere = (await get(served))["hosts"][0]
    elsewhere["connection"]["address"] = "203.0.113.1"
    refused = await create(served, elsewhere)
    assert (refused.status_code, refused.json()["error"]) in {(409, True), (422, True)}
    assert stored(served) == {"hosts": [written, host("web2")]}


@pytest.mark.parametrize(
    ("given", "status", "message"),
    [
        (host("web1"), 409, "there is a host 'web1' already: delete it first"),
        (host("web2", password=MASK), 409, "connection.password is masked"),
        ({"connection": {}}, 422, "connection.host"),
        ({}, 422, "connection"),
        (host("a b"), 422, "connection.host"),
        (host("web2", proxy_command="touch /tmp/x"), 422, "connection.proxy_command may not be given over HTTP"),
        (host("web2", host_keys="off"), 422, "connection.host_keys"),
        (host("web2", client_keys=["/etc/shadow"]), 422, "connection.client_keys"),
        ([], 422, "hosts[0]"),
        ("/etc/passwd", 422, "hosts[0]"),
        (None, 422, "hosts[0]"),
    ],
)
async def test_hosts_that_are_refused(served: Served, given: Any, status: int, message: str) -> None:
    await create(served, host("web1"))
    refused = await add(served, given)

    assert refused.status_code == status
    answer = refused.json()
    if "detail" not in answer:  # FastAPI's own word for a body that is missing
        assert answer["error"] is True
        assert message in answer["value"]
    assert stored(served) == {"hosts": [host("web1")]}


@pytest.mark.parametrize("reference", ["env:SUDO", "file:/etc/hostname", "cmd:id"])
async def test_references_to_passwords_are_the_operators_own(served: Served, reference: str) -> None:
    """Whoever may call cannot have one looked up, nor have one that is stored sent to another place."""
    given = {"authentication": {"sudo_password": reference}}
    for new in (host("web1", password=reference), host("web1") | given):
        refused = await add(served, new)
        assert refused.status_code == 422
        assert "may not be given over HTTP" in refused.json()["value"]

    before = {"hosts": [host("web1", address="10.0.0.1") | given]}
    served.settings.inventory.write_text(json.dumps(before))
    for elsewhere in (host("web1", address="10.0.0.2"), host("web1", address="10.0.0.1", port=2222), host("web1")):
        assert (await create(served, elsewhere | given)).status_code == 422
        masked = {"authentication": {"sudo_password": MASK}}
        assert (await create(served, elsewhere | masked)).status_code in (409, 422)
    assert stored(served) == before
    assert (await create(served, before["hosts"][0], host("web2"))).status_code == 200
    assert stored(served) == {"hosts": [*before["hosts"], host("web2")]}


@pytest.mark.parametrize("given", [[], "/etc/passwd", {"hosts": "x"}, {}, {"hosts": [host("a"), host("a")]}, 1])
async def test_inventories_that_are_refused(served: Served, given: Any) -> None:
    await create(served, host("web1"))
    refused = await served.client.post("/reemote/inventory/create/", json=given)

    assert (refused.status_code, refused.json()["error"]) == (422, True)
    assert stored(served) == {"hosts": [host("web1")]}


async def test_a_host_that_is_not_there(served: Served) -> None:
    await create(served, host("web1"))
    refused = await served.client.delete("/reemote/inventory/delete/web2")
    assert (refused.status_code, refused.json()) == (404, {"error": True, "value": "there is no host 'web2'"})


@pytest.mark.parametrize("name", ["fe80::1%eth0", "web.example", "[::1]"])
async def test_names_that_need_escapes_in_a_path(served: Served, name: str) -> None:
    from urllib.parse import quote

    assert (await add(served, host(name))).status_code == 200
    deleted = await served.client.delete(f"/reemote/inventory/delete/{quote(name, safe='')}")
    assert deleted.json() == {"error": False, "value": f"Host deleted successfully: {name}"}


async def test_any_name_of_the_file_can_be_deleted(served: Served) -> None:
    served.settings.inventory.write_text(json.dumps({"hosts": [host("a/b")]}))
    deleted = await served.client.delete("/reemote/inventory/delete/a%2Fb")
    assert deleted.json() == {"error": False, "value": "Host deleted successfully: a/b"}


async def test_a_corrupt_file_is_an_error_and_left_alone(served: Served) -> None:
    corrupt = '{"hosts": [\n'
    served.settings.inventory.write_text(corrupt)
    answers = [
        await create(served, host("web1")),
        await add(served, host("web1")),
        await served.client.delete("/reemote/inventory/delete/web1"),
        await served.client.get("/reemote/inventory/get"),
        await served.client.post("/reemote/host/shell?cmd=true", json={}),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]) == (500, True)
        assert f"{served.settings.inventory}: not JSON: line 2" in answer.json()["value"]
    assert served.settings.inventory.read_text() == corrupt


async def test_requests_at_the_same_time_lose_nothing(served: Served) -> None:
    answers = await asyncio.gather(*(add(served, host(f"web{number}")) for number in range(40)))
    assert {each.status_code for each in answers} == {200}
    assert len((await get(served))["hosts"]) == 40


async def test_changes_hold_for_the_next_run(tmp_path: Path) -> None:
    fleet = Sandbox("server104", "server105")
    async with fleet, serving(tmp_path, inventory=write_inventory(fleet, tmp_path)) as served:
        await served.client.delete("/reemote/inventory/delete/server104")
        done = await served.client.post("/reemote/host/shell?cmd=true", json={})
        assert [each["host"] for each in done.json()] == ["server105"]


async def test_changes_are_recorded(served: Served) -> None:
    await add(served, host("web1", password="canary"))
    await served.client.delete("/reemote/inventory/delete/web2")

    assert [(e["event"], e["operation"], e.get("hosts"), e.get("outcomes")) for e in served.audit()] == [
        ("begin", "inventory.add", ["web1"], None),
        ("end", "inventory.add", None, {"changed": 1}),
        ("begin", "inventory.delete", ["web2"], None),
        ("end", "inventory.delete", None, {"failed": 1}),
    ]
    assert "canary" not in served.settings.audit_file.read_text()


async def test_what_must_be_recorded_and_cannot_be_changes_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, audit_required=True) as served:
        served.settings.audit_file.mkdir()
        assert (await add(served, host("web1"))).status_code == 503
        assert not served.settings.inventory.exists()
