"""The inventory: which hosts there are, how to reach them, and which of them a run is for."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    SecretStr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from .descriptions import Described
from .errors import InventoryError, NoHostMatched
from .secrets import NAMES, Secret, concealed, masked

HostKeys = Literal["strict", "accept-new", "off"]
"""What to do with a host key that is not known: refuse, trust and remember it, or not even look."""


class _Model(Described):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)


class _Options(_Model):
    """A model that lets further options through, and shows none of their secrets."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _conceal(cls, data: Any) -> Any:
        """Take private keys that are given as text for secrets."""
        if not isinstance(data, Mapping):
            return data
        return {name: value if name in NAMES else concealed(str(name), value) for name, value in data.items()}

    def options(self) -> dict[str, Any]:
        """Give the options that were set, secrets as ``SecretStr``."""
        declared = (name for name in type(self).model_fields if name in self.model_fields_set)
        return {name: getattr(self, name) for name in (*declared, *(self.model_extra or ()))}

    @model_serializer(mode="wrap")
    def _mask(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Mask in JSON what ``SecretStr`` does not: private keys that are given as text."""
        data: dict[str, Any] = handler(self)
        return dict(masked(data)) if info.mode == "json" else data

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        return masked(self.options())


def _host_name(value: str) -> str:
    if not value or any(character.isspace() or character in ",\0" for character in value):
        raise ValueError("a host needs a name or an address, without spaces and commas")
    return value


class Connection(_Options):
    """How to reach a host. Options that are not named here go to ``asyncssh.connect()`` as they are."""

    host: Annotated[str, AfterValidator(_host_name)]
    """Name or address; hosts of an inventory are told apart by it."""
    address: str | None = None
    """The name or address to connect to, where it is not ``host`` (``HostName`` in ssh_config(5))."""
    port: int | None = Field(default=None, ge=1, le=65535)
    """TCP port; 22 by default."""
    username: str | None = None
    """The user to log in as; the local user by default."""
    password: Secret = None
    """The user's password. Given one and no ``client_keys``, no key is tried."""
    passphrase: Secret = None
    """The passphrase of the private keys."""
    host_keys: HostKeys = "strict"
    """``strict``: the key must be known. ``accept-new``: a new host's key is trusted and remembered,
    a changed one is refused. ``off``: any key is taken (nothing protects against an impostor)."""
    max_sessions: int = Field(default=8, ge=1)
    """How many commands and file transfers may run at the same time on the host (sshd allows 10)."""
    runner: bool = False
    """Whether commands run in a small program on the host, which is there as long as the connection, instead of
    a session of SSH each: faster, above all over a distance. It needs ``python3`` there; without it, and for
    what needs a session of its own, all is as ever."""

    if TYPE_CHECKING:
        # For type checkers, which do not know that further options are let through.
        def __init__(
            self,
            *,
            host: str,
            address: str | None = None,
            port: int | None = None,
            username: str | None = None,
            password: str | SecretStr | None = None,
            passphrase: str | SecretStr | None = None,
            host_keys: HostKeys = "strict",
            max_sessions: int = 8,
            runner: bool = False,
            **options: Any,
        ) -> None: ...


class Session(_Options):
    """How commands run on a host: options of asyncssh's ``create_session()``."""

    if TYPE_CHECKING:

        def __init__(self, **options: Any) -> None: ...


_USER_NAME = r"[^\u0000-\u0020\u007f:/#-][^\u0000-\u0020\u007f:/]{0,255}"


def _user_name(value: str) -> str:
    if not re.fullmatch(_USER_NAME, value):
        raise ValueError(
            "a user's name has no spaces, colons and slashes, and does not begin with a hyphen or a number sign"
        )
    return value


UserName = Annotated[str, AfterValidator(_user_name), Field(json_schema_extra={"pattern": f"^{_USER_NAME}$"})]
"""The name of a user on a host."""


class Authentication(_Model):
    """Who to become on a host. A password may be a reference, see :mod:`reemote.core.secrets`."""

    sudo_password: Secret = None
    """The password that sudo asks for."""
    sudo_user: UserName | None = None
    """The user that sudo changes to; root by default."""
    su_user: UserName | None = None
    """The user that su changes to; root by default."""
    su_password: Secret = None
    """The password of that user."""


class InventoryItem(_Model):
    """One host of an inventory."""

    connection: Connection
    """How to reach it."""
    session: Session = Field(default_factory=Session)
    """How commands run on it."""
    authentication: Authentication = Field(default_factory=Authentication)
    """Who to become on it."""
    groups: list[str] = Field(default_factory=lambda: ["all"])
    """The groups it belongs to, besides ``all``."""

    @property
    def host(self) -> str:
        """The name of the host."""
        return self.connection.host

    def is_in(self, group: str | None) -> bool:
        """Whether the host belongs to *group*: an exact name; ``all`` and ``None`` are every host."""
        return group is None or group == "all" or group in self.groups


class Inventory(_Model):
    """The hosts that a deployment may run on; ``connection.host`` is unique."""

    hosts: list[InventoryItem]
    """The hosts, in the order in which their responses come."""

    @model_validator(mode="after")
    def _hosts_are_unique(self) -> Inventory:
        seen: dict[str, int] = {}
        for index, item in enumerate(self.hosts):
            first = seen.setdefault(item.host, index)
            if first != index:
                raise ValueError(f"hosts[{index}] is {item.host!r}, and hosts[{first}] is, too: each host once")
        return self

    @classmethod
    def of(cls, source: Inventory | Mapping[str, Any] | str | os.PathLike[str]) -> Inventory:
        """Make an inventory of an object, a dictionary, JSON text, or the path of a JSON file.

        Raises:
            InventoryError: The file cannot be read, is no JSON, or has the wrong shape.
        """
        if isinstance(source, Inventory):
            return source
        if isinstance(source, Mapping):
            return cls._read(source, "inventory")
        if isinstance(source, str) and (source.lstrip("\ufeff \t\r\n")[:1] in ("{", "[", '"') or "\n" in source):
            return cls._parse(source.removeprefix("\ufeff"), "inventory")
        if isinstance(source, str | os.PathLike):
            return cls.load(source)
        raise InventoryError(
            f"an inventory is an Inventory, a dictionary, or the path of a JSON file, not {type(source).__name__}"
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Inventory:
        """Read the inventory from a JSON file.

        Raises:
            InventoryError: The file cannot be read, is no JSON, or has the wrong shape.
        """
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except OSError as error:
            raise InventoryError(f"{path}: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise InventoryError(f"{path}: not UTF-8 text (byte {error.start})") from None
        except ValueError as error:
            raise InventoryError(f"{str(path)!r} is no path: {error}") from None
        return cls._parse(text, str(path))

    @classmethod
    def _parse(cls, text: str, where: str) -> Inventory:
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise InventoryError(f"{where}: not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from None
        except RecursionError:
            raise InventoryError(f"{where}: not an inventory: nested too deeply") from None
        return cls._read(data, where)

    @classmethod
    def _read(cls, data: Any, where: str) -> Inventory:
        if not isinstance(data, Mapping):
            shape = '{"hosts": [{"connection": {"host": ...}}]}'
            raise InventoryError(f"{where}: an inventory is an object, {shape}, not {_json_name(data)}")
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise InventoryError(f"{where}: " + "; ".join(complaints(error))) from None

    def select(self, limit: str | Sequence[str] | None = None) -> list[InventoryItem]:
        """Give the hosts that *limit* selects, in inventory order.

        A limit is a list of terms, separated by commas. A term is the name of a host or of a group,
        or a glob (``*``, ``?``, ``[...]``) over both; upper and lower case differ. Numbers in brackets
        are ranges, as the command line shows them: ``web[08-10,20]`` is web08, web09, web10 and web20.

        - ``web`` adds the hosts that it names. Several add up: ``web,db``.
        - ``&prod`` keeps only the hosts that it names too.
        - ``!web03`` leaves out the hosts that it names.

        Whatever their order, the plain terms are read first (none stand for all hosts), then each
        ``&``, then each ``!``: ``web,&prod,!web03`` is the production web hosts without web03.

        Raises:
            NoHostMatched: Nothing is left, or a name without a glob is neither a host nor a group.
        """
        if limit is None:
            return list(self.hosts)
        texts = [limit] if isinstance(limit, str) else list(limit)
        terms = [term.strip() for text in texts for term in _SEPARATOR.split(text) if term.strip()]
        sign = {mark: [term[1:].strip() for term in terms if term[0] == mark] for mark in "&!"}
        plain = [term for term in terms if term[0] not in sign]
        if not terms:
            raise NoHostMatched("the limit is empty: name a host, a group or a glob, or give no limit")
        chosen = [item for item in self.hosts if not plain or any(m(item) for m in map(self._matcher, plain))]
        for matches in map(self._matcher, sign["&"]):
            chosen = [item for item in chosen if matches(item)]
        for matches in map(self._matcher, sign["!"]):
            chosen = [item for item in chosen if not matches(item)]
        if not chosen:
            raise NoHostMatched(f"the limit {','.join(terms)!r} matches none of the {len(self.hosts)} hosts")
        return chosen

    def _matcher(self, term: str) -> Callable[[InventoryItem], bool]:
        def named(item: InventoryItem) -> bool:
            return term in (item.host, "all") or term in item.groups

        alternatives = set(_alternatives(term))
        globs = [each for each in alternatives if any(character in each for character in "*?[")]

        def like(item: InventoryItem) -> bool:
            names = (item.host, "all", *item.groups)
            return not alternatives.isdisjoint(names) or any(fnmatchcase(n, each) for n in names for each in globs)

        if any(item.host == term or term in item.groups for item in self.hosts) or term == "all":
            return named
        if not any(character in term for character in "*?["):
            raise NoHostMatched(f"the limit names {term!r}, which is neither a host nor a group of the inventory")
        return like


_SEPARATOR = re.compile(r",(?![^\[\]]*\])")
"""A comma that is not between brackets."""

_NUMBERS = re.compile(r"\[(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)\]")
"""Numbers of hosts, as in ``web[01-12,20]``."""

_MOST_NUMBERS = 100_000


def _alternatives(term: str) -> Iterator[str]:
    """Give the globs that a term with ranges of numbers stands for: ``web[08-10]`` is web08, web09 and web10."""
    found = _NUMBERS.search(term)
    if found is None or not {"-", ","} & set(found[1]):
        yield term
        return
    for part in found[1].split(","):
        first, _, last = part.partition("-")
        numbers = range(int(first), int(last or first) + 1)
        if len(numbers) > _MOST_NUMBERS:
            raise NoHostMatched(f"the limit names more than {_MOST_NUMBERS:,} hosts by {part!r}")
        for number in numbers:
            for rest in _alternatives(term[found.end() :]):
                yield f"{term[: found.start()]}{number:0{len(first)}}{rest}"


def _json_name(value: Any) -> str:
    names = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def complaints(error: ValidationError) -> Iterator[str]:
    """Say what is wrong and where, without the values, which may be secret."""
    for complaint in error.errors(include_url=False, include_context=False, include_input=False):
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in complaint["loc"]).lstrip(".")
        text = complaint["msg"].removeprefix("Value error, ")
        if complaint["type"] == "extra_forbidden":
            text = "unknown key"
        elif complaint["type"] == "missing":
            text = "is missing"
        yield f"{place}: {text}" if place else text
