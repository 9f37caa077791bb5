"""Fixtures for pytest, known to it once Reemote is installed.

Loading this module loads neither pydantic nor asyncssh; using a fixture does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .fake import Fake
    from .fleet import Sandbox


@pytest.fixture
def reemote_fake() -> Callable[..., Fake]:
    """Give the class of scripted fleets: call it with the names of the hosts."""
    from .fake import Fake

    return Fake


@pytest.fixture
def reemote_sandbox() -> Callable[..., Sandbox]:
    """Give the function that makes sandboxes: enter what it returns with ``async with``."""
    from .fleet import sandbox

    return sandbox
