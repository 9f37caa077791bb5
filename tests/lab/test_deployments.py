"""What operators do, on hosts that are real: packages, files and commands with other privileges."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from reemote import Inventory, Pool, Responses, Steps
from reemote.apt import GetPackages, Install, Package, Remove, Update
from reemote.events import OutputLine, StepFinished
from reemote.execute import execute
from reemote.host import Command, Shell
from reemote.sftp import Read, Write
from tests.lab import packages
from tests.lab.fixtures import MakeLab
from tests.lab.hosts import Lab

pytestmark = pytest.mark.slow


@pytest.fixture
def shop(make_lab: MakeLab) -> Iterator[Lab]:
    """Two hosts with a repository each, with the client in their network."""
    lab = make_lab()
    packages.Repository(*lab.hosts).add(
        packages.Package("lab-tree"), packages.Package("lab-forest", depends="lab-tree (>= 1.0)")
    )
    with lab.network():
        yield lab


async def run(lab: Lab, step: Any, user: str = "user", sudo_password: str | None = "password", **how: Any) -> Responses:
    """Run a step on all hosts of a lab as one of their users."""
    entries = [
        {
            "connection": host.login(user),
            "authentication": {"sudo_password": sudo_password, "su_password": "root-password"},
        }
        for host in lab.hosts
    ]
    async with Pool() as pool:
        return await execute(lambda: step, Inventory.of({"hosts": entries}), pool=pool, **how)


def told(responses: Responses) -> list[tuple[Any, bool]]:
    return [(str(response["value"]) if response["error"] else None, response["changed"]) for response in responses]


async def test_a_package_is_installed_once(shop: Lab) -> None:
    assert told(await run(shop, Update(sudo=True))) == [(None, True)] * 2
    assert told(await run(shop, Package(packages=["lab-forest"], sudo=True), dry_run=True)) == [(None, True)] * 2
    assert [packages.installed(host).get("lab-forest") for host in shop.hosts] == [None, None]
    assert told(await run(shop, Package(packages=["lab-forest"], sudo=True))) == [(None, True)] * 2
    assert [packages.installed(host).get("lab-tree") for host in shop.hosts] == ["1.0", "1.0"]
    assert told(await run(shop, Package(packages=["lab-forest"], sudo=True))) == [(None, False)] * 2
    assert told(await run(shop, Install(packages=["lab-forest"], sudo=True))) == [(None, False)] * 2
    found = await run(shop, GetPackages())
    assert {"name": "lab-forest", "version": "1.0"}.items() <= next(
        each for each in found[0]["value"]["packages"] if each["name"] == "lab-forest"
    ).items()
    assert told(await run(shop, Remove(packages=["lab-tree"], su=True))) == [(None, True)] * 2
    assert [packages.installed(host).get("lab-forest") for host in shop.hosts] == [None, None]


async def test_a_package_without_the_privileges_for_it(shop: Lab) -> None:
    [failed, _] = await run(shop, Install(packages=["lab-tree"]))
    assert (failed["value"], failed["changed"]) == ("CommandFailed", False)
    assert "Permission denied" in failed.detail
    assert (
        told(await run(shop, Install(packages=["lab-tree"], sudo=True), "nosudo")) == [("PrivilegeDenied", False)] * 2
    )
    none = await run(shop, Install(packages=["lab-tree"], sudo=True), sudo_password=None)
    assert told(none) == [("PasswordRequired", False)] * 2


async def test_two_hosts_are_two(shop: Lab) -> None:
    [first, second] = await run(shop, Shell(cmd="hostname"))
    assert (first.value.stdout, second.value.stdout) == ("server104\n", "server105\n")
    shop.hosts[0].path("/etc/only-here").write_text("x")
    found = await run(shop, Read(path="/etc/only-here"))
    assert told(found) == [(None, False), ("SFTPNoSuchFile", False)]


class Release:
    """A deployment as operators write them."""

    async def execute(self) -> Steps:
        yield Update(sudo=True)
        yield Package(packages=["lab-tree"], sudo=True, name="package")
        written = yield Write(path="/etc/lab.conf", text="port = 80\n", permissions=0o640, sudo=True, name="settings")
        if written["changed"]:
            yield Shell(cmd="id -un | tee /run/restarted && stat -c '%a %U' /etc/lab.conf", sudo=True, name="restart")


async def test_a_deployment_with_privileges_and_its_events(shop: Lab) -> None:
    events: list[Any] = []
    first = await run(shop, Release(), on_event=events.append)
    assert [response.value.stdout for response in first] == ["root\n640 root\n"] * 2
    lines = [event.line for event in events if isinstance(event, OutputLine) and event.line in ("root", "640 root")]
    assert lines.count("root") == lines.count("640 root") == 2
    finished = [event.name for event in events if isinstance(event, StepFinished) and event.host == first[0]["host"]]
    assert [name for name in finished if name.islower()] == ["package", "settings", "restart"]
    again: list[Any] = []
    assert told(await run(shop, Release(), on_event=again.append)) == [(None, False)] * 2
    assert "restart" not in [event.name for event in again if isinstance(event, StepFinished)]


async def test_one_program_that_sudo_allows(shop: Lab) -> None:
    for user, password in (("single", "password"), ("single_free", None)):
        allowed = await run(shop, Command(argv=["/usr/bin/id", "-u"], sudo=True), user, password)
        assert [response.value.stdout for response in allowed] == ["0\n"] * 2
        refused = await run(shop, Command(argv=["/usr/bin/touch", "/root/x"], sudo=True), user, password)
        assert {value for value, _ in told(refused)} <= {"PrivilegeDenied", "PasswordRequired"}
        assert not shop.hosts[0].path("/root/x").exists()
