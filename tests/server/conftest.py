"""What the tests of the server share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.server.starter import Starter


@pytest.fixture(scope="session")
def starter() -> Iterator[Starter]:
    """Starts ``reemote`` as a process of its own, and does not import it each time."""
    with contextlib.closing(Starter()) as starter:
        yield starter
