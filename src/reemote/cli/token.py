"""``reemote token``: print or change the token of the REST API."""

from __future__ import annotations

from pathlib import Path

import click

from ..server.callers import Token, TokenError
from ..server.settings import data_directory
from .main import Refused


@click.command()
@click.option("--rotate", is_flag=True, help="Make a new token; the old one counts no more, at once.")
@click.option("--token-file", type=click.Path(path_type=Path), help="Where the token is kept.")
def token(rotate: bool, token_file: Path | None) -> int:
    """Print the token that requests to the REST API bear; make one where there is none."""
    kept = Token(token_file or data_directory() / "token")
    try:
        click.echo(kept.rotate() if rotate else kept.value())
    except TokenError as error:
        raise Refused(str(error)) from None
    return 0
