"""How a command is written for the host: frames of POSIX shell around it, where it needs one.

A command without variables, directory and privileges is sent as the user wrote it, for whichever login
shell there is. Everything else is a frame that the login shell hands to ``sh``. All that differs is in the
arguments of these scripts, each of them quoted once by :func:`shlex.join`; the scripts are constants. The
command is read by the login shell of the user who logs in, with sudo and su, too.
"""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Method = Literal["sudo", "su"]

LONGEST = 128 * 1024 - 1
"""Bytes of a command: Linux passes one argument of at most 128 KiB (MAX_ARG_STRLEN, execve(2))."""

# $group: the process group, by which others can end the command. The shell reads it without a process of its own.
_GROUP = "{ read -r _ _ _ _ group _ </proc/$$/stat; } 2>/dev/null || group=$(ps -o pgid= -p $$ 2>/dev/null)\n"

# $lifeline: the process of sshd that serves the connection. The watcher is a part of the group that it ends,
# and has no output, so that nobody waits for it.
_WATCH = """is_there() { if [ -d /proc/$$ ]; then [ -d "/proc/$1" ]; else ps -p "$1" >/dev/null 2>&1; fi; }
is_there "$lifeline" || { echo "the connection cannot be watched from here, so nothing is run" >&2; exit 126; }
(
    trap "" TERM HUP INT
    exec </dev/null >/dev/null 2>&1
    while kill -s 0 $$ && is_there "$lifeline"; do sleep 1; done
    kill -s 0 $$ || exit
    kill -s TERM -- "-$group"
    sleep 3
    kill -s KILL -- "-$group"
) &
"""

# $shell: the login shell of the user who logs in.
_PLAIN = "shell=${SHELL:-/bin/sh} lifeline=$PPID\n"

# What is written to standard error before the first mark is noise of the login, then sudo's or su's, and what
# follows the second mark is the command's. A mark is handed over in two halves, since sudo shows the arguments of
# what it refuses, and a shell may show what it runs. Messages are to be in English; the command is to have its locale.
_FRONT = 'printf %s%s "$1" "$2" >&2; shift 2\nwas=${LC_ALL-}; LC_ALL=C; export LC_ALL\n'
_SUDO = (
    _FRONT + "prompt=$1$2 user=$3 inside=$4; shift 4\n"
    'exec sudo -S -p "$prompt" -u "$user" -- sh -c "$inside" sh "$was" "$PPID" "${SHELL:-/bin/sh}" "$@"'
)
# With a level above 1, bash does not take itself for the login shell of ssh, and reads no ~/.bashrc of the user.
_SU = (
    _FRONT + '[ "${SHLVL:-0}" -gt 0 ] 2>/dev/null || SHLVL=1; export SHLVL\n'
    "REEMOTE_LC_ALL=$was REEMOTE_LIFELINE=$PPID REEMOTE_SHELL=${SHELL:-/bin/sh}\n"
    "export REEMOTE_LC_ALL REEMOTE_LIFELINE REEMOTE_SHELL\n"
    'exec su "$1" -c "$2"'
)
_IN_SUDO = "was=$1 lifeline=$2 shell=$3; shift 3\n"
_IN_SU = (
    "was=$REEMOTE_LC_ALL lifeline=$REEMOTE_LIFELINE shell=$REEMOTE_SHELL\n"
    "unset REEMOTE_LC_ALL REEMOTE_LIFELINE REEMOTE_SHELL\n"
)
_MARK = (
    'if [ -n "$was" ]; then LC_ALL=$was; export LC_ALL; else unset LC_ALL; fi\n'
    + _GROUP
    + 'printf "%s%s%s\\n" "$1" "$2" "$group" >&2; shift 2\n'
)

# sudo runs the program itself, since a rule of sudoers may allow nothing else. So that the program is never taken
# for sudo, sudo is asked before: for the password, which it remembers for the children of this shell, and whether
# it allows the program.
_BARE = (
    _FRONT + "prompt=$1$2 mark=$3$4 user=$5 directory=$6 bytes=$7; shift 7\n"
    'command -v sudo >/dev/null || { echo "sudo: not found" >&2; exit 127; }\n'
)
_ASK = 'sudo -S -p "$prompt" -v || exit\n'
_MAY = (
    'sudo -n -l -u "$user" "$@" >/dev/null </dev/null ||'
    ' { echo "sudo does not allow this program as $user" >&2; exit 1; }\n'
)
_BEGIN = (
    'if [ -n "$was" ]; then LC_ALL=$was; export LC_ALL; else unset LC_ALL; LC_MESSAGES=C; export LC_MESSAGES; fi\n'
    + _GROUP
    + 'printf "%s%s\\n" "$mark" "$group" >&2\n'
    'if [ -n "$directory" ]; then cd -- "$directory" || exit; fi\n'
)
_RUN_BARE = 'sudo -n -u "$user" "$@"'

_ENTER = 'if [ -n "$1" ]; then cd -- "$1" || exit; fi; shift\n'
_EXPORT = 'number=$1; shift; while [ "$number" -gt 0 ]; do export "$1"; shift; number=$((number-1)); done\n'
_RUN = 'exec "$@"'
_RUN_SHELL = 'exec "$shell" -c "$1"'

# A terminal hands on bytes as they are, says nothing twice, and has no end of input: what comes in is counted.
_RAW = "stty raw -echo 2>/dev/null\n"
_NO_INPUT = "exec </dev/null\n"
_COUNT = "bytes=$1; shift\n"
_COUNTED, _COUNTED_END = 'head -c "$bytes" | {\n', "\n}"

KILL = (
    'kill -s TERM -- "-$1"; n=0\n'
    'while kill -s 0 -- "-$1" 2>/dev/null && [ $n -lt 30 ]; do sleep 0.1 2>/dev/null || sleep 1; n=$((n+1)); done\n'
    'kill -s KILL -- "-$1" 2>/dev/null; :'
)
"""Ends the process group that is its argument: SIGTERM, up to three seconds, SIGKILL."""

_SFTP_SERVER = (
    "for each in /usr/lib/openssh /usr/libexec/openssh /usr/lib/ssh /usr/libexec /usr/libexec/ssh /usr/lib"
    " /usr/local/libexec /usr/local/lib/openssh; do\n"
    '[ -x "$each/sftp-server" ] && printf %s%s "$1" "$2" && exec "$each/sftp-server"\n'
    "done\n"
    "exit 79"
)
"""Starts the host's SFTP server, after its two arguments on standard output; 79 where there is none."""


def nonce() -> str:
    """Make a word that nobody can know before."""
    return secrets.token_hex(16)


@dataclass(frozen=True)
class Become:
    """Who is to run a command."""

    method: Method
    user: str
    password: str | None = field(default=None, repr=False)
    """What sudo or su is told when it asks."""


@dataclass(frozen=True)
class Marks:
    """Words that nobody can know before: where in the output something begins."""

    start: str = field(default_factory=nonce)
    """From here on sudo or su writes."""
    prompt: str = field(default_factory=nonce)
    """sudo asks for the password."""
    open: str = field(default_factory=nonce)
    """From here on the command writes, after the number of its process group and a newline."""


def plain(command: str | Sequence[str], env: Mapping[str, str], directory: str | None, *, watched: bool = False) -> str:
    """Write a command that runs as the user who logs in.

    Variables are set on the way, since sshd drops those that ``AcceptEnv`` does not list.
    """
    if not env and directory is None and not watched:
        return command if isinstance(command, str) else shlex.join(["exec", *command])
    watch = _GROUP + _WATCH if watched else ""
    end, words = _end(command, env)
    return framed(_PLAIN + watch + _ENTER + end, _place(directory), *words)


def become(
    who: Become,
    marks: Marks,
    command: str | Sequence[str],
    env: Mapping[str, str],
    directory: str | None,
    *,
    watched: bool = False,
    terminal: int | None = None,
) -> str:
    """Write a command that sudo or su runs as another user.

    Args:
        who: The other user.
        marks: Where in the output sudo and the command begin.
        command: A command for the shell, or a program with its arguments.
        env: Variables.
        directory: Where it runs.
        watched: Whether it is ended when the connection is lost.
        terminal: Bytes of input, where it runs on a terminal.
    """
    end, words = _end(command, env)
    words = [_place(directory), *words]
    if terminal is not None:
        end = _COUNT + _COUNTED + end + _COUNTED_END if terminal else _NO_INPUT + end
        words = [words[0], *([str(terminal)] if terminal else []), *words[1:]]
    inside = _MARK + (_WATCH if watched else "") + _ENTER + end
    raw = _RAW if terminal is not None else ""
    start, opened = halves(marks.start), halves(marks.open)
    if who.method == "sudo":
        return framed(raw + _SUDO, *start, *halves(marks.prompt), who.user, _IN_SUDO + inside, *opened, *words)
    return framed(raw + _SU, *start, who.user, framed(_IN_SU + inside, *opened, *words))


def sftp_server(who: Become, marks: Marks) -> str:
    """Write the start of the host's SFTP server by sudo or su; its output begins after the first mark."""
    return become(who, marks, ["sh", "-c", _SFTP_SERVER, "sh", *halves(marks.start)], {}, None)


def bare(
    who: Become,
    marks: Marks,
    argv: Sequence[str],
    env: Mapping[str, str],
    directory: str | None,
    *,
    terminal: int | None = None,
) -> str:
    """Write a program that sudo itself is to run, without a shell.

    What ends it by a signal shows as exit status 128 and the signal's number, where there is a password.
    """
    words = [*(f"{name}={value}" for name, value in env.items()), "--", *argv]
    script = _BARE + (_ASK if who.password is not None else "") + ("" if env else _MAY) + _BEGIN
    if terminal is not None:
        script = _RAW + script + (_COUNTED + _RUN_BARE + _COUNTED_END if terminal else _NO_INPUT + _RUN_BARE)
    else:
        script += _RUN_BARE if who.password is not None else "exec " + _RUN_BARE
    marks_of = (*halves(marks.start), *halves(marks.prompt), *halves(marks.open))
    return framed(script, *marks_of, who.user, _place(directory), str(terminal or 0), *words)


def kept_shell(mark: str) -> str:
    """Write the start of a shell that reads what it runs from its input; the mark on both streams tells it is there."""
    return framed('printf %s%s "$1" "$2"; printf %s%s "$1" "$2" >&2; exec sh', *halves(mark))


def turn(command: str, mark: str) -> str:
    """Write a command for such a shell: after its output comes the mark, on the first stream with the exit status."""
    first, second = halves(mark)
    return (
        f"(eval {shlex.quote(command)}) </dev/null; "
        f"printf '%s%s%s\\n' {first} {second} \"$?\"; printf %s%s {first} {second} >&2\n"
    )


def halves(mark: str) -> tuple[str, str]:
    """Cut a mark in two, so that it is nowhere but where it is printed."""
    middle = len(mark) // 2
    return mark[:middle], mark[middle:]


def _end(command: str | Sequence[str], env: Mapping[str, str]) -> tuple[str, list[str]]:
    """Give the end of a script, and its arguments."""
    variables = [f"{name}={value}" for name, value in env.items()]
    words = [command] if isinstance(command, str) else list(command)
    run = _RUN_SHELL if isinstance(command, str) else _RUN
    return (_EXPORT + run, [str(len(variables)), *variables, *words]) if variables else (run, words)


def _place(directory: str | None) -> str:
    """Write a directory for ``cd``, which reads ``-`` and relative ones in ways of its own."""
    return directory or "" if not directory or directory.startswith("/") else f"./{directory}"


def framed(script: str, *arguments: str) -> str:
    """Write a command that has a POSIX shell run a script with arguments, whichever shell the user has."""
    return shlex.join(["exec", "sh", "-c", script, "sh", *arguments])
