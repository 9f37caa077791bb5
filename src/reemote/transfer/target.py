"""Where the files of several hosts go."""

from __future__ import annotations

from ..core.errors import LocalFileError
from ..core.files import Path, encoded, printable
from ..core.host import scope

PLACE = b"{host}"
"""What stands for the host's name in a path."""


def one_for_each(path: Path | None, host: str, group: str | None) -> bytes:
    """Give the path with the host's name in it; several hosts may not write to one.

    Raises:
        LocalFileError: The run has several hosts of the group, and nothing in *path* tells them apart.
    """
    name = b"." if path is None else encoded(path)
    if PLACE in name:
        safe = host.replace("/", "_") if host.strip(".") else "_" * len(host)
        return name.replace(PLACE, safe.encode("utf-8", "surrogateescape"))
    others = [item.host for item in scope.get().items if item.is_in(group)]
    if len(others) > 1:
        raise LocalFileError(
            f"{len(others)} hosts would write to {printable(name)!r}, each over the other's: put {{host}} into the "
            "path, which stands for the host's name",
            kind="FileExistsError",
            outcome="not_started",
        )
    return name
