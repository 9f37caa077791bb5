"""``reemote serve``: the REST API."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from ..server.serve import ServeError
from ..server.serve import serve as serve_api
from ..server.settings import Settings, data_directory, default_inventory
from .main import Refused
from .output import visible

_CURL = """curl -X POST '{url}/reemote/host/shell?cmd=uptime' -H 'Content-Type: application/json' -d '{{}}'"""


class _OneLine(logging.Formatter):
    """Log lines of one line each, in which nothing drives the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def _no_workers(_: click.Context, __: click.Parameter, value: int | None) -> None:
    if value is not None and value != 1:
        raise click.UsageError("--workers: there is one process, since it owns the connections to the hosts")


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8001, show_default=True, help="The port; 0: a free one.")
@click.option(
    "-i",
    "--inventory",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="REEMOTE_INVENTORY",
    help="The inventory file, which the API can change; by default one in the user's configuration.",
)
@click.option("--logging", "log_file", type=click.Path(dir_okay=False), help="A file to log requests to.")
@click.option("--allowed-host", "allowed_hosts", multiple=True, help="A further name that the server goes by.")
@click.option("--certificate", type=click.Path(path_type=Path), help="TLS certificate (PEM).")
@click.option("--key", type=click.Path(path_type=Path), help="Its private key (PEM).")
@click.option("--token-file", type=click.Path(path_type=Path), help="Where the token is kept.")
@click.option("--no-auth", is_flag=True, help="Let in everybody on this machine (loopback addresses only).")
@click.option("--audit", type=click.Path(path_type=Path), help="Where the audit log is kept.")
@click.option("--audit-required", is_flag=True, help="Run nothing that cannot be recorded in the audit log.")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=300, show_default=True, help="Seconds for a run."
)
@click.option("--max-runs", type=click.IntRange(min=1), default=100, show_default=True, help="Runs at the same time.")
@click.option("--workers", type=int, hidden=True, expose_value=False, callback=_no_workers)
def serve(
    host: str,
    port: int,
    inventory: Path | None,
    log_file: str | None,
    allowed_hosts: tuple[str, ...],
    certificate: Path | None,
    key: Path | None,
    token_file: Path | None,
    no_auth: bool,
    audit: Path | None,
    audit_required: bool,
    timeout: float,
    max_runs: int,
) -> int:
    """Serve every operation over HTTP, until Ctrl-C.

    On a loopback address your own requests need no token; others need the one that 'reemote token' prints.
    """
    settings = Settings(
        inventory=inventory or default_inventory(),
        host=host,
        port=port,
        allowed_hosts=allowed_hosts,
        certificate=certificate,
        key=key,
        token_file=token_file or data_directory() / "token",
        authenticate=not no_auth,
        audit_file=audit or data_directory() / "audit.jsonl",
        audit_required=audit_required,
        run_timeout=timeout,
        most_runs=max_runs,
    )
    _log_to(log_file)
    try:
        serve_api(settings, lambda url: _tell(url, settings))
    except ServeError as error:
        raise Refused(str(error)) from None
    click.echo("Stopped.", err=True)
    return 0


def _log_to(path: str | None) -> None:
    handler: logging.Handler = logging.StreamHandler()
    if path is not None:
        try:
            handler = logging.FileHandler(path, encoding="utf-8")
        except OSError as error:
            raise Refused(f"{path} cannot be written: {error.strerror}") from None
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("reemote").setLevel(logging.INFO if path else logging.WARNING)


def _tell(url: str, settings: Settings) -> None:
    click.echo(f"Listening at {url} (inventory: {settings.inventory})")
    click.echo(f"Documentation: {url}/docs")
    click.echo(f"Try: {_CURL.format(url=url)}")
    click.echo("Stop with Ctrl-C.")
