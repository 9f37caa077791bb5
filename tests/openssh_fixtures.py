"""Fixtures that start real OpenSSH servers, and the rule that nothing is skipped in CI."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from tests.openssh import Option, RootWorld, UserSshd, why_no_user_sshd, why_no_world


class MakeUserSshd(Protocol):
    """The type of the fixture ``make_user_sshd``."""

    def __call__(
        self,
        *,
        listen: str | Sequence[str] = "127.0.0.1",
        port: int | None = None,
        private_network: bool = False,
        shell: str = "/bin/sh",
        **options: Option,
    ) -> UserSshd:
        """Start a server with these keywords of sshd_config, as in ``make_user_sshd(MaxSessions=1)``."""
        ...


class MakeWorld(Protocol):
    """The type of the fixture ``make_world``."""

    def __call__(
        self,
        *names: str,
        users: Mapping[str, str] | None = None,
        sudoers: str = "user ALL=(ALL:ALL) ALL",
        shell: str = "/bin/bash",
        **options: Option,
    ) -> RootWorld:
        """Start a world of machines with these names (or the usual two) and keywords of sshd_config."""
        ...


@pytest.fixture(scope="session")
def user_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UserSshd]:
    """A server of an ordinary user, shared by all tests: leave it as it was."""
    _skip(why_no_user_sshd())
    with UserSshd(tmp_path_factory.mktemp("sshd") / "shared") as server:
        yield server


@pytest.fixture
def make_user_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeUserSshd]:
    """Start servers of an ordinary user for one test."""
    _skip(why_no_user_sshd())
    servers: list[UserSshd] = []
    directory = _new_directories(tmp_path_factory, "sshd")

    def make(
        *,
        listen: str | Sequence[str] = "127.0.0.1",
        port: int | None = None,
        private_network: bool = False,
        shell: str = "/bin/sh",
        **options: Option,
    ) -> UserSshd:
        if private_network:
            _skip(why_no_world())
        server = UserSshd(directory(), options, listen=listen, port=port, private_network=private_network, shell=shell)
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RootWorld]:
    """The machines server104 and server105, shared by all tests: leave them as they were."""
    _skip(why_no_world())
    with RootWorld(tmp_path_factory.mktemp("world") / "shared") as shared:
        yield shared


@pytest.fixture
def make_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeWorld]:
    """Start worlds for one test."""
    _skip(why_no_world())
    worlds: list[RootWorld] = []
    directory = _new_directories(tmp_path_factory, "world")

    def make(
        *names: str,
        users: Mapping[str, str] | None = None,
        sudoers: str = "user ALL=(ALL:ALL) ALL",
        shell: str = "/bin/bash",
        **options: Option,
    ) -> RootWorld:
        chosen = names or ("server104", "server105")
        made = RootWorld(directory(), chosen, options, users=users, sudoers=sudoers, shell=shell)
        worlds.append(made)
        made.start()
        return made

    yield make
    for each in worlds:
        each.stop()


def _new_directories(factory: pytest.TempPathFactory, name: str) -> Callable[[], Path]:
    parent = factory.mktemp(name)
    numbers = itertools.count()
    return lambda: parent / str(next(numbers))


def _skip(reason: str | None) -> None:
    if reason is not None:
        pytest.skip(f"OpenSSH: {reason}")


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() in {"true", "1"}


# The outermost wrapper, so that pytest itself has finished with the report.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI let a skipped test fail: there everything is installed, and what is skipped is not tested."""
    report = yield
    # An expected failure is reported as skipped, too.
    if report.skipped and not hasattr(report, "wasxfail") and _in_ci():
        report.outcome = "failed"
        report.longrepr = f"Nothing may be skipped in CI. {_reason(report.longrepr)}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """In CI let a module fail that skips itself."""
    report = yield
    if report.skipped and _in_ci():
        report.outcome = "failed"
        report.longrepr = f"Nothing may be skipped in CI. {_reason(report.longrepr)}"
    return report


def _reason(longrepr: object) -> str:
    return str(longrepr[2] if isinstance(longrepr, tuple) else longrepr)
