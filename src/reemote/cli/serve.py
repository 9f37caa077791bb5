"""``reemote serve``: the REST API."""

from __future__ import annotations

import io
import logging
import logging.handlers
import os
import re
import sys
from pathlib import Path
from typing import Any

import click

from ..core.errors import InventoryError
from ..server.guard import request_id
from ..server.serve import ServeError
from ..server.serve import serve as serve_api
from ..server.settings import Settings
from ..server.store import Store
from .main import Refused
from .output import visible

_FILE = click.Path(dir_okay=False, path_type=Path)
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


class _Entries(logging.Formatter):
    """Log entries that name their request; nothing in them drives the terminal, or looks like another entry."""

    def format(self, record: logging.LogRecord) -> str:
        record.request = request_id.get()
        return visible(super().format(record)).replace("\n", "\n    ")


class _LogFile(logging.handlers.WatchedFileHandler):
    """A log that only its owner may read; one that was moved away is begun anew."""

    _has_failed = False

    def _open(self) -> io.TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        return os.fdopen(descriptor, "a", encoding="utf-8")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - of the base class
        """Say once that the log cannot be written: a full disk does not end the server."""
        if not self._has_failed:
            self._has_failed = True
            click.echo(f"{self.baseFilename} cannot be written: {sys.exc_info()[1]}", err=True)


def _host_names(_: click.Context, __: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    for name in value:
        if not re.fullmatch(r"[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]", name):
            raise click.BadParameter(f"{name!r} is no name: give it without scheme, port and path")
    return value


def _size(_: click.Context, __: click.Parameter, value: str) -> int:
    match = re.fullmatch(r"0*([1-9][0-9]{0,15})([KMG]?)", value, re.ASCII | re.IGNORECASE)
    if match is None:
        raise click.BadParameter(f"{value!r} is no size: give bytes, or a number with K, M or G")
    return int(match[1]) * _UNITS[match[2].upper()]


def _no_workers(_: click.Context, __: click.Parameter, value: int | None) -> None:
    if value is not None and value != 1:
        raise click.UsageError("--workers: there is one process, since it owns the connections to the hosts")


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8001, show_default=True, help="The port; 0: a free one.")
@click.option(
    "-i",
    "--inventory",
    type=_FILE,
    envvar="REEMOTE_INVENTORY",
    help="The inventory file, which the API can change; by default one in the user's configuration.",
)
@click.option("--logging", "log_file", type=_FILE, help="A file to log requests to.")
@click.option("--files", type=click.Path(path_type=Path), help="The directory that transfers over HTTP keep to.")
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    callback=_host_names,
    metavar="NAME",
    help="A further name that the server goes by; whoever calls it so needs the token.",
)
@click.option("--certificate", type=_FILE, help="TLS certificate (PEM).")
@click.option("--key", type=_FILE, help="Its private key (PEM).")
@click.option("--token-file", type=_FILE, help="Where the token is kept.")
@click.option("--no-auth", is_flag=True, help="Let in everybody on this machine (loopback addresses only).")
@click.option("--audit", "audit_file", type=_FILE, help="Where the audit log is kept.")
@click.option("--audit-required", is_flag=True, help="Run nothing that cannot be recorded in the audit log.")
@click.option(
    "--timeout",
    "run_timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=300,
    show_default=True,
    help="Seconds for a run.",
)
@click.option(
    "--max-runs", "most_runs", type=click.IntRange(min=1), default=100, show_default=True, help="Runs at the same time."
)
@click.option(
    "--content-limit",
    callback=_size,
    metavar="SIZE",
    default="1G",
    show_default=True,
    help="The most that may be sent as the content of a file: bytes, or a number with K, M or G.",
)
@click.option("--workers", type=int, hidden=True, expose_value=False, callback=_no_workers)
def serve(log_file: Path | None, *, no_auth: bool, **options: Any) -> int:
    """Serve every operation over HTTP, until Ctrl-C.

    On a loopback address your own requests need no token; others need the one that 'reemote token' prints.
    """
    given = {name: value for name, value in options.items() if value is not None}
    settings = Settings(**given, authenticate=not no_auth)
    _log_to(log_file)
    try:
        serve_api(settings, lambda url: _tell(url, settings))
    except ServeError as error:
        raise Refused(str(error)) from None
    click.echo("Stopped.", err=True)
    return 0


def _log_to(path: Path | None) -> None:
    handler: logging.Handler = logging.StreamHandler()
    if path is not None:
        try:
            handler = _LogFile(path)
        except OSError as error:
            raise Refused(f"{path} cannot be written: {error.strerror}") from None
    handler.setFormatter(_Entries("%(asctime)s %(levelname)s %(request)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("reemote").setLevel(logging.INFO if path else logging.WARNING)


def _tell(url: str, settings: Settings) -> None:
    click.echo(f"Listening at {url}")
    click.echo(f"Inventory: {settings.inventory} ({_hosts(settings)})")
    click.echo(f"Documentation: {url}/docs")
    click.echo(f"Try: {_curl(url, settings)}")
    if settings.host in ("", "0.0.0.0", "::") and not settings.allowed_hosts:  # noqa: S104 - that address is no name
        click.echo("It goes by the name localhost only: --allowed-host adds the one that other machines use.")
    click.echo("Stop with Ctrl-C.")


def _hosts(settings: Settings) -> str:
    """Say what is in the inventory: a path that was mistyped should show here, not in empty answers."""
    if not settings.inventory.exists():
        return "there is no such file yet"
    try:
        number = len(Store(settings.inventory).inventory().hosts)
    except InventoryError:
        return "it cannot be read"
    return f"{number} host{'' if number == 1 else 's'}"


def _curl(url: str, settings: Settings) -> str:
    options = []
    if not settings.is_loopback:
        options.append('-H "Authorization: Bearer $(reemote token)"')
    if settings.certificate is not None:
        options.append(f"--cacert {settings.certificate}")
    words = ["curl -X POST", f"'{url}/reemote/host/shell?cmd=uptime'", *options]
    return " ".join([*words, "-H 'Content-Type: application/json' -d '{}'"])
