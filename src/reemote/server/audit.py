"""The audit log: who did what, where, and how it ended; one JSON object a line, only ever added to."""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..core.errors import ReemoteError
from ..transfer.directories import make_directory
from .guard import actor, address, request_id

log = logging.getLogger("reemote")


class AuditError(ReemoteError):
    """The audit log cannot be written."""


class Audit:
    """The audit log of a server.

    A run has two entries, so that one that was cut short shows as well.

    Args:
        path: The file; it is made with mode 0600.
        required: Whether nothing may be done unless it can be recorded first.
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

    def begin(self, operation: str, arguments: str, hosts: Iterable[str]) -> None:
        """Record that something is about to be done.

        Raises:
            AuditError: It cannot be recorded, and must be.
        """
        # Arguments may bear secrets, so their digest stands for them.
        digest = "sha256:" + hashlib.sha256(arguments.encode("utf-8", "surrogatepass")).hexdigest()
        entry = {**_entry("begin", operation), "arguments": digest, "hosts": list(hosts)}
        try:
            self._add(entry)
        except OSError as error:
            self._complain(error)

    def end(self, operation: str, outcomes: dict[str, int], seconds: float) -> None:
        """Record how it ended; what cannot be recorded any more goes to the log."""
        entry = {**_entry("end", operation), "outcomes": outcomes, "seconds": round(seconds, 3)}
        try:
            self._add(entry)
        except OSError as error:
            log.error("%s cannot be written: %s: not recorded: %s", self.path, error.strerror, json.dumps(entry))

    def _add(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry).encode() + b"\n"
        descriptor = self._open()
        try:
            # All at once: what several processes append does not mix.
            if os.write(descriptor, line) < len(line):
                raise OSError(None, "there is no room for a whole entry")
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        make_directory(self.path.parent)
        # Not blocking: a named pipe would hold us up.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o600)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (os.geteuid(), 0):
            os.close(descriptor)
            raise OSError(None, "it is no file of this user")
        return descriptor

    def _complain(self, error: OSError) -> None:
        message = f"the audit log {self.path} cannot be written: {error.strerror}"
        if self._required:
            raise AuditError(message) from None
        log.warning("%s", message)


def _entry(event: str, operation: str) -> dict[str, Any]:
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "event": event,
        "request": request_id.get(),
        "actor": actor.get(),
        "address": address.get(),
        "operation": operation,
    }
