"""A file of this machine that takes a command's output as it comes."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from ..core.files import File

HIGH, LOW = 4 * 1024 * 1024, 1024 * 1024
"""Bytes that wait to be written when the host is asked to pause, and when to go on."""


class Sink:
    """Writes what it takes to an open file, beside the command.

    Where that fails, the rest is thrown away, and :meth:`finish` raises; the command is not held up.
    """

    def __init__(self, file: File) -> None:
        self._file = file
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._offset = 0
        self._channel: Any = None
        self._is_paused = False
        self._news = asyncio.Event()
        self._ended = False
        self.error: Exception | None = None
        """What went wrong in writing."""
        self._task = asyncio.create_task(self._write())

    def throttle(self, channel: Any) -> None:
        """Pause *channel* when it brings more than can be written."""
        self._channel = channel

    def take(self, data: bytes) -> None:
        """Take the next bytes."""
        if self.error is not None:
            return
        self._waiting.append(data)
        self._bytes += len(data)
        if self._bytes > HIGH and not self._is_paused and self._channel is not None:
            self._is_paused = True
            self._channel.pause_reading()
        self._news.set()

    async def finish(self) -> None:
        """Write what waits.

        Raises:
            HostError: The file could not be written.
        """
        self._ended = True
        self._news.set()
        await self._task
        if self.error is not None:
            raise self.error

    async def close(self) -> None:
        """Stop, wherever it is."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _write(self) -> None:
        try:
            while True:
                while self._waiting:
                    data = self._waiting.popleft()
                    await self._file.write(data, self._offset)
                    self._offset += len(data)
                    self._bytes -= len(data)
                    self._go_on()
                if self._ended:
                    return
                self._news.clear()
                await self._news.wait()
        except Exception as error:
            self.error = error
            self._waiting.clear()
            self._bytes = 0
            self._go_on()

    def _go_on(self) -> None:
        if self._is_paused and self._bytes < LOW:
            self._is_paused = False
            self._channel.resume_reading()
