"""System: steps that run in this process, not on the host."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Generic

from typing_extensions import TypeVar

from .core.host import Host
from .core.operation import Effect, Local, running
from .core.response import Response

T = TypeVar("T", default=Any)


class Return(Local[T], Generic[T]):
    """Answer with a value; as the last step of a class it is that class's response."""

    value: T = None  # type: ignore[assignment]
    """The value of the response."""
    changed: bool | None = None
    """Whether something changed; by default, whether a step before it in the same class did."""

    async def perform(self, host: Host) -> Response[T]:
        """Make the response."""
        changed = running.get().changed if self.changed is None else self.changed
        return Response(value=self.value, changed=changed)

    async def predict(self, host: Host) -> Response[T]:
        """Make the response: it changes nothing on the host."""
        return await self.perform(host)


class Callback(Local[Any]):
    """Call a Python function with the host's context, and answer with what it returns.

    It counts as an operation that reads, so that a dry run calls it, too.
    """

    effect = Effect.READS

    callback: Callable[..., Any]
    """The function, asynchronous or not; its one argument is the context. The response reports
    ``changed: false``, unless the function returns a ``Response``, which says so itself."""

    async def perform(self, host: Host) -> Any:
        """Call the function."""
        answer = self.callback(host.context)
        return await answer if inspect.isawaitable(answer) else answer
