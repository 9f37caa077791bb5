"""The offline repository: APT works for real on a machine that has no network."""

from __future__ import annotations

import re
import subprocess
import threading
import time

import pytest

from tests.lab.fixtures import MakeLab
from tests.lab.packages import Package, Repository, failing, installed, waiting
from tests.openssh import Machine
from tests.openssh_fixtures import MakeWorld

pytestmark = pytest.mark.slow


@pytest.fixture
def machine(make_lab: MakeLab) -> Machine:
    return make_lab("server104")["server104"]


def apt(machine: Machine, *arguments: str) -> subprocess.CompletedProcess[str]:
    return machine.run(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "-q", *arguments])


def done(machine: Machine, *arguments: str) -> str:
    """The output of apt-get, which succeeds and warns of nothing."""
    result = apt(machine, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.findall("^[WE]:.*", result.stderr, re.MULTILINE) == []
    return result.stdout


def versions(machine: Machine, *names: str) -> dict[str, str]:
    return {name: version for name, version in installed(machine).items() if name in names}


def test_install_upgrade_downgrade_and_remove(machine: Machine) -> None:
    repository = Repository(machine)
    repository.add(Package("lab-tree"), Package("lab-forest", depends="lab-tree (>= 1.0)"))
    done(machine, "update")
    done(machine, "install", "lab-forest")
    assert versions(machine, "lab-tree", "lab-forest") == {"lab-tree": "1.0", "lab-forest": "1.0"}
    assert machine.path("/usr/share/lab-tree/version").read_text() == "1.0\n"
    repository.add(Package("lab-tree", "1:2.0-1"))
    done(machine, "update")
    done(machine, "upgrade")
    assert versions(machine, "lab-tree", "lab-forest") == {"lab-tree": "1:2.0-1", "lab-forest": "1.0"}
    done(machine, "install", "--allow-downgrades", "lab-tree=1.0")
    assert versions(machine, "lab-tree") == {"lab-tree": "1.0"}
    done(machine, "remove", "lab-tree")
    assert versions(machine, "lab-tree", "lab-forest") == {}


def test_it_is_the_only_source(machine: Machine) -> None:
    repository = Repository(machine)
    done(machine, "update")
    assert "Unable to locate package hello" in apt(machine, "install", "hello").stderr
    repository.add(Package("hello"))
    done(machine, "update")
    done(machine, "install", "hello")
    repository.remove("hello")
    done(machine, "remove", "hello")
    done(machine, "update")
    assert "hello" in apt(machine, "install", "hello").stderr
    assert versions(machine, "hello") == {}


def test_configuration_files_stay_until_purged(machine: Machine) -> None:
    repository = Repository(machine)
    repository.add(Package("lab-daemon", conffiles={"/etc/lab-daemon.conf": "one\n"}))
    done(machine, "update")
    done(machine, "install", "lab-daemon")
    configuration = machine.path("/etc/lab-daemon.conf")
    configuration.write_text("mine\n")
    repository.add(Package("lab-daemon", "2.0", conffiles={"/etc/lab-daemon.conf": "two\n"}))
    done(machine, "update")
    # Without a terminal dpkg cannot ask, and fails.
    assert apt(machine, "install", "lab-daemon").returncode == 100
    done(machine, "install", "-o", "Dpkg::Options::=--force-confold", "lab-daemon")
    assert configuration.read_text() == "mine\n"
    assert machine.path("/etc/lab-daemon.conf.dpkg-dist").read_text() == "two\n"
    done(machine, "remove", "lab-daemon")
    assert configuration.exists()
    done(machine, "purge", "lab-daemon")
    assert not configuration.exists()


def test_a_script_that_fails(machine: Machine) -> None:
    repository = Repository(machine)
    repository.add(Package("lab-broken", scripts={"postinst": failing(3, "no such moon")}))
    done(machine, "update")
    result = apt(machine, "install", "lab-broken")
    assert result.returncode == 100
    assert "no such moon" in result.stdout + result.stderr
    assert "exit status 3" in result.stdout + result.stderr
    assert machine.run(["dpkg", "--audit"]).stdout
    repository.add(Package("lab-broken", "1.1"))
    done(machine, "update")
    done(machine, "install", "lab-broken")
    assert machine.run(["dpkg", "--audit"]).stdout == ""


def test_a_script_that_waits_holds_the_locks(machine: Machine) -> None:
    repository = Repository(machine)
    repository.add(Package("lab-slow", scripts={"postinst": waiting("/run/go")}), Package("lab-other"))
    done(machine, "update")
    results: list[subprocess.CompletedProcess[str]] = []
    thread = threading.Thread(target=lambda: results.append(apt(machine, "install", "lab-slow")))
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not machine.path("/run/go.started").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        blocked = apt(machine, "install", "lab-other")
        assert blocked.returncode == 100
        assert "Could not get lock /var/lib/dpkg/lock-frontend" in blocked.stderr
    finally:
        machine.path("/run/go").touch()
        thread.join()
    assert results[0].returncode == 0
    assert versions(machine, "lab-slow", "lab-other") == {"lab-slow": "1.0"}


def test_a_package_file_that_is_missing_or_spoilt(machine: Machine) -> None:
    repository = Repository(machine)
    tree = Package("lab-tree")
    repository.add(tree)
    done(machine, "update")
    file = repository.file(machine, tree)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert "Hash Sum mismatch" in apt(machine, "install", "lab-tree").stderr
    file.unlink()
    assert "Failed to fetch" in apt(machine, "install", "lab-tree").stderr
    assert versions(machine, "lab-tree") == {}


def test_two_machines_of_a_world_have_it_alike(make_world: MakeWorld) -> None:
    world = make_world()
    first, second = world.machines.values()
    repository = Repository(first, second)
    repository.add(Package("lab-tree"))
    for machine in (first, second):
        done(machine, "update")
    done(first, "install", "lab-tree")
    assert versions(first, "lab-tree") == {"lab-tree": "1.0"}
    assert versions(second, "lab-tree") == {}
    done(second, "install", "lab-tree")
    assert versions(second, "lab-tree") == {"lab-tree": "1.0"}


@pytest.mark.usefixtures("lab")
def test_equal_packages_are_equal_files() -> None:
    package = Package("lab-tree", "1:2.0", files={"/usr/share/lab/tree": "oak\n"})
    assert package.build() == Package("lab-tree", "1:2.0", files={"/usr/share/lab/tree": "oak\n"}).build()
    assert package.file_name == "lab-tree_2.0_all.deb"
