"""How an SFTP session starts: by the host's own subsystem, or with sudo or su, for files of other users."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, cast

import asyncssh
from asyncssh.sftp import start_sftp_client

from ..core.errors import ConnectionLost, PrivilegeDenied
from .gate import PATIENCE, Gate
from .wire import Become, Marks, sftp_server

WINDOW = 16 * 1024 * 1024
"""Bytes that a host may send ahead on the channel of file transfers. How many are on their way is for
the transfers to say, by what they ask for."""

_NO_SERVER = 79

_Streams = tuple[asyncssh.SSHWriter[bytes], asyncssh.SSHReader[bytes], asyncssh.SSHReader[bytes]]


async def start(connection: asyncssh.SSHClientConnection, who: Become | None) -> asyncssh.SFTPClient:
    """Start an SFTP session whose channel takes much data at a time.

    The public ``connection.start_sftp_client()`` is these two calls, but keeps a window of 2 MiB: over a
    round trip of 50 ms that is 40 MiB/s at the most. And it knows of no other users.

    Raises:
        PrivilegeDenied: sudo or su does not start it, or there is no program to start.
    """
    if who is None:
        writer, reader, _ = await connection.open_session(subsystem="sftp", encoding=None, window=WINDOW)
    else:
        writer, reader = await _privileged(connection, who)
    loop = asyncio.get_running_loop()
    return await start_sftp_client(connection, loop, "backslashreplace", reader, writer, "utf-8", "surrogateescape", 3)


async def _privileged(
    connection: asyncssh.SSHClientConnection, who: Become
) -> tuple[asyncssh.SSHWriter[bytes], asyncssh.SSHReader[bytes]]:
    """Start the host's ``sftp-server`` as another user."""
    gate = Gate(who, Marks())
    streams: _Streams = await connection.open_session(sftp_server(who, gate.marks), encoding=None, window=WINDOW)
    writer, reader, errors = streams
    try:
        try:
            async with asyncio.timeout(PATIENCE):
                await _pass(gate, streams)
        except TimeoutError:
            raise gate.late() from None
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readuntil(gate.marks.start.encode())  # what the login prints is no SFTP
            return writer, reader
        raise await _no_server(writer, errors, who)
    except BaseException:
        writer.channel.close()
        raise


async def _pass(gate: Gate, streams: _Streams) -> None:
    """Give the password when asked, and wait until the command begins."""
    writer, reader, errors = streams
    while not gate.is_open:
        data = await errors.read(4096)
        gate.feed(data)
        if not data:
            gate.rest()
            text = (await reader.read(4096)).decode(errors="backslashreplace")
            status, signal = await _ending(writer)
            if status is None and signal is None:
                raise ConnectionLost("the connection was lost before the files could be had", outcome="not_started")
            raise gate.failure(status, text)
        if (answer := gate.answer()) is not None:
            writer.write(answer)


async def _no_server(
    writer: asyncssh.SSHWriter[bytes], errors: asyncssh.SSHReader[bytes], who: Become
) -> PrivilegeDenied:
    said = (await errors.read(4096)).decode(errors="backslashreplace").strip()
    status, _ = await _ending(writer)
    if status == _NO_SERVER:
        said = (
            f"the host has no program sftp-server, which files with {who.method} need (on Debian: openssh-sftp-server)"
        )
    return PrivilegeDenied(said or f"the host's sftp-server ended when {who.method} started it")


async def _ending(writer: asyncssh.SSHWriter[bytes]) -> tuple[int | None, Any]:
    """Wait until the channel is closed, and give the exit status and signal."""
    channel = cast(asyncssh.SSHClientChannel[bytes], writer.channel)
    await channel.wait_closed()
    return channel.get_exit_status(), channel.get_exit_signal()
