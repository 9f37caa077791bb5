"""``reemote put``, ``reemote get``, ``reemote sync``: files between this machine and the hosts."""

from __future__ import annotations

import contextlib
import logging
import os
import posixpath
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import HostError, LocalFileError
from ..core.files import ProgressHandler
from ..core.inventory import Inventory
from ..core.operation import Operation
from ..core.response import Response, Responses
from ..host import Getcontext
from ..sftp import Get, Put, Report, Sync
from ..transfer.local import here
from ..transfer.place import missing
from ..transfer.target import PLACE, one_for_each
from .hosts import Given, host_options, log, say
from .main import OK, Refused
from .output import exit_code, one_line, show, writing

if TYPE_CHECKING:
    from .screen import Screen

Make = Callable[[ProgressHandler | None], Operation[Any]]
"""Makes the operation that transfers, given what to tell its progress."""

_PLACE = PLACE.decode()

_OPTIONS = {
    f"{name.replace('-', '_')}=True": f"--{name}" for name in ("recurse", "follow-symlinks", "in-place", "delete")
}
"""How messages call parameters, and how they are called here."""


def _named(_: click.Context, __: click.Parameter, value: Any) -> Any:
    if not all([value] if isinstance(value, str) else value):
        raise click.BadParameter("a path cannot be empty")
    return value


_recurse = click.option("-r", "--recurse", is_flag=True, help="Copy directories with all that is in them.")
_preserve = click.option("-p", "--preserve", is_flag=True, help="Keep modes and times.")
_follow = click.option(
    "-L",
    "--follow-symlinks",
    is_flag=True,
    help="Copy what symbolic links in directories lead to; without -r that is always so.",
)
_verbose = click.option(
    "-v", "--verbose", count=True, help="Say what was done on each host; -vv: and what happens on the connections."
)


@click.command()
@click.argument("local", nargs=-1, required=True, callback=_named)
@click.argument("remote", callback=_named)
@host_options
@_recurse
@_preserve
@_follow
@click.option("--checksum", is_flag=True, help="Leave files alone whose content is the same.")
@click.option("--in-place", is_flag=True, help="Write into files that are there, instead of replacing them.")
@_verbose
def put(given: Given, local: tuple[str, ...], remote: str, verbose: int, **how: Any) -> int:
    """Copy files and directories of this machine to hosts.

    REMOTE is the copy's path, or a directory for the copies; a relative path leads from where logins start.
    """
    _follow_named(how)
    for path in local:
        if stat.S_ISDIR(_mode(path, follow=how["follow_symlinks"])) and not how["recurse"]:
            raise Refused(f"{path!r} is a directory: --recurse copies it")

    def make(progress: ProgressHandler | None) -> Put:
        return Put(localpaths=list(local), remotepath=remote, progress_handler=progress, **how)

    return _carry_out(given, _prepare(given, verbose), make, verbose)


@click.command()
@click.argument("remote", nargs=-1, required=True, callback=_named)
@click.argument("local", callback=_named)
@host_options
@_recurse
@_preserve
@_follow
@_verbose
def get(given: Given, remote: tuple[str, ...], local: str, verbose: int, **how: Any) -> int:
    """Copy files and directories of hosts to this machine.

    LOCAL is the copy's path, or a directory for the copies. '{host}' in it stands for the host's name, and must be
    there for several hosts; directories that are missing are made then: 'logs/{host}/'.
    """
    _follow_named(how)
    hosts = _prepare(given, verbose)
    number = len(hosts.select(given.limit))
    if number > 1 and _PLACE not in local:
        raise Refused(
            f"{number} hosts would write to {local!r}, each over the other's: put {_PLACE} into the path, "
            f"as in {posixpath.join(local, _PLACE, '')!r}"
        )

    def make(progress: ProgressHandler | None) -> Get:
        return Get(remotepaths=list(remote), localpath=local, progress_handler=progress, **how)

    places = _Places(local, is_directory=local.endswith("/") or len(remote) > 1) if _PLACE in local else None
    return _carry_out(given, hosts, make, verbose, places)


@click.command()
@click.argument("local", callback=_named)
@click.argument("remote", callback=_named)
@host_options
@click.option("--delete", is_flag=True, help="Remove what is not in LOCAL from the hosts.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Names to leave alone: '*.pyc', '.git/', 'a/b'.")
@click.option("--checksum", is_flag=True, help="Compare files whose size and time are equal, too.")
@_verbose
def sync(given: Given, local: str, remote: str, verbose: int, exclude: tuple[str, ...], **how: Any) -> int:
    """Make the directory REMOTE on hosts equal to the directory LOCAL of this machine."""
    if not stat.S_ISDIR(_mode(local, follow=True)):
        raise Refused(f"{local!r} is not a directory")

    def make(progress: ProgressHandler | None) -> Sync:
        return Sync(localpath=local, remotepath=remote, exclude=list(exclude), progress_handler=progress, **how)

    return _carry_out(given, _prepare(given, verbose), make, verbose)


def _follow_named(how: dict[str, Any]) -> None:
    """Follow the links that are named, as cp(1) does; within trees they are copied as links, unless asked."""
    how["follow_symlinks"] = how["follow_symlinks"] or not how["recurse"]


def _mode(path: str, *, follow: bool) -> int:
    """Ask what a path of this machine is: what is missing here should not be told by each host."""
    try:
        return Path(path).stat(follow_symlinks=follow).st_mode
    except OSError as error:
        raise Refused(f"{path!r} on this machine: {error.strerror}") from None


def _prepare(given: Given, verbose: int) -> Inventory:
    log(logging.DEBUG if verbose > 1 else logging.WARNING)
    return given.load()


# The transfer


class _Places:
    """The directories of this machine that lead to what comes from each host."""

    def __init__(self, local: str, *, is_directory: bool) -> None:
        self._local = local
        self._is_directory = is_directory
        self._made: list[bytes] = []

    async def make(self, host: str) -> None:
        """Make the directories that lead to the host's place, where they are missing."""
        files = here.get()
        path = one_for_each(self._local, host, None)
        directory = path.rstrip(b"/") if self._is_directory else posixpath.dirname(path)
        for each in await missing(files, directory):
            try:
                await files.mkdir(each)
                self._made.append(each)
            except LocalFileError as error:
                if error.kind != "FileExistsError":  # else another host needed it, too
                    error.outcome = "not_started"
                    raise

    def tidy(self) -> None:
        """Remove the directories that nothing came into."""
        for directory in sorted(self._made, reverse=True):  # each before the one that it is in
            with contextlib.suppress(OSError):
                os.rmdir(directory)  # noqa: PTH106 - its name may be no text


class _Transfer:
    """The transfer of one host, followed on the screen."""

    def __init__(self, make: Make, places: _Places | None, screen: Screen | None) -> None:
        self._make = make
        self._places = places
        self._screen = screen

    async def execute(self) -> Response[Any]:
        """Carry out what was made."""
        host: str = (await Getcontext()).value.host
        row = self._screen.rows[host] if self._screen else None
        if row:
            row.begin()
        response: Response[Any]
        try:
            if self._places:
                await self._places.make(host)
            response = await self._make(row.progress if row else None)
        except HostError as error:
            response = Response.of_failure(error, host)
        if row:
            row.end(response)
        return response


def _carry_out(given: Given, hosts: Inventory, make: Make, verbose: int, places: _Places | None = None) -> int:
    """Transfer, tell of it, and give the exit code."""
    names = [item.host for item in hosts.select(given.limit)]
    try:
        with _screen(names) as screen:
            responses = given.run(lambda: _Transfer(make, places, screen), hosts)
            if screen:
                screen.finish(responses)
    finally:
        if places:
            places.tidy()
    if given.output != "table":
        show(responses, given.output)
    else:
        _show(responses, verbose)
    if not responses:
        say("No host had anything to run.")
        return OK
    say(*map(_line, responses.failed))
    return exit_code(responses)


@contextlib.contextmanager
def _screen(hosts: Sequence[str]) -> Iterator[Screen | None]:
    """Show progress on standard error, if that is a terminal that can."""
    if not hosts or sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    console = Console(file=sys.stderr, highlight=False)
    if not console.is_interactive:
        yield None
        return
    from .screen import Screen

    with Screen(hosts, console) as screen:
        yield screen


# What is told of it


def _show(responses: Responses[Any], verbose: int) -> None:
    """Tell people what was done; nothing in a pipe, unless they ask."""
    fine = [response for response in responses if not response["error"]]
    if any(isinstance(response["value"], Report) for response in fine):
        if verbose or (sys.stdout is not None and sys.stdout.isatty()):
            with writing():
                for response in fine:
                    print(*_lines(response, verbose), sep="\n")
    elif verbose:
        show(fine, "table")


def _lines(response: Response[Report], verbose: int) -> Iterator[str]:
    """Tell what a synchronization did: the numbers, or the names, too."""
    report = response["value"]
    numbers = [f"{what} {len(names)}" for what, names in report.items() if names or what != "skipped"]
    yield f"{one_line(response['host'])}  {', '.join(numbers)}"
    if verbose:
        for what, names in report.items():
            yield from (f"    {what:7}  {one_line(name)}" for name in names)


def _line(response: Response[Any]) -> str:
    """Tell of a failure in one line."""
    text = str(response.to_error())
    for parameter, option in _OPTIONS.items():
        text = text.replace(parameter, option)
    return one_line(text)
