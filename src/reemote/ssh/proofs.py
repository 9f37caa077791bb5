"""What a run has learned of passwords for sudo and su: one that was refused is not tried again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from ..core.errors import PasswordRejected
from .wire import Become


class Proofs:
    """The passwords that are known to be right or wrong on one host; each failed attempt could lock the user out."""

    def __init__(self) -> None:
        self._right: set[Become] = set()
        self._wrong: dict[Become, str] = {}
        self._trials: dict[Become, asyncio.Lock] = {}

    @asynccontextmanager
    async def trial(self, who: Become | None) -> AsyncIterator[Callable[[], None]]:
        """Use a password inside of this context; at first one alone does, and calls what it gets once it was taken.

        Raises:
            PasswordRejected: It was refused before.
        """
        if who is None or who.password is None or who in self._right:
            yield _nothing
            return
        lock = self._trials.setdefault(who, asyncio.Lock())
        await lock.acquire()
        is_held = True

        def passed() -> None:
            nonlocal is_held
            self._right.add(who)
            if is_held:
                is_held = False
                lock.release()

        try:
            if who in self._right:
                passed()
            if who in self._wrong:
                raise PasswordRejected(self._wrong[who])
            yield passed
        except PasswordRejected as error:
            self._wrong[who] = error.detail
            raise
        finally:
            if is_held:
                lock.release()


def _nothing() -> None:
    """Take no note: it is known already."""
