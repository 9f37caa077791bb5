"""What ``bench/internal.py`` measures: questions of ours on a warm connection, one after the other.

An answer must hold a word that only this run knows.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable, Callable

import asyncssh

from reemote import Pool
from reemote.ssh.host import SshHost

from .clients import CONNECTED, Clock, Heard, Spec, Task, inventory_of

Question = Callable[[SshHost, str], Awaitable[str]]


async def command(host: SshHost, word: str) -> str:
    """Run a command as users do, in a session of its own."""
    return (await host.run(f"echo {word}")).stdout


async def question(host: SshHost, word: str) -> str:
    """Run a command of ours in the shell that the connection keeps."""
    return (await host.run(f"echo {word}", question=True)).stdout


async def script(host: SshHost, word: str) -> str:
    """Run a script of ours there, in a shell of its own, as the queries of packages are."""
    return (await host.run(shlex.join(["exec", "sh", "-c", 'echo "$1"', "sh", word]), question=True)).stdout


async def file(host: SshHost, word: str) -> str:
    """Ask for something about a file, over SFTP."""
    async with host.sftp() as files:
        return (await files.realpath(word)).decode().rpartition("/")[2]


QUESTIONS: dict[str, Question] = {"command": command, "question": question, "script": script, "file": file}
"""By the name of the task."""


def reemote_tasks() -> dict[str, Task]:
    return {name: ours(ask) for name, ask in QUESTIONS.items()}


def ours(ask: Question) -> Task:
    async def work(spec: Spec, clock: Clock) -> Heard:
        [item] = inventory_of(spec).hosts
        async with Pool() as pool, pool.host(item) as host:
            await ask(host, CONNECTED)
            with clock:
                heard = [await ask(host, f"{spec.word}-{number}") for number in range(spec.commands)]
        return {item.host: heard}

    return lambda spec, clock: asyncio.run(work(spec, clock))


def asyncssh_tasks() -> dict[str, Task]:
    async def work(spec: Spec, clock: Clock) -> Heard:
        [host] = spec.hosts
        login = {"username": spec.username, "client_keys": [spec.key], "known_hosts": spec.known_hosts}
        async with asyncssh.connect(host, spec.port, **login) as connection:
            await connection.run(f"echo {CONNECTED}", check=True)
            with clock:
                heard = [str((await connection.run(text, check=True)).stdout) for text in spec.texts]
        return {host: heard}

    return {"command": lambda spec, clock: asyncio.run(work(spec, clock))}
