"""Fixtures that start hosts of the lab.

Where the lab cannot run, its tests are skipped with one line, except in CI; see ``tests/openssh_fixtures.py``.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Generator, Iterator, Sequence
from typing import Protocol

import pytest

from tests.lab.hosts import USERS, Lab, why_no_lab
from tests.lab.image import BuildFailed, Recipe
from tests.openssh import Option, User

_NAME = "the lab"


class MakeLab(Protocol):
    """The type of the fixture ``make_lab``."""

    def __call__(
        self, *names: str, users: Sequence[User] = USERS, sudoers: str = "", disk: str = "256m", **options: Option
    ) -> Lab:
        """Start hosts with these names (or the usual two) and keywords of sshd_config."""
        ...


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The hosts server104 and server105, shared by the tests of a worker: leave them as they were."""
    _skip()
    with Lab(tmp_path_factory.mktemp("lab") / "shared") as shared:
        yield shared


@pytest.fixture
def make_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeLab]:
    """Start labs for one test, which may change the hosts and inject faults."""
    _skip()
    labs: list[Lab] = []
    parent = tmp_path_factory.mktemp("lab")
    numbers = itertools.count()

    def make(
        *names: str, users: Sequence[User] = USERS, sudoers: str = "", disk: str = "256m", **options: Option
    ) -> Lab:
        chosen = names or ("server104", "server105")
        made = Lab(parent / str(next(numbers)), chosen, options, users=users, sudoers=sudoers, disk=disk)
        labs.append(made)
        made.start()
        return made

    yield make
    for each in labs:
        each.stop()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the image now if a test will need it: it takes longer than a test may."""
    needed = any({"lab", "make_lab"}.intersection(getattr(item, "fixturenames", ())) for item in session.items)
    if needed and not session.config.option.collectonly:
        _why_not()


# Within the wrapper that lets skipped tests fail in CI.
@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell of all skipped tests of the lab in one line: pytest has a line for each place."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple) and f"{_NAME}: " in report.longrepr[2]:
        report.longrepr = (__file__, _skip.__code__.co_firstlineno, report.longrepr[2])
    return report


def _skip() -> None:
    reason = _why_not()
    if reason is not None:
        pytest.skip(f"{_NAME}: {reason}")


@functools.cache
def _why_not() -> str | None:
    """Say why the lab cannot run, after the image has been built if need be."""
    reason = why_no_lab()
    if reason is None:
        try:
            Recipe().ensure()
        except BuildFailed as error:
            reason = f"its image cannot be built: {str(error).splitlines()[-1]}"
    return reason
