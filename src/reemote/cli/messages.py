"""Messages to the operator, on standard error."""

from __future__ import annotations

import logging
import sys

from .output import visible


def say(*lines: str) -> None:
    """Write messages, above the progress that may be shown."""
    if sys.stderr is not None:
        for line in lines:
            print(line, file=sys.stderr)  # click.echo() would write past the one who shows progress


class _Messages(logging.Handler):
    """Log entries as messages, which standard error takes at the time of the entry."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(visible(self.format(record)))
        except Exception:
            self.handleError(record)


def log(level: int) -> None:
    """Say what is logged from *level* on."""
    handler = _Messages()
    handler.setFormatter(logging.Formatter("reemote: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("asyncssh").setLevel(logging.WARNING)  # it would log commands and what is in them
