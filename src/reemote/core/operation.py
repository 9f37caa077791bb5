"""Operations: requests that know how to carry themselves out.

An operation *is* its pydantic request model. Its fields are the parameters of the Python
constructor, and of every other way to call it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Generator
from contextvars import ContextVar
from enum import StrEnum
from inspect import get_annotations
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, dataclass_transform

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo
from typing_extensions import TypeVar

from .descriptions import Described
from .errors import DeploymentError
from .host import Host
from .response import Response

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    # pydantic keeps the name of its metaclass private, and it may move.
    ModelMetaclass = type(BaseModel)

T = TypeVar("T", default=Any)

Steps = AsyncGenerator[Any, Any]
"""What a composite's ``execute`` is: operations out, responses in."""


class Effect(StrEnum):
    """What an operation does to a host."""

    READS = "reads"
    """It asks, and changes nothing."""
    CHANGES = "changes"
    """It changes something each time."""
    ENSURES = "ensures"
    """It brings about a state, and changes something only where the state is another."""


RESERVED = frozenset({"Model", "effect", "route", "kwargs", "common_kwargs", "perform", "predict", "execute"})
"""Names that parameters cannot have, besides those of pydantic's models."""


@dataclass_transform(kw_only_default=True, field_specifiers=(Field,))
class OperationMeta(ModelMetaclass):
    """Read ``Model = SomeRequest`` in a class as "it has the fields of SomeRequest"."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any) -> Any:
        """Make the class."""
        model = namespace.pop("Model", None)
        if model is not None and not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise TypeError(f"{name}.Model is {model!r}, which is no pydantic model")
        if model is not None and not any(issubclass(base, model) for base in bases):
            bases = (model, *bases)
        cls: Any = super().__new__(mcs, name, bases, namespace, **kwargs)
        if not cls.__pydantic_complete__:  # pydantic looked for local names of annotations here, not one frame up
            cls.model_rebuild(raise_errors=False, _parent_namespace_depth=3)
        if reserved := RESERVED & set(cls.model_fields):
            raise TypeError(
                f"{name} cannot have a parameter {min(reserved)!r}: every operation has something of that name"
            )
        cls.Model = model or cls
        if "route" not in namespace:
            cls.route = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
        return cls


class Operation(Described, Generic[T], metaclass=OperationMeta):
    """A request that can be carried out on a host.

    A subclass overrides :meth:`perform` (one piece of work) or :meth:`execute` (made of others).
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)

    Model: ClassVar[Any]  # a type of BaseModel; Any, so that checkers let its attributes pass
    effect: ClassVar[Effect] = Effect.CHANGES
    route: ClassVar[str]

    group: str | None = "all"
    """Run only on the hosts of this inventory group."""
    name: str | None = None
    """A label for logs and reports."""

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments that were given and that ``Model`` declares, as they were understood."""
        fields = self.Model.model_fields
        return {_accepted(fields[name], name): value for name, value in self._given() if name in fields}

    @property
    def common_kwargs(self) -> dict[str, Any]:
        """The given arguments that every operation of this kind shares, to hand on to others."""
        ours = (base for base in type(self).__mro__ if base.__module__.startswith(_CORE))
        common = {name for base in ours for name in get_annotations(base)} - {"name"}
        return {name: value for name, value in self._given() if name in common}

    def _given(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in type(self).model_fields if name in self.model_fields_set]

    # Two operations with the same parameters are two requests: asyncio.gather() must run both.
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def __setattr__(self, name: str, value: Any) -> None:
        """Let deployments keep notes on themselves, as on any object."""
        if name in type(self).model_fields:
            super().__setattr__(name, value)
        else:
            object.__setattr__(self, name, value)

    async def perform(self, host: Host) -> T | Response[T]:
        """Carry the request out on *host*: the only place where I/O happens.

        Answers with the value, or with a :class:`Response` where ``changed`` does not follow from
        ``effect``.
        """
        raise NotImplementedError(f"{type(self).__name__} overrides neither perform nor execute")

    async def predict(self, host: Host) -> T | Response[T]:
        """Say what :meth:`perform` or :meth:`execute` would do on *host*, and change nothing: for a dry run.

        Answers as :meth:`perform` does, with the ``changed`` that is to be expected; a key ``diff`` may
        hold a unified diff. By default the operation is ``skipped``. Operations that only read are
        performed instead; the steps of :meth:`execute` are predicted one by one unless this is overridden.
        """
        return skipped()

    def execute(self) -> Any:
        """Give the steps that this operation is made of.

        Overridden as an asynchronous generator that yields operations, or as a coroutine that
        awaits them.
        """
        raise NotImplementedError

    def __await__(self) -> Generator[Any, None, Response[T]]:
        """Run as a step of the deployment that awaits it."""
        return step(self).__await__()


def skipped(value: Any = None) -> Response[Any]:
    """Make the response of a step that a dry run leaves out, since nothing tells what it would do."""
    return Response(value=value, changed=False, skipped=True)


_CORE = __name__.rpartition(".")[0]


def _accepted(field: FieldInfo, name: str) -> str:
    """Give the name by which a model takes a field."""
    return field.validation_alias if isinstance(field.validation_alias, str) else name


class Running(Protocol):
    """A deployment in progress, as its steps see it."""

    changed: bool

    async def carry_out(self, step: Any) -> Any:
        """Carry out one step and answer with its response."""


running: ContextVar[Running] = ContextVar("reemote_running")
"""The deployment whose code is running in this task."""


async def step(what: Any) -> Any:
    """Run one step of the deployment that is running, and answer with its response.

    What ``await Shell(...)`` does for operations, this does for anything that may be yielded: a
    deployment class, or a list of steps that run at the same time. It is a coroutine, as
    ``TaskGroup.create_task`` needs one.

    Raises:
        DeploymentError: No deployment is running here, or *what* is no step.
    """
    deployment = running.get(None)
    if deployment is None:
        raise DeploymentError(
            f"{type(what).__name__} was awaited outside of a deployment, where there is no host to run it on: "
            "await it in the execute method of a class, or use 'await execute(lambda: ..., inventory=...)'"
        )
    return await deployment.carry_out(what)


class Local(Operation[T], Generic[T]):
    """An operation that needs no privileges on the host."""
