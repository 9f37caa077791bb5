"""What a server is started with."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

MIB = 1024 * 1024
GIB = 1024 * MIB


def data_directory() -> Path:
    """Give the directory for what the server keeps: token, audit log, transferred files."""
    return platformdirs.user_data_path("reemote")


def default_inventory() -> Path:
    """Give the path of the inventory that is used when none is named."""
    return platformdirs.user_config_path("reemote") / "inventory.json"


@dataclass(frozen=True)
class Settings:
    """What a server is started with. Times are in seconds, sizes in bytes."""

    inventory: Path = field(default_factory=default_inventory)
    host: str = "127.0.0.1"
    port: int = 8001
    allowed_hosts: tuple[str, ...] = ()
    """Names under which the server may be addressed, besides those of the loopback interface."""
    certificate: Path | None = None
    key: Path | None = None
    token_file: Path = field(default_factory=lambda: data_directory() / "token")
    authenticate: bool = True
    """False lets everybody on this machine in; only for a loopback address."""
    audit_file: Path = field(default_factory=lambda: data_directory() / "audit.jsonl")
    audit_required: bool = False
    files: Path = field(default_factory=lambda: data_directory() / "files")
    """The directory that transfers of requests keep to; it is made when it is needed."""
    run_timeout: float = 300
    """Time limit of one run, unless the request names another."""
    body_limit: int = MIB
    body_timeout: float = 30
    """Time in which a request's body has to arrive; for files, time in which some more of it has to."""
    content_limit: int = GIB
    """The most that may be sent as the content of a file."""
    most_runs: int = 100
    """How many runs there may be at the same time."""

    header_timeout: float = 15
    """Time in which a request's head has to arrive, and for which a connection may idle."""

    @property
    def is_loopback(self) -> bool:
        """Whether the server listens on this machine's loopback interface only."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False  # a name may lead anywhere, whatever it begins with
