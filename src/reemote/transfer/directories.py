"""Directories of this machine for their owner only."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path


def make_directory(path: Path) -> None:
    """Make a directory for its owner only, and those above it that are missing: each of them, whatever the umask."""
    for each in reversed([path, *path.parents]):
        with contextlib.suppress(FileExistsError):
            if not each.exists():
                each.mkdir(mode=0o700)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
