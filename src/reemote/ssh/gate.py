"""What stands between a command and its privileges: sudo or su, which may ask for a password.

The password is written once, and only after the prompt: a word that nobody can know before (sudo), or
su's own after such a word. What the command writes is known by another such word.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

from ..core.errors import HostError, PasswordRejected, PasswordRequired, PrivilegeDenied, TerminalRequired
from ..core.secrets import PlainBytes
from .wire import Become, Marks

PATIENCE = 30.0
"""Seconds for sudo and su to ask, or to run the command: a host's directory of users may be slow."""

LONGEST = 64 * 1024
"""Bytes that sudo and su may say before the command begins."""

LONGEST_NUMBER = 64
"""Bytes of the number of a process group; a host that sends more is not believed."""

MOST_SHOWN = 500
"""Characters of what they say that a failure shows."""

_SU_PROMPT = re.compile(rb"[Pp]assword[^\n]*: *\Z")

_REMEDY = "; in sudoers, 'Defaults:USER !requiretty' lets the login user do without"

_SAYS: tuple[tuple[str, type[PrivilegeDenied]], ...] = (
    (r"account|expired", PrivilegeDenied),
    (r"must have a tty|must be run from a terminal|a terminal is required to use|no tty present", TerminalRequired),
    (r"password is required|interactive authentication is required|no password was provided", PasswordRequired),
    (
        r"incorrect password|incorrect authentication|Sorry, try again|[Aa]uthentication fail|su: .*incorrect",
        PasswordRejected,
    ),
)
"""What sudo (1.9, sudo-rs) and su (util-linux, shadow, BusyBox) say in English; the first that fits is taken."""


class Gate:
    """Watches the stream on which sudo or su writes, until the command begins.

    Args:
        who: Who is to run the command.
        marks: The words to look for.
    """

    def __init__(self, who: Become, marks: Marks) -> None:
        self.who = who
        self.marks = marks
        self.news = asyncio.Event()
        """Something has happened that whoever waits at the gate may want to know."""
        self.is_open = False
        """Whether the command has begun."""
        self.group: int | None = None
        """The process group of the command."""
        self.prompts = 0
        """How often sudo or su has asked."""
        self._answers = 0
        self.began = False
        """Whether sudo or su was started."""
        self.before = 0
        """Bytes that came before that."""
        self._held = b""
        self._said = b""

    @property
    def said(self) -> str:
        """What sudo or su has said, as far as it is of interest."""
        lines = self._said.decode("utf-8", "backslashreplace").replace("\r", "").split("\n")
        return "\n".join(line.strip() for line in lines if line.strip() and not _SU_PROMPT.search(line.encode()))

    def feed(self, data: bytes) -> bytes:
        """Take what came, and give what is not sudo's or su's."""
        if self.is_open:
            return data
        passed = b"".join(self._passed(data))
        self.news.set()
        return passed

    def rest(self) -> bytes:
        """Give what was held back, when nothing follows."""
        rest, self._held = self._held, b""
        if self.began and not self.is_open:
            self._said += rest
            return b""
        return rest

    def _passed(self, data: bytes) -> Iterator[bytes]:
        self._held += data
        if not self.began:
            before, found, after = self._held.partition(self.marks.start.encode())
            if not found:
                before, self._held = without_part(self._held, self.marks.start.encode())
                self.before += len(before)
                yield before
                return
            self.before += len(before)
            yield before
            self.began, self._held = True, after
        before, found, after = self._held.partition(self.marks.open.encode())
        number, newline, rest = after.partition(b"\n")
        if found:
            self._listen(before)
            self._held = found + after
        if found and (newline or len(after) > LONGEST_NUMBER):
            # Signals to the groups 0 and 1 would go to others.
            self.group = int(number) if newline and number.strip().isdigit() and int(number) > 1 else None
            self.is_open, self._held = True, b""
            yield rest
        elif not found:
            heard, prompt, last = self._held.rpartition(self.marks.prompt.encode())
            last, self._held = without_part(last, self.marks.open.encode(), self.marks.prompt.encode())
            self._listen(heard + prompt + last)

    def _listen(self, heard: bytes) -> None:
        """Hear what sudo or su says: count the prompts, and keep the rest."""
        if self.who.method == "sudo":
            pieces = heard.split(self.marks.prompt.encode())
            self.prompts += len(pieces) - 1
            self._said = (self._said + b"\n".join(pieces))[-LONGEST:]
        else:
            self._said = (self._said + heard)[-LONGEST:]
            if _SU_PROMPT.search(self._said):
                self.prompts += 1
                self._said += b"\n"

    def failure(self, status: int | None, more: str = "") -> PrivilegeDenied:
        """Say why the command did not begin; *more* is what came besides."""
        who = self.who
        if not self.began:
            last = more.strip().rpartition("\n")[2]
            return PrivilegeDenied(
                f"the login shell did not start {who.method}, exit status {status}" + (f": {last}" if last else "")
            )
        said = self.said or more.strip()
        if "not allowed to execute" in said:
            return PrivilegeDenied(
                f"{who.method} does not allow this user to run a shell as {who.user}; what it does allow, "
                "host.Command(argv=[...]) runs without one"
            )
        kind = next((kind for text, kind in _SAYS if re.search(text, said)), PrivilegeDenied)
        if kind is PasswordRejected and who.password is None:
            kind = PasswordRequired
        if status == 127 and "not found" in said:
            return PrivilegeDenied(f"the host has no {who.method}")
        if kind is PasswordRequired and who.password is None:
            return self.password_required()
        words = said.replace("\n", "; ")[:MOST_SHOWN]
        if kind is PasswordRejected:
            return self.password_rejected(words)
        because = f": {words}" if words else f": {who.method} ended with exit status {status} and said nothing"
        if kind is TerminalRequired:
            return TerminalRequired(f"{who.method} works on a terminal only{because}{_REMEDY}")
        if kind is PasswordRequired and not self.prompts:
            return PasswordRequired(
                f"{who.method} asks for a password for this program, and asked for none before: it may not be allowed"
                f"{because}"
            )
        if kind is PasswordRequired:
            return PasswordRequired(
                f"{who.method} took the password, and asks for it again (timestamp_timeout=0 in sudoers?): a program "
                f"without a shell cannot answer; allow it with NOPASSWD, or use Shell{because}"
            )
        return PrivilegeDenied(f"no privileges of {who.user} by {who.method}{because}")

    def answer(self) -> PlainBytes | None:
        """Give the line that answers a prompt that has had no answer; ``None`` where there is none.

        Raises:
            PasswordRequired: There is no password.
            PasswordRejected: It cannot be given in one line, or was given and is asked for again.
        """
        if self.prompts <= self._answers:
            return None
        if self.who.password is None:
            raise self.password_required()
        if any(character in self.who.password for character in "\n\r\0"):
            raise PasswordRejected(f"a password with a line break or NUL in it cannot be given to {self.who.method}")
        if self._answers:
            raise self.password_rejected()
        self._answers += 1
        return PlainBytes(self.who.password.encode("utf-8", "surrogateescape") + b"\n")

    def password_required(self) -> PasswordRequired:
        """Make the failure of one who has no password."""
        key = f"authentication.{self.who.method}_password"
        return PasswordRequired(
            f"{self.who.method} asks for a password, and there is none: set {key} in the inventory, or have the "
            f"command line ask for it (--ask-{self.who.method}-pass)"
        )

    def password_rejected(self, words: str = "") -> PasswordRejected:
        """Make the failure of one whose password is wrong."""
        method, said = self.who.method, f": {words}" if words else ""
        return PasswordRejected(f"{method} does not accept the password (authentication.{method}_password){said}")

    def late(self) -> HostError:
        """Make the failure of one who waited in vain."""
        said = self.said.rpartition("\n")[2]
        return PrivilegeDenied(
            f"{self.who.method} neither asked for a password nor ran the command within {PATIENCE:g} s"
            + (f"; it says {said!r}" if said else ""),
            outcome="unknown",
        )


def without_part(data: bytes, *words: bytes) -> tuple[bytes, bytes]:
    """Split off an end that may be the beginning of one of *words*."""
    most = max(map(len, words))
    for length in range(min(most - 1, len(data)), 0, -1):
        if any(word.startswith(data[-length:]) for word in words):
            return data[:-length], data[-length:]
    return data, b""
