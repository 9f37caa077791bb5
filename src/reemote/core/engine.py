"""The engine: drive a deployment's generators and coroutines, answer each step with a response.

It knows neither SSH nor connections: what a step does is the step's affair, what a host is the
transport's.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import AsyncGeneratorType
from typing import Any, cast

from .errors import CommandTimeout, DeploymentError, HostError
from .events import Emit, Place, StepFinished, StepStarted, place
from .host import Host
from .operation import Effect, Operation, running
from .response import Completed, Response, leaves


@dataclass(frozen=True, slots=True)
class Rules:
    """How the steps of a run are carried out."""

    strict: bool = False
    """Whether each step that fails raises."""
    dry_run: bool = False
    """Whether steps only say what they would change."""
    step_timeout: float | None = None
    """Seconds for each operation."""
    emit: Emit | None = None
    """Takes the events of the run, if anybody listens."""
    lines: bool = True
    """Whether the lines that commands write are among them."""


_DEFAULT = Rules()


class Deployment:
    """One ``execute`` in progress on one host: what its steps have answered so far."""

    __slots__ = ("changed", "host", "item", "last", "numbers", "ran", "rules")

    def __init__(self, host: Host, rules: Rules = _DEFAULT, numbers: Iterator[int] | None = None) -> None:
        self.host = host
        self.item = host.context.inventory_item
        self.rules = rules
        self.numbers = itertools.count(1) if numbers is None else numbers
        self.last: Response | None = None
        self.changed = False
        self.ran = False

    async def run(self, step: Any) -> Response:
        """Run a whole deployment; its response is false if the host ran nothing.

        Raises:
            Exception: What the deployment's own code raised. A :class:`HostError` that it let pass
                is the host's response instead.
        """
        running.set(self)  # the task's own context: it ends with the run
        try:
            response = await self.carry_out(step)
        except (HostError, ExceptionGroup) as error:
            found = list(leaves(error))
            if not all(isinstance(leaf, HostError) for leaf in found):
                raise
            failure = cast(HostError, found[0])
            return failure.response or Response.of_failure(failure, self.item.host)
        return cast(Response, response)

    async def carry_out(self, step: Any) -> Any:
        """Carry out *step*: an operation, an object with ``execute``, or a list of those."""
        if isinstance(step, list | tuple):
            return await self._at_the_same_time(step)
        if isinstance(step, Operation) and not self.item.is_in(step.group):
            return Response()
        try:
            if self.rules.emit is None:
                response = await self._one(step)
            else:
                response = await self._told(step, self.rules.emit)
        except HostError as error:
            self.ran = True
            self.last = error.response or Response.of_failure(error, self.item.host)
            self.changed = self.changed or self.last["changed"]
            raise
        if response:
            self.last = response
            self.ran = True
            self.changed = self.changed or response["changed"]
        return response

    async def _one(self, step: Any) -> Response:
        """Carry out one step that is for this host."""
        if isinstance(step, Operation):
            if type(step).execute is Operation.execute or self._is_predicted(step):
                return await self._perform(step)
        elif problem := complaint(step):
            raise DeploymentError(problem)
        return await self._compose(step)

    async def _told(self, step: Any, emit: Emit) -> Response:
        """Carry out one step, and tell of its beginning and its end."""
        host, number, above = self.item.host, next(self.numbers), place.get()
        name = getattr(step, "name", None)
        name = name if name and isinstance(name, str) else type(step).__name__
        parent = above.step if above and above.step else None
        emit(StepStarted(host=host, step=number, parent=parent, name=name, operation=step))
        start, response = time.perf_counter(), None
        token = place.set(Place(emit, host, number, self.rules.lines))
        try:
            response = await self._one(step)
        except HostError as error:
            response = error.response or Response.of_failure(error, host)
            raise
        finally:
            place.reset(token)
            seconds = time.perf_counter() - start
            emit(StepFinished(host=host, step=number, name=name, response=response or None, seconds=seconds))
        return response

    def _is_predicted(self, operation: Operation[Any]) -> bool:
        """Whether the operation says itself what it would do, in a dry run."""
        return self.rules.dry_run and type(operation).predict is not Operation.predict

    async def _answer(self, operation: Operation[Any]) -> Any:
        """Carry out an operation within its time; in a dry run, have it say what it would do."""
        predicts = self.rules.dry_run and operation.effect is not Effect.READS
        work = operation.predict if predicts else operation.perform
        if (seconds := self.rules.step_timeout) is None:
            return await work(self.host)
        before = self.host.interrupted
        try:
            async with asyncio.timeout(seconds) as limit:
                return await work(self.host)
        except TimeoutError:
            if not limit.expired():
                raise
        record = self.host.interrupted if self.host.interrupted is not before else None
        raise CommandTimeout(f"the step was not done within {seconds:g} s and was ended", completed=record)

    async def _perform(self, operation: Operation[Any]) -> Response:
        host = self.item.connection.host
        reads = operation.effect is Effect.READS
        try:
            answer = await self._answer(operation)
        except HostError as error:
            if error.response is not None:
                raise
            response = Response.of_failure(error, host, reads=reads)
            if self.rules.strict:
                raise response.to_error() from error
            return response
        if type(answer) is Response:
            response = self._whole(answer, changed=not reads)
            if self.rules.strict:
                response.raise_for_error()
            return response
        if self.rules.strict and isinstance(answer, Completed) and (failure := answer.failure()):
            raise Response.of_failure(failure, host, reads=reads).to_error()
        return Response(host=host, value=answer, changed=not reads, error=False)

    async def _compose(self, step: Any) -> Response:
        """Run a composite; its response is what it returns, else its last step's."""
        inner = Deployment(self.host, self.rules, self.numbers)
        token = running.set(inner)
        try:
            made = step.execute()
            if inspect.isasyncgen(made):
                await inner._drive(made, type(step).__name__)
                value = None
            elif inspect.isawaitable(made):
                value = await made
            else:
                raise DeploymentError(
                    f"{type(step).__name__}.execute is no 'async def': it answered with {_described(made)}"
                )
        finally:
            running.reset(token)
            self.changed = self.changed or inner.changed
            self.ran = self.ran or inner.ran
        if isinstance(value, Response):
            if value:
                return self._whole(value, changed=inner.changed)
            value = None
        if value is None and inner.last is not None:
            return inner.last
        if value is None and not inner.ran:
            return Response()
        return Response(host=self.item.host, value=value, changed=inner.changed, error=False)

    def _whole(self, answer: Response, *, changed: bool) -> Response:
        """Give a response that a deployment made what it lacks, and the name of this host."""
        host = self.item.host
        return Response({"host": host, "value": None, "changed": changed, "error": False} | answer | {"host": host})

    async def _drive(self, steps: AsyncGeneratorType[Any, Any], name: str) -> None:
        """Answer each ``yield`` with its response, or raise there what the step raised."""
        try:
            step = await anext(steps)
        except StopAsyncIteration:
            return
        while True:
            error: BaseException | None = None
            try:
                if problem := complaint(step):
                    line = steps.ag_frame.f_lineno if steps.ag_frame else 0
                    where = f"{steps.ag_code.co_filename}, line {line}"
                    raise DeploymentError(f"{name}.execute yielded {problem} ({where})")
                response = await self.carry_out(step)
            except BaseException as caught:
                error = caught
            try:
                # A cancellation goes through the deployment too: its finally blocks run, and may yield.
                step = await (steps.asend(response) if error is None else steps.athrow(error))
            except StopAsyncIteration:
                return

    async def _at_the_same_time(self, steps: Sequence[Any]) -> list[Any]:
        """Run all steps to their end, then answer with all responses, or raise what was raised."""
        answers = await asyncio.gather(*(self.carry_out(step) for step in steps), return_exceptions=True)
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise BaseExceptionGroup(f"{len(errors)} of {len(steps)} steps at the same time failed", errors)
        # The last in the list, not the last to end.
        self.last = _last(answers) or self.last
        return cast(list[Any], answers)


def complaint(step: Any) -> str | None:
    """Say why *step* cannot be carried out; ``None`` when it can."""
    if isinstance(step, Operation):
        return None
    if isinstance(step, list | tuple):
        problems = list(map(complaint, step))  # all of them: each coroutine in the list is closed
        return next((f"a list with {problem}" for problem in problems if problem), None)
    if isinstance(step, type):
        return f"the class {step.__name__} instead of an object of it: write {step.__name__}(...)"
    if callable(getattr(step, "execute", None)):
        return None
    if inspect.iscoroutine(step):
        step.close()
    return (
        f"{_described(step)}, which is no step: a step is an operation such as Shell(...), an object "
        "with an execute method, or a list of those"
    )


def _last(answer: Any) -> Response | None:
    """Give the last response of a step that ran, of lists in lists, too."""
    if isinstance(answer, list):
        return next(filter(None, map(_last, reversed(answer))), None)
    return answer or None


def _described(value: Any) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"
