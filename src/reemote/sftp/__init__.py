"""Sftp: ask for, change and transfer files over SFTP.

Paths are text, bytes or paths of :mod:`pathlib`, and nothing in them is expanded, ``~`` included. Relative ones
lead from where logins start, or from where ``Chdir`` went earlier in the same run. Names that are not UTF-8 come
back as text with surrogate escapes (PEP 383), or as bytes where the path was given as bytes.
"""

# The order is that of the documentation, so it is not sorted.
# isort: off
from .questions import (
    Islink,
    Isfile,
    Isdir,
    Getsize,
    Getatime,
    GetatimeNs,
    Getmtime,
    GetmtimeNs,
    Getcrtime,
    GetcrtimeNs,
    Getcwd,
    Stat,
)
from .text import Read
from .questions import (
    Listdir,
    Readdir,
    Exists,
    Lexists,
    Lstat,
    Readlink,
    Glob,
    GlobSftpName,
    StatVfs,
    Realpath,
    Client,
    FileStatus,
    NamedFile,
)
from .transfers import (
    Copy,
    Mcopy,
    Get,
    Mget,
    Put,
    Mput,
)
from .synchronize import Sync
from .changes import (
    Mkdir,
    Setstat,
    Makedirs,
    Rmdir,
    Rmtree,
    Chmod,
    Chown,
    Utime,
    Chdir,
    Rename,
    Remove,
)
from .text import Write
from .changes import (
    Link,
    Symlink,
    Unlink,
    Truncate,
    Directory,
)
# isort: on

from ..core.files import ClientInfo, FileSystem
from ..transfer.sync import Report

__all__ = [
    "Chdir",
    "Chmod",
    "Chown",
    "Client",
    "ClientInfo",
    "Copy",
    "Directory",
    "Exists",
    "FileStatus",
    "FileSystem",
    "Get",
    "Getatime",
    "GetatimeNs",
    "Getcrtime",
    "GetcrtimeNs",
    "Getcwd",
    "Getmtime",
    "GetmtimeNs",
    "Getsize",
    "Glob",
    "GlobSftpName",
    "Isdir",
    "Isfile",
    "Islink",
    "Lexists",
    "Link",
    "Listdir",
    "Lstat",
    "Makedirs",
    "Mcopy",
    "Mget",
    "Mkdir",
    "Mput",
    "NamedFile",
    "Put",
    "Read",
    "Readdir",
    "Readlink",
    "Realpath",
    "Remove",
    "Rename",
    "Report",
    "Rmdir",
    "Rmtree",
    "Setstat",
    "Stat",
    "StatVfs",
    "Symlink",
    "Sync",
    "Truncate",
    "Unlink",
    "Utime",
    "Write",
]
