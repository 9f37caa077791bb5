"""Start ``reemote`` many times, and import it once: a process that has it in memory forks.

What is started is a process of its own all the same, with its own arguments, environment and end. Started as
a program itself, this module is the process that forks::

    python tests/server/starter.py SOCKET
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NoReturn, Self


class Program:
    """A program that was started: what :class:`subprocess.Popen` is to a child of this process."""

    def __init__(self, stdout: int, stderr: int, status: int) -> None:
        self.stdout = open(stdout)
        self._stderr = open(stderr)
        self._status = open(status)
        self.pid = int(self._status.readline())
        self.returncode: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait(30)
        for file in (self.stdout, self._stderr, self._status):
            file.close()

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the program has ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float) -> int:
        """Wait for its end, and give its exit code: that of a signal is negative."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            self.returncode = int(self._status.readline())
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for its end, and give what it has printed since; it is not much."""
        self.wait(timeout)
        return self.stdout.read(), self._stderr.read()


class Starter:
    """The process that starts others, as ``python -X dev -W error -m reemote`` would."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-X", "dev", "-W", "error", __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,  # programs have one, too, and their stream is made for it
            )

    def close(self) -> None:
        self._socket.close()
        out, _ = self._process.communicate(timeout=30)
        assert (self._process.returncode, out) == (0, b"")

    def start(self, *arguments: str, **environment: str) -> Program:
        """Start ``reemote`` here and now: with the directory and the environment of this moment."""
        request = [arguments, {**os.environ, **environment}, str(Path.cwd())]
        pipes = [os.pipe() for _ in range(3)]
        socket.send_fds(self._socket, [json.dumps(request).encode()], [theirs for _, theirs in pipes])
        for _, theirs in pipes:
            os.close(theirs)
        return Program(*(ours for ours, _ in pipes))


def main(connection: socket.socket) -> None:
    """Start what is asked for, until nobody can ask any more."""
    from reemote.cli.main import main as reemote
    from reemote.cli.serve import serve  # noqa: F401 - only to have it
    from reemote.server.app import App
    from reemote.server.settings import Settings

    App(Settings())  # the models of all requests are made once
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those that mind programs end by themselves
    while True:
        data, pipes, _, _ = socket.recv_fds(connection, 2**20, 3)
        if not data:
            return
        if os.fork() == 0:
            break
        for pipe in pipes:
            os.close(pipe)
    connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    stdout, stderr, status = pipes
    if (pid := os.fork()) != 0:
        mind(pid, status, stdout, stderr)
    os.close(status)
    for pipe, number in ((stdout, 1), (stderr, 2)):
        os.dup2(pipe, number)
        os.close(pipe)
    arguments, environment, directory = json.loads(data)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    reemote(arguments)


def mind(pid: int, status: int, *others: int) -> NoReturn:
    """Tell of a program's beginning, and of its end."""
    os.setsid()  # what the terminal sends is for the program
    for pipe in others:
        os.close(pipe)
    os.write(status, f"{pid}\n".encode())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(status, f"{code}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
