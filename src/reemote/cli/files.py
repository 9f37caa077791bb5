"""``reemote put``, ``reemote get``, ``reemote sync``: files between this machine and the hosts."""

from __future__ import annotations

import contextlib
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
from ..core.response import Response
from ..host import Getcontext
from ..sftp import Get, Put, Report, Sync
from ..transfer.local import here
from ..transfer.place import missing
from ..transfer.target import PLACE, one_for_each
from .blocks import show
from .folding import fold
from .hosts import Given, Outcome, host_options, privilege_options
from .main import FAILED, Refused
from .messages import say
from .output import exit_code, is_terminal, one_line, writing
from .parameters import made
from .reporting import interactive
from .traces import explained
from .watching import Part, Prediction, Steps

if TYPE_CHECKING:
    from .bars import Bars

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


@click.command()
@click.argument("local", nargs=-1, required=True, callback=_named)
@click.argument("remote", callback=_named)
@host_options
@privilege_options
@_recurse
@_preserve
@_follow
@click.option("--checksum", is_flag=True, help="Leave files alone whose content is the same.")
@click.option("--in-place", is_flag=True, help="Write into files that are there, instead of replacing them.")
def put(given: Given, local: tuple[str, ...], remote: str, privileges: dict[str, Any], **how: Any) -> int:
    """Copy files and directories of this machine to hosts.

    REMOTE is the copy's path, or a directory for the copies; a relative path leads from where logins start.
    """
    _follow_named(how)
    for path in local:
        if stat.S_ISDIR(_mode(path, follow=how["follow_symlinks"])) and not how["recurse"]:
            raise Refused(f"{path!r} is a directory: --recurse copies it")

    def make(progress: ProgressHandler | None) -> Put:
        what = {"localpaths": list(local), "remotepath": remote, "progress_handler": progress}
        return made(Put, {**what, **privileges, **how})

    return _carry_out(given, given.load(), make)


@click.command()
@click.argument("remote", nargs=-1, required=True, callback=_named)
@click.argument("local", callback=_named)
@host_options
@privilege_options
@_recurse
@_preserve
@_follow
def get(given: Given, remote: tuple[str, ...], local: str, privileges: dict[str, Any], **how: Any) -> int:
    """Copy files and directories of hosts to this machine.

    LOCAL is the copy's path, or a directory for the copies. '{host}' in it stands for the host's name, and must be
    there for several hosts; directories that are missing are made then: 'logs/{host}/'.
    """
    _follow_named(how)
    hosts = given.load()
    number = len(hosts.select(given.limit))
    if number > 1 and _PLACE not in local:
        raise Refused(
            f"{number} hosts would write to {local!r}, each over the other's: put {_PLACE} into the path, "
            f"as in {posixpath.join(local, _PLACE, '')!r}"
        )

    def make(progress: ProgressHandler | None) -> Get:
        what = {"remotepaths": list(remote), "localpath": local, "progress_handler": progress}
        return made(Get, {**what, **privileges, **how})

    # In a dry run, too: nothing comes into them, so that they are removed again.
    places = _Places(local, is_directory=local.endswith("/") or len(remote) > 1) if _PLACE in local else None
    return _carry_out(given, hosts, make, places)


@click.command()
@click.argument("local", callback=_named)
@click.argument("remote", callback=_named)
@host_options
@privilege_options
@click.option("--delete", is_flag=True, help="Remove what is not in LOCAL from the hosts.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Names to leave alone: '*.pyc', '.git/', 'a/b'.")
@click.option("--checksum", is_flag=True, help="Compare files whose size and time are equal, too.")
def sync(
    given: Given, local: str, remote: str, privileges: dict[str, Any], exclude: tuple[str, ...], **how: Any
) -> int:
    """Make the directory REMOTE on hosts equal to the directory LOCAL of this machine."""
    if not stat.S_ISDIR(_mode(local, follow=True)):
        raise Refused(f"{local!r} is not a directory")

    def make(progress: ProgressHandler | None) -> Sync:
        what = {"localpath": local, "remotepath": remote, "exclude": list(exclude), "progress_handler": progress}
        return made(Sync, {**what, **privileges, **how})

    return _carry_out(given, given.load(), make)


def _follow_named(how: dict[str, Any]) -> None:
    """Follow the links that are named, as cp(1) does; within trees they are copied as links, unless asked."""
    how["follow_symlinks"] = how["follow_symlinks"] or not how["recurse"]


def _mode(path: str, *, follow: bool) -> int:
    """Ask what a path of this machine is: what is missing here should not be told by each host."""
    try:
        return Path(path).stat(follow_symlinks=follow).st_mode
    except OSError as error:
        raise Refused(f"{path!r} on this machine: {error.strerror}") from None


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

    def __init__(self, make: Make, places: _Places | None, screen: Bars | None) -> None:
        self._make = make
        self._places = places
        self._screen = screen

    async def execute(self) -> Response[Any]:
        """Carry out what was made."""
        host: str = (await Getcontext()).value.host
        try:
            if self._places:
                await self._places.make(host)
            return await self._make(self._screen.rows[host].progress if self._screen else None)
        except HostError as error:
            return Response.of_failure(error, host)


def _carry_out(given: Given, hosts: Inventory, make: Make, places: _Places | None = None) -> int:
    """Transfer, tell of it, and give the exit code."""
    make(None)  # what is wrong with it is to be told once
    given.ask(hosts)
    names = [item.host for item in hosts.select(given.limit)]
    prediction = Prediction()
    parts: list[Part] = [prediction] if given.check else []
    try:
        with _bars(names, dry_run=given.check) as screen:
            if screen:
                parts.append(screen.tell)
            elif given.verbose > 1:
                parts.append(Steps(dry_run=given.check))
            outcome = given.run(lambda: _Transfer(make, places, screen), hosts, *parts)
    finally:
        if places:
            places.tidy()
    _tell(given, outcome, prediction)
    outcome.close()
    code = exit_code(outcome.responses)
    return max(FAILED, code) if outcome.raised else code


@contextlib.contextmanager
def _bars(hosts: Sequence[str], *, dry_run: bool) -> Iterator[Bars | None]:
    """Show progress on standard error, if that is a terminal that can."""
    if not hosts or (console := interactive()) is None:
        yield None
        return
    from .bars import Bars

    with Bars(hosts, console, dry_run=dry_run) as screen:
        yield screen


# What is told of it


def _tell(given: Given, outcome: Outcome, prediction: Prediction) -> None:
    """Tell people what was done; nothing in a pipe, unless they ask."""
    if given.output != "table":
        show(outcome.responses, given.output)
    else:
        _show(given, outcome, prediction)
    if not outcome.responses and not outcome.raised:
        say("No host had anything to run.")
    say(*explained(outcome.raised))
    failed: dict[str, list[str]] = {}
    for response in outcome.responses.failed:
        failed.setdefault(_reason(response), []).append(response["host"])
    say(*(f"{one_line(fold(hosts))}: {reason}" for reason, hosts in failed.items()))


def _show(given: Given, outcome: Outcome, prediction: Prediction) -> None:
    fine = [response for response in outcome.responses if not response["error"]]
    if any(isinstance(response["value"], Report) for response in fine) and not (given.diff and prediction.diffs):
        if given.verbose or given.check or is_terminal(sys.stdout):
            with writing():
                print(*_reports(fine, given), sep="\n")
    elif given.verbose or given.check:
        show(fine, "table", dry_run=given.check, diffs=prediction.diffs if given.diff else None)


def _reports(responses: Sequence[Response[Report]], given: Given) -> Iterator[str]:
    """Tell what a synchronization did, once for all hosts where it did the same: the numbers, or the names, too."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for response in responses:
        alike.setdefault(tuple(_lines(response["value"], given)), []).append(response["host"])
    for (numbers, *names), hosts in alike.items():
        number = f" ({len(hosts)} hosts)" if len(hosts) > 1 else ""
        yield f"{one_line(fold(hosts))}{number}  {numbers}"
        yield from names


def _lines(report: Report, given: Given) -> Iterator[str]:
    numbers = ", ".join(f"{what} {len(names)}" for what, names in report.items() if names or what != "skipped")
    yield f"dry run: {numbers}" if given.check else numbers
    if given.verbose:
        for what, names in report.items():
            yield from (f"    {what:7}  {one_line(name)}" for name in names)


def _reason(response: Response[Any]) -> str:
    """Tell of a failure in one line."""
    text = str(response.to_error()).removeprefix(f"{response['host']}: ")
    for parameter, option in _OPTIONS.items():
        text = text.replace(parameter, option)
    return one_line(text)
