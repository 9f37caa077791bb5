"""The program that runs commands on a host: it comes over standard input, and ends with the connection.

It is a constant, for whichever Python from 3.6 on the host has, and uses modules that are built into it, so that it
starts fast. Both ends send frames: a letter, the number of a command, the length of what follows (network byte order).

====== ======================= =============================================
Letter From the client         From the host
====== ======================= =============================================
R                              the program is ready
S      start: has input, text
F                              it could not be started: why
O, E                           standard output, standard error
I      input
E      the end of the input
W      so much output is taken so much input is taken
K      the name of a signal
X                              its end: ``s`` status, or ``k`` dumped, signal
C      close its pipes         its pipes are closed, and it has ended
====== ======================= =============================================

What is sent and not yet taken is bounded for each command in each direction, as it is for the channels of SSH.
"""

from __future__ import annotations

import shlex
import struct

from .wire import halves

HEADER = struct.Struct(">cII")

CHUNK = 64 * 1024
"""Bytes of the longest frame of output or input."""

WINDOW = 1024 * 1024
"""Bytes of a command's output, and of its input, that may be on their way."""

_LOADER = "import sys;exec(sys.stdin.buffer.read(int(sys.argv[1]))) # reemote"

_SCRIPT = (
    '[ "${SSH_ORIGINAL_COMMAND+x}" ] && exit 79; command -v python3 >/dev/null 2>&1 || exit 79; '
    'printf %s%s "$1" "$2"; shift 2; set -- "$@" "$PPID"; [ "${LC_CTYPE+x}" ] || set -- "$@" LC_CTYPE; '
    'exec python3 -I -S -c "$@"'
)
"""Starts Python, after the two halves of a mark on standard output; 79 where there is none.

79, too, where the host has a command of its own for all sessions (``ForceCommand`` in sshd_config(5)): each command
is to pass through that. It hands on the process of the login shell, and the names of variables that Python itself may
have set.
"""

# The login shell stays, since what it was started with can only be read while it is there: its files may export
# variables, and are read again by the shell of each command.
_LAST = "; exit"


def starting(mark: str, size: int) -> str:
    """Write the command that starts Python, for a program of *size* bytes once the mark has come."""
    return shlex.join(["sh", "-c", _SCRIPT, "sh", *halves(mark), _LOADER, str(size)]) + _LAST


PROGRAM = (
    f"CHUNK, WINDOW = {CHUNK}, {WINDOW}"
    r'''
import sys
if sys.version_info < (3, 6):
    sys.exit("Python 3.6 or newer is needed")
import errno, posix, pwd, select
import _signal as signal

FULL = 262144
LONGEST = 1048576
# Most commands end soon after their last output: that waits for so many turns, of a millisecond at the most, so that
# both go together.
SMALL, TURNS = 4096, 3
TAKEN = WINDOW // 4
# What Python ignores, and commands are not to.
RESET = [getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ", "SIGXFZ") if hasattr(signal, name)]
# sshd has names for these only.
NAMES = {}
for name in "ABRT ALRM FPE HUP ILL INT KILL PIPE QUIT SEGV TERM USR1 USR2".split():
    NAMES[getattr(signal, "SIG" + name)] = name.encode()


def read_variables(path):
    with open(path, "rb") as file:
        entries = file.read().split(b"\0")
    return dict(entry.split(b"=", 1) for entry in entries if entry.find(b"=") > 0)


def variables():
    """Give the variables that sshd gave to the login shell, before its files set others."""
    own = dict(posix.environ)
    try:
        first = read_variables("/proc/%s/environ" % sys.argv[2])
        if first and first.get(b"SSH_CONNECTION") == own.get(b"SSH_CONNECTION"):
            return first
    except (OSError, ValueError):
        pass
    for name in [b"_", b"SHLVL", b"PWD", b"OLDPWD"] + [word.encode() for word in sys.argv[3:]]:
        own.pop(name, None)
    return own


def account(environment):
    """Give the user's shell and home, as sshd finds them: a user number may have several names."""
    try:
        entry = pwd.getpwnam(environment.get(b"LOGNAME", b"").decode("utf-8", "surrogateescape"))
        if entry.pw_uid == posix.getuid():
            return [each.encode("utf-8", "surrogateescape") for each in (entry.pw_shell or "/bin/sh", entry.pw_dir)]
    except (KeyError, ValueError):
        pass
    return environment.get(b"SHELL") or b"/bin/sh", environment.get(b"HOME") or b"/"


def pipe(ours):
    ends = posix.pipe()
    posix.set_blocking(ends[ours], False)
    return ends


class Command:
    def __init__(self, number):
        self.number = number
        self.pid = 0
        self.outputs = {}
        self.window = WINDOW
        self.input = -1
        self.waiting = bytearray()
        self.is_last = False
        self.taken = 0
        self.has_ended = False


class Program:
    def __init__(self):
        self.environment = variables()
        self.shell, self.home = account(self.environment)
        self.name = self.shell.rsplit(b"/", 1)[-1]
        self.commands, self.pids, self.files = {}, {}, {}
        self.received, self.out = bytearray(), bytearray()
        self.turn = 0
        self.can_spawn = hasattr(posix, "posix_spawn")
        # While the client takes nothing, output is left where it is.
        self.all, self.calm = select.poll(), select.poll()
        self.wake, waker = pipe(0)
        posix.set_blocking(waker, False)
        signal.set_wakeup_fd(waker)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        for fd in (0, 1):
            posix.set_blocking(fd, False)
        for fd in (0, self.wake):
            self.watch(fd, select.POLLIN)
        self.is_writing = self.is_urgent = False
        self.send(b"R", 0)

    def watch(self, fd, events):
        self.all.register(fd, events)
        self.calm.register(fd, events)

    def forget(self, fd):
        self.all.unregister(fd)
        self.calm.unregister(fd)

    def send(self, kind, number, data=b""):
        self.is_urgent = self.is_urgent or kind not in b"OE"
        self.out += kind + number.to_bytes(4, "big") + len(data).to_bytes(4, "big")
        self.out += data

    def flush(self):
        try:
            while self.out:
                del self.out[: posix.write(1, self.out)]
        except BlockingIOError:
            pass
        self.is_urgent = bool(self.out)
        if self.is_writing != bool(self.out):
            self.is_writing = bool(self.out)
            if self.is_writing:
                self.watch(1, select.POLLOUT)
            else:
                self.forget(1)

    def run(self):
        """Serve until the client is gone."""
        turns = 0
        while True:
            if self.is_urgent or len(self.out) >= SMALL or turns >= TURNS:
                self.flush()
            is_idle = not self.out or self.is_writing
            ready = dict((self.calm if len(self.out) >= FULL else self.all).poll(None if is_idle else 1))
            turns = 0 if is_idle else turns + 1 if ready else TURNS
            if ready.pop(0, 0) and not self.receive():
                return
            if ready.pop(self.wake, 0):
                self.reap()
            ready.pop(1, 0)
            # Each turn begins with another one, so that nobody starves.
            files = list(ready)
            self.turn += 1
            first = self.turn % len(files) if files else 0
            for fd in files[first:] + files[:first]:
                command, kind = self.files.get(fd, (None, None))
                if kind == b"I":
                    self.feed(command)
                elif kind and len(self.out) < FULL:
                    self.read(command, fd, kind)

    def receive(self):
        try:
            data = posix.read(0, CHUNK)
        except BlockingIOError:
            return True
        received = self.received
        received += data
        start = 0
        while len(received) - start >= 9:
            size = int.from_bytes(received[start + 5 : start + 9], "big")
            if size > LONGEST:
                sys.exit("a frame is too long")
            end = start + 9 + size
            if len(received) < end:
                break
            number = int.from_bytes(received[start + 1 : start + 5], "big")
            self.obey(bytes(received[start : start + 1]), number, bytes(received[start + 9 : end]))
            start = end
        del received[:start]
        return bool(data)

    def obey(self, kind, number, data):
        if kind == b"S":
            self.start(Command(number), data)
            return
        command = self.commands.get(number)
        if command is None:
            return  # it has ended meanwhile
        if kind == b"I":
            if command.input >= 0:
                command.waiting += data
                self.feed(command)
            else:
                self.take(command, len(data))
        elif kind == b"E":
            command.is_last = True
            self.feed(command)
        elif kind == b"W":
            if not command.window:
                for fd in command.outputs:
                    self.all.register(fd, select.POLLIN)
            command.window += int.from_bytes(data, "big")
        elif kind == b"K":
            self.kill(command, data)
        elif kind == b"C":
            self.close_input(command)
            for fd in list(command.outputs):
                self.close(command, fd)
            self.settle(command)

    def kill(self, command, name):
        number = getattr(signal, "SIG" + name.decode("ascii", "replace"), None)
        if isinstance(number, int) and name.isalnum() and command.pid:  # 0 would be our own group
            try:
                posix.killpg(command.pid, number)
            except OSError:
                pass  # all of it has ended, or belongs to others

    def start(self, command, data):
        opened = []
        try:
            for ours in (1, 0, 0):
                opened += pipe(ours)
            stdin, feed, out, stdout, err, stderr = opened
            theirs = (stdin, stdout, stderr)
            self.go_home(stderr)
            command.pid = self.spawn(theirs, data[1:])
        except (OSError, ValueError) as error:
            for fd in opened:
                posix.close(fd)
            self.send(b"F", command.number, str(error).encode("utf-8", "replace"))
            return
        for fd in theirs:
            posix.close(fd)
        self.commands[command.number] = command
        command.input = feed
        self.files[feed] = command, b"I"
        for fd, kind in ((out, b"O"), (err, b"E")):
            command.outputs[fd] = kind
            self.files[fd] = command, kind
            self.all.register(fd, select.POLLIN)
        if data[:1] == b"\0":
            self.close_input(command)
        if command.pid:
            self.pids[command.pid] = command
        else:
            self.end(command, b"s" + (1).to_bytes(4, "big"))

    def go_home(self, stderr):
        try:
            posix.chdir(self.home)
        except OSError as error:
            self.say(stderr, b"Could not chdir to home directory " + self.home, error)
            posix.chdir("/")

    def say(self, stderr, what, error):
        posix.write(stderr, what + b": " + posix.strerror(error.errno).encode("utf-8", "replace") + b"\n")

    def spawn(self, files, text):
        """Start a shell that leads a session of its own; 0 where that cannot be executed, as it has told."""
        arguments = [self.name, b"-c", text]
        try:
            if self.can_spawn:
                actions = [(posix.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(files)]
                return posix.posix_spawn(
                    self.shell, arguments, self.environment, file_actions=actions, setsid=True, setsigdef=RESET
                )
        except (NotImplementedError, TypeError):
            self.can_spawn = False
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENOMEM):
                raise
            self.say(files[2], self.shell, error)
            return 0
        return self.fork(files, arguments)

    def fork(self, files, arguments):
        told, teller = posix.pipe()
        try:
            pid = posix.fork()
            if not pid:
                self.become(files, arguments)
            posix.close(teller)
            teller = -1
            posix.read(told, 1)  # until it has become the shell, and so leads its group
            return pid
        finally:
            posix.close(told)
            if teller >= 0:
                posix.close(teller)

    def become(self, files, arguments):
        try:
            posix.setsid()
            for number, fd in enumerate(files):
                posix.dup2(fd, number)
            for number in RESET:
                signal.signal(number, signal.SIG_DFL)
            posix.execve(self.shell, arguments, self.environment)
        except OSError as error:
            self.say(2, self.shell, error)
        finally:
            posix._exit(1)

    def read(self, command, fd, kind):
        """Take what a command has written; whether there was anything."""
        if not command.window:
            return False
        try:
            data = posix.read(fd, min(CHUNK, command.window))
        except BlockingIOError:
            return False
        if not data:
            self.close(command, fd)
            self.settle(command)
            return False
        self.send(kind, command.number, data)
        command.window -= len(data)
        if not command.window:
            for each in command.outputs:
                self.all.unregister(each)
        return True

    def close(self, command, fd):
        if command.window:
            self.all.unregister(fd)
        del command.outputs[fd], self.files[fd]
        posix.close(fd)

    def feed(self, command):
        """Write input that waits, as much as the command takes."""
        if command.input < 0:
            return
        try:
            while command.waiting:
                size = posix.write(command.input, command.waiting[:CHUNK])
                del command.waiting[:size]
                self.take(command, size)
        except BlockingIOError:
            self.watch(command.input, select.POLLOUT)
            return
        except OSError:
            self.close_input(command)  # nobody reads it
            return
        if command.is_last:
            self.close_input(command)
        else:
            self.unwatch(command.input)

    def unwatch(self, fd):
        try:
            self.forget(fd)
        except KeyError:
            pass  # it was never waited for

    def take(self, command, size):
        command.taken += size
        if command.taken >= TAKEN:
            self.send(b"W", command.number, command.taken.to_bytes(4, "big"))
            command.taken = 0

    def close_input(self, command):
        if command.input >= 0:
            self.unwatch(command.input)
            del self.files[command.input]
            posix.close(command.input)
            command.input = -1
            self.take(command, len(command.waiting))
            command.waiting = bytearray()

    def reap(self):
        try:
            posix.read(self.wake, CHUNK)
        except BlockingIOError:
            pass
        while self.pids:
            pid, status = posix.waitpid(-1, posix.WNOHANG)
            if not pid:
                return
            command = self.pids.pop(pid, None)
            if command is None:
                continue
            if posix.WIFSIGNALED(status):
                name = NAMES.get(posix.WTERMSIG(status), b"SIG@openssh.com")
                self.end(command, b"k" + (b"\1" if posix.WCOREDUMP(status) else b"\0") + name)
            else:
                self.end(command, b"s" + posix.WEXITSTATUS(status).to_bytes(4, "big"))

    def end(self, command, how):
        """Tell how a command has ended, after the output that is there."""
        for fd, kind in list(command.outputs.items()):
            while command.window and len(self.out) < FULL and self.read(command, fd, kind):
                pass
        self.close_input(command)
        self.send(b"X", command.number, how)
        command.has_ended = True
        self.settle(command)

    def settle(self, command):
        if command.has_ended and not command.outputs:
            del self.commands[command.number]
            self.send(b"C", command.number)


def close_others():
    """Close what the files of the login shell have opened, and so commands do not inherit it."""
    try:
        opened = [int(name) for name in posix.listdir("/dev/fd")]
    except (OSError, ValueError):
        opened = range(256)
    for fd in opened:
        if fd > 2:
            posix.closerange(fd, fd + 1)
    try:
        posix.fstat(2)
    except OSError:
        posix.open("/dev/null", posix.O_RDWR)  # so that no pipe gets its number


close_others()
try:
    Program().run()
except BrokenPipeError:
    pass  # the client is gone
'''
)
