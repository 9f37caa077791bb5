"""Operations: request models that carry themselves out."""

from __future__ import annotations

import asyncio
import enum
import pickle
import re
import warnings
from collections.abc import AsyncGenerator
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from reemote.core.errors import DeploymentError, ExecutionError
from reemote.core.host import Host
from reemote.core.operation import Effect, Local, Operation, Steps, step
from reemote.core.remote import Command, Remote
from reemote.core.response import Completed, Response
from reemote.execute import execute
from reemote.host import Getcontext, Shell
from reemote.system import Callback, Return
from reemote.testing import Fake


class GreetRequest(BaseModel):
    """As in the tutorial."""

    name: str = Field(default="no one", description="The name of the person to greet")


class Greet(Remote):
    """Greet somebody."""

    Model = GreetRequest

    async def execute(self) -> AsyncGenerator[Any, Any]:
        """Greet."""
        model_instance = self.Model.model_validate(self.kwargs)
        yield Shell(cmd=f"echo Hello {getattr(model_instance, 'name', '?')}")


def complaints(call: Any) -> dict[str, str]:
    """Give what is wrong with the arguments of a call, by parameter."""
    with pytest.raises(ValidationError) as caught:
        call()
    return {".".join(map(str, error["loc"])): error["type"] for error in caught.value.errors()}


async def commands(operation: Any, *hosts: str) -> list[str]:
    """Give the commands that an operation runs on one host that answers everything with nothing."""
    fake = Fake("web1")
    fake.on(ANY, lambda call: None)
    [response] = await execute(lambda: operation, inventory=fake.inventory, pool=fake)
    assert response["error"] is False
    return fake.commands("web1")


ANY = re.compile(".*")


# Model = X


async def test_model_as_in_the_tutorial() -> None:
    assert await commands(Greet(name="Joe")) == ["echo Hello Joe"]
    assert await commands(Greet()) == ["echo Hello no one"]


def test_a_class_with_a_model_has_its_fields_and_the_common_ones() -> None:
    assert set(Greet.model_fields) == {"name", "group", "sudo", "su", "sudo_user", "connection", "session"}
    assert Greet.model_fields["name"].description == "The name of the person to greet"
    assert Greet.Model is GreetRequest
    assert issubclass(Greet, GreetRequest)
    assert issubclass(Greet, Remote)
    assert Greet(name="Joe").name == "Joe"


def test_kwargs_are_what_was_given_and_the_model_declares() -> None:
    assert Greet().kwargs == {}
    assert Greet(name="Joe").kwargs == {"name": "Joe"}
    assert Greet(name="Joe", group="web", sudo=True).kwargs == {"name": "Joe"}
    assert Greet.model_validate({"name": "no one"}).kwargs == {"name": "no one"}  # given, though it is the default


def test_kwargs_are_what_was_understood() -> None:
    class Request(BaseModel):
        count: int
        words: list[str] = []

    class Repeat(Remote):
        Model = Request

    assert Repeat.model_validate({"count": "3"}).kwargs == {"count": 3}
    assert Request.model_validate(Repeat.model_validate({"count": "3"}).kwargs) == Request(count=3)


def test_without_a_model_kwargs_are_all_that_was_given() -> None:
    assert Shell.Model is Shell
    assert Shell(cmd="x", sudo=True).kwargs == {"cmd": "x", "sudo": True}


def test_common_kwargs_are_what_operations_of_a_kind_share() -> None:
    operation = Shell(cmd="x", sudo=True, group="web", name="a label", connection={"port": 2222})
    assert operation.common_kwargs == {"sudo": True, "group": "web", "connection": {"port": 2222}}
    assert Shell(cmd="x").common_kwargs == {}
    assert Return(value=3, group="web").common_kwargs == {"group": "web"}


def test_common_kwargs_can_be_handed_on() -> None:
    first = Greet(name="Joe", sudo=True, session={"term_type": "xterm"})
    second = Shell(cmd="x", **first.common_kwargs)
    assert (second.sudo, second.session, second.name) == (True, {"term_type": "xterm"}, None)


def test_the_model_may_change_what_all_operations_have() -> None:
    class Request(BaseModel):
        group: str = "databases"

    class Backup(Remote):
        Model = Request

    assert Backup().group == "databases"
    assert Backup(group="web").kwargs == {"group": "web"}


def test_the_model_keeps_its_validators() -> None:
    class Request(BaseModel):
        word: str

        @field_validator("word")
        @classmethod
        def _is_short(cls, value: str) -> str:
            if len(value) > 3:
                raise ValueError("too long")
            return value

    class Say(Remote):
        Model = Request

    assert Say.model_validate({"word": "abc"}).kwargs == {"word": "abc"}
    assert complaints(lambda: Say.model_validate({"word": "abcd"})) == {"word": "value_error"}


def test_a_lenient_model_does_not_make_the_operation_lenient() -> None:
    class Request(BaseModel):
        model_config = ConfigDict(extra="allow")

    class Say(Remote):
        Model = Request

    assert complaints(lambda: Say.model_validate({"word": 1})) == {"word": "extra_forbidden"}


def test_a_model_with_an_alias() -> None:
    class Request(BaseModel):
        user_name: str = Field(alias="userName")

    class Say(Remote):
        Model = Request

    operation = Say.model_validate({"userName": "joe"})
    assert Request.model_validate(operation.kwargs).user_name == "joe"


def test_a_subclass_has_the_fields_of_the_model_too() -> None:
    class Loudly(Greet):
        volume: int = 11

    loud = Loudly(name="Joe", volume=3)
    assert loud.kwargs == {"name": "Joe", "volume": 3}
    assert loud.Model.model_validate(loud.kwargs).model_dump(include={"name"}) == {"name": "Joe"}


def test_a_subclass_may_have_a_model_that_extends_the_other() -> None:
    class More(GreetRequest):
        polite: bool = False

    class Politely(Greet):
        Model = More

    assert Politely.model_validate({"name": "Joe", "polite": True}).kwargs == {"name": "Joe", "polite": True}
    assert Greet.Model is GreetRequest


# Arguments


def test_an_unknown_argument_is_an_error() -> None:
    assert complaints(lambda: Shell.model_validate({"cmd": "x", "command": "y"})) == {"command": "extra_forbidden"}
    assert complaints(lambda: Shell(cmd="x", user="joe")) == {"user": "extra_forbidden"}  # type: ignore[call-arg]
    assert complaints(lambda: Greet(who="Joe")) == {"who": "extra_forbidden"}  # type: ignore[call-arg]


def test_a_missing_argument_is_an_error() -> None:
    assert complaints(lambda: Shell()) == {"cmd": "missing"}  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({"cmd": 5}, {"cmd": "string_type"}),
        ({"cmd": None}, {"cmd": "string_type"}),
        ({"cmd": ["ls", "-l"]}, {"cmd": "string_type"}),
        ({"cmd": ""}, {"cmd": "string_too_short"}),
        ({"cmd": "a\0b"}, {"cmd": "value_error"}),
        ({"cmd": "x" * 131_072}, {"cmd": "value_error"}),
        ({"cmd": "x", "timeout": 0}, {"timeout": "greater_than"}),
        ({"cmd": "x", "timeout": -1}, {"timeout": "greater_than"}),
        ({"cmd": "x", "timeout": "soon"}, {"timeout": "float_parsing"}),
        ({"cmd": "x", "sudo": "perhaps"}, {"sudo": "bool_parsing"}),
        ({"cmd": "x", "group": 5}, {"group": "string_type"}),
        ({"cmd": "x", "cwd": ""}, {"cwd": "string_too_short"}),
        ({"cmd": "x", "env": {"1A": "x"}}, {"env": "value_error"}),
        ({"cmd": "x", "env": {"A": "x\0"}}, {"env": "value_error"}),
        ({"cmd": "x", "env": {"A;B": "x"}}, {"env": "value_error"}),
        ({"cmd": "x", "env": {"A": 1}}, {"env.A": "string_type"}),
        ({"cmd": "x", "connection": None}, {"connection": "dict_type"}),
        ({"cmd": "x", "connection": []}, {"connection": "dict_type"}),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_wrong_argument_is_an_error(arguments: Any, wrong: dict[str, str]) -> None:
    assert complaints(lambda: Shell(**arguments)) == wrong


def test_the_longest_command_is_what_linux_takes() -> None:
    assert len(Shell(cmd="x" * 131_071).cmd) == 131_071
    assert complaints(lambda: Shell(cmd="\u00e9" * 65_536)) == {"cmd": "value_error"}  # bytes count


def test_a_command_that_is_no_unicode_is_an_error() -> None:
    assert complaints(lambda: Shell(cmd="ls '\udcff'")) == {"cmd": "string_unicode"}


def test_arguments_have_names() -> None:
    with pytest.raises(TypeError, match="positional"):
        Shell("ls")  # type: ignore[call-arg]


def test_arguments_are_checked_before_any_host_is_asked() -> None:
    fake = Fake()

    def factory() -> Any:
        return Shell(cmd=5)  # type: ignore[arg-type]

    with pytest.raises(ValidationError):
        asyncio.run(execute(factory, inventory=fake.inventory, pool=fake))
    assert fake.calls == []


def test_defaults_are_not_shared() -> None:
    first = Shell(cmd="x")
    first.connection["port"] = 5
    assert Shell(cmd="x").connection == {}


def test_what_is_given_is_not_changed_by_the_operation() -> None:
    given: dict[str, Any] = {"port": 5}
    Shell(cmd="x", connection=given).connection["port"] = 6
    assert given == {"port": 5}


async def test_notes_on_self_are_allowed() -> None:
    class Notes(Remote):
        limit: int = 3

        async def execute(self) -> Steps:
            self.limit = 4
            self.seen = []  # no field: a note
            self.seen.append((yield Shell(cmd="one")))
            yield Return(value=[self.limit, len(self.seen)])

    notes = Notes()
    fake = Fake("web1")
    fake.on("one")
    [response] = await execute(lambda: notes, inventory=fake.inventory, pool=fake)
    assert response["value"] == [4, 1]
    assert len(notes.seen) == 1
    assert "seen" not in notes.model_dump()
    assert Notes().model_dump() == {**Notes(limit=3).model_dump()}


def test_two_operations_with_the_same_parameters_are_two() -> None:
    first, second = Shell(cmd="x"), Shell(cmd="x")
    assert first == first
    assert first != second
    assert len({first, second, first}) == 2


def test_operations_can_be_shown_and_stored() -> None:
    assert "cmd='uptime'" in repr(Shell(cmd="uptime"))
    operation = Shell(cmd="x", timeout=3, connection={"port": 5})
    for same in (pickle.loads(pickle.dumps(operation)), operation.model_copy(deep=True)):
        assert type(same) is Shell
        assert same.model_dump() == operation.model_dump()
        assert same.kwargs == operation.kwargs


# Names of types in annotations: this module has 'from __future__ import annotations'


def make_paint(base: type[Any]) -> type[Any]:
    class Colour(enum.Enum):
        RED = "red"

    class Paint(base):  # type: ignore[misc]
        colour: Colour

    return Paint


@pytest.mark.parametrize("base", [BaseModel, Operation, Remote, Local, Command])
def test_annotations_may_name_what_is_local(base: type[Any]) -> None:
    assert make_paint(base)(colour="red").colour.name == "RED"


def test_annotations_may_name_what_comes_later() -> None:
    class Tree(Remote):
        leaf: Leaf | None = None

    class Leaf(BaseModel):
        name: str = "leaf"

    assert Tree(leaf=Leaf()).leaf == Leaf()
    assert complaints(lambda: Tree.model_validate({"leaf": 5})) == {"leaf": "model_type"}


# Routes and effects


class GetatimeNs(Remote):
    """Get the time of the last access."""


class GetPackages(Remote):
    """Get the packages."""


class Named(Remote):
    """Have a route that the name does not give."""

    route = "called"


class UnderNamed(Named):
    """Have a route of one's own again."""


@pytest.mark.parametrize(
    ("operation", "route"),
    [
        (Shell, "shell"), (Getcontext, "getcontext"), (Return, "return"), (Callback, "callback"),
        (GetatimeNs, "getatime_ns"), (GetPackages, "get_packages"), (Named, "called"), (UnderNamed, "under_named"),
    ],
)  # fmt: skip
def test_routes_are_the_snake_case_of_the_class(operation: type[Operation[Any]], route: str) -> None:
    assert operation.route == route


def test_a_class_changes_something_unless_it_says_so() -> None:
    class Look(Remote):
        effect = Effect.READS

    class LookAgain(Look):
        pass

    assert (Remote.effect, Shell.effect) == (Effect.CHANGES, Effect.CHANGES)
    assert (Look.effect, LookAgain.effect, Getcontext.effect) == (Effect.READS,) * 3
    assert [*Effect] == ["reads", "changes", "ensures"]


def test_class_variables_are_no_parameters() -> None:
    class Fixed(Remote):
        effect = Effect.READS
        route = "fixed"
        LIMIT: ClassVar[int] = 3

    assert set(Fixed.model_fields) == set(Remote.model_fields)


# Overriding


async def test_a_command_is_one_line_of_shell() -> None:
    class Upper(Command[str]):
        word: Annotated[str, AfterValidator(str.strip)]

        def to_shell(self) -> str:
            return f"upper {self.word}"

        def parse(self, completed: Completed) -> str:
            return completed.stdout.upper()

    fake = Fake("web1")
    fake.on("upper a", stdout="a")
    fake.on("upper b", exit_status=2, stderr="no such word")
    [response] = await execute(lambda: Upper(word=" a "), inventory=fake.inventory, pool=fake)
    assert response == {"host": "web1", "value": "A", "changed": True, "error": False}
    [response] = await execute(lambda: Upper(word="b"), inventory=fake.inventory, pool=fake)
    assert response["value"] == "CommandFailed"
    assert response["detail"] == "exit status 2 of 'upper b': no such word"
    assert response["completed"]["exit_status"] == 2


async def test_a_command_without_parse_answers_with_its_record() -> None:
    class Sync(Command):
        effect = Effect.READS

        def to_shell(self) -> str:
            return "sync"

    fake = Fake("web1")
    fake.on("sync", stdout="x")
    [response] = await execute(lambda: Sync(sudo=True), inventory=fake.inventory, pool=fake)
    assert response["value"]["stdout"] == "x"
    assert response["changed"] is False
    assert fake.calls[0].options == {"check": True, "sudo": True, "su": False, "connection": {}, "session": {}}


async def test_shell_hands_all_its_arguments_to_the_host() -> None:
    fake = Fake("web1")
    fake.on("x")
    arguments: dict[str, Any] = {
        "env": {"A": "1"}, "cwd": "/tmp", "stdin": b"in", "timeout": 5.0, "check": True, "sudo": True, "su": False,
        "connection": {"port": 1}, "session": {"term_type": "xterm"},
    }  # fmt: skip
    await execute(lambda: Shell(cmd="x", **arguments), inventory=fake.inventory, pool=fake)
    assert fake.calls[0].options == arguments


async def test_a_subclass_may_override_what_an_operation_does() -> None:
    class Echo(Shell):
        def to_shell(self) -> str:
            return "unused"

        async def perform(self, host: Host) -> Completed:
            return await host.run(f"echo {self.cmd}")

    class Twice(Shell):
        async def execute(self) -> Steps:
            yield Shell(cmd=self.cmd)
            yield Shell(cmd=self.cmd)

    class TwiceAgain(Twice):
        pass

    assert await commands(Echo(cmd="x")) == ["echo x"]
    assert await commands(Twice(cmd="x")) == ["x", "x"]
    assert await commands(TwiceAgain(cmd="x")) == ["x", "x"]


async def test_a_primitive_may_say_whether_it_changed_something() -> None:
    class Touch(Remote[str]):
        effect = Effect.ENSURES

        async def perform(self, host: Host) -> Response[str]:
            return Response(value="already there", changed=False)

    fake = Fake("web1")
    [response] = await execute(Touch, inventory=fake.inventory, pool=fake)
    assert response == {"host": "web1", "value": "already there", "changed": False, "error": False}


@pytest.mark.parametrize("base", [Operation, Remote, Local])
async def test_a_class_that_overrides_neither(base: type[Operation[Any]]) -> None:
    class Neither(base):  # type: ignore[valid-type, misc]
        pass

    fake = Fake("web1")
    with pytest.raises(ExecutionError) as caught:
        await execute(Neither, inventory=fake.inventory, pool=fake)
    [error] = caught.value.exceptions
    assert isinstance(error, NotImplementedError)
    assert str(error) == "Neither overrides neither perform nor execute"


async def test_a_command_without_a_line() -> None:
    class Silent(Command):
        pass

    fake = Fake("web1")
    with pytest.raises(ExecutionError) as caught:
        await execute(Silent, inventory=fake.inventory, pool=fake)
    assert "Silent does not override to_shell" in str(caught.value.exceptions[0])


# Outside of a deployment


@pytest.mark.parametrize("what", [Shell(cmd="x"), Return(), object()], ids=lambda what: type(what).__name__)
async def test_a_step_outside_of_a_deployment(what: Any) -> None:
    name = type(what).__name__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DeploymentError, match=f"{name} was awaited outside of a deployment"):
            await step(what)


async def test_awaiting_outside_of_a_deployment() -> None:
    with pytest.raises(DeploymentError, match="await it in the execute method of a class, or use 'await execute"):
        await Shell(cmd="x")


async def test_a_deployment_does_not_go_on_after_its_end() -> None:
    fake = Fake("web1")
    fake.on("x")
    await execute(lambda: Shell(cmd="x"), inventory=fake.inventory, pool=fake)
    with pytest.raises(DeploymentError, match="outside of a deployment"):
        await Shell(cmd="x")
