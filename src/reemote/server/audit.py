"""The audit log: who ran what, where, and how it ended; one JSON object a line, only ever added to."""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..core.errors import ReemoteError
from .guard import actor, request_id

log = logging.getLogger("reemote")


class AuditError(ReemoteError):
    """The audit log cannot be written."""


class Audit:
    """The audit log of a server.

    Args:
        path: The file; it is made with mode 0600.
        required: Whether a run may not start unless it can be recorded.
    """

    def __init__(self, path: Path, *, required: bool) -> None:
        self.path = path
        self._required = required

    def check(self) -> None:
        """Make sure that the log can be written.

        Raises:
            AuditError: It cannot, and it is required.
        """
        try:
            os.close(self._open())
        except OSError as error:
            self._complain(error)

    def write(
        self, operation: str, arguments: str, hosts: Iterable[str], outcomes: dict[str, int], seconds: float
    ) -> None:
        """Add a run. Arguments may bear secrets, so their digest stands for them."""
        entry: dict[str, Any] = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "request": request_id.get(),
            "actor": actor.get(),
            "operation": operation,
            "arguments": "sha256:" + hashlib.sha256(arguments.encode("utf-8", "surrogatepass")).hexdigest(),
            "hosts": list(hosts),
            "outcomes": outcomes,
            "seconds": round(seconds, 3),
        }
        try:
            descriptor = self._open()
            try:
                os.write(descriptor, json.dumps(entry).encode() + b"\n")
            finally:
                os.close(descriptor)
        except OSError as error:
            log.error("%s: a run was not recorded: %s: %s", self.path, error.strerror, json.dumps(entry))

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.path, flags, 0o600)

    def _complain(self, error: OSError) -> None:
        if self._required:
            raise AuditError(f"the audit log {self.path} cannot be written: {error.strerror}") from None
        log.warning("the audit log %s cannot be written: %s", self.path, error.strerror)
