"""Where the product makes commands for hosts, found in its source, and what is wrong with how it makes them.

A text for a shell is made by ``shlex.join`` and in the modules that quote, nowhere else. So whatever goes to a place
that runs commands is followed back to where it comes from: through variables, parameters and the functions that
return it. A text that was put together on that way is a fault, unless all its parts are constants.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

Function = ast.FunctionDef | ast.AsyncFunctionDef

RUNS: dict[str, tuple[int, str]] = {
    "run": (0, "command"),
    "create_session": (1, "command"),
    "open_session": (0, "command"),
    "create_process": (0, "command"),
    "Request": (0, "command"),
    "LeanChannel": (2, "command"),
}
"""What takes a command: the place and the name of the argument."""

RETURNS = frozenset({"to_shell"})
"""Functions whose value is a command."""

BUILDS = frozenset({"format", "format_map", "join", "replace", "substitute", "safe_substitute", "__add__", "__mod__"})
"""Methods that make a text out of others."""

LOCAL = frozenset({"asyncio", "context", "subprocess", "runner", "posixpath"})
"""Names of what has a ``run`` that is not for hosts, or a ``join`` that is not for shells."""


class Site(NamedTuple):
    """A place that makes a command, or hands one on."""

    module: str
    function: str
    kind: str

    def __str__(self) -> str:
        return f"{self.module}:{self.function} {self.kind}"


class Fault(NamedTuple):
    """A text for a shell that is put together where nothing quotes."""

    module: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.text}"


@dataclass
class Scope:
    """The functions and classes around an expression, the innermost last."""

    module: Module
    inside: tuple[ast.AST, ...] = ()

    @property
    def name(self) -> str:
        """What it is called."""
        return ".".join(node.name for node in self.inside if isinstance(node, Function | ast.ClassDef))

    @property
    def function(self) -> Function | None:
        """The innermost function."""
        return next((node for node in reversed(self.inside) if isinstance(node, Function)), None)


@dataclass
class Module:
    """A module, parsed."""

    name: str
    tree: ast.Module
    scopes: dict[int, Scope] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._enter(self.tree, Scope(self))

    def _enter(self, node: ast.AST, scope: Scope) -> None:
        for child in ast.iter_child_nodes(node):
            self.scopes[id(child)] = scope
            is_scope = isinstance(child, Function | ast.ClassDef)
            self._enter(child, Scope(self, (*scope.inside, child)) if is_scope else scope)

    @cached_property
    def functions(self) -> Mapping[str, list[Function]]:
        """Its functions and methods by their names."""
        found: dict[str, list[Function]] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, Function):
                found.setdefault(node.name, []).append(node)
        return found

    def calls(self) -> Iterator[tuple[ast.Call, str, Scope]]:
        """Give all calls, the names of what is called, and where they are."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and (name := called(node)):
                yield node, name, self.scopes[id(node)]


def parsed(root: Path, package: str = "") -> list[Module]:
    """Parse all modules of a package."""
    modules = []
    for path in sorted(root.rglob("*.py")):
        parts = [package or root.name, *path.relative_to(root).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules.append(Module(name, ast.parse(path.read_text(encoding="utf-8"))))
    return modules


def called(call: ast.Call) -> str:
    """Give the last name of what is called."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _is_of(call: ast.Call, *names: str) -> bool:
    """Whether a function of one of these modules or objects is called."""
    function = call.func
    return isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id in names


def sites(modules: list[Module]) -> set[Site]:
    """Find all that make commands, or take them."""
    found = set()
    for module in modules:
        for call, name, scope in module.calls():
            if (name in RUNS and not _is_of(call, *LOCAL)) or name in ("_probe", "_wire", "framed"):
                found.add(Site(module.name, scope.name, name))
            elif _is_of(call, "shlex"):
                found.add(Site(module.name, scope.name, f"shlex.{name}"))
        for name in RETURNS:
            for function in module.functions.get(name, ()):
                scope = module.scopes[id(function)]
                found.add(Site(module.name, ".".join(filter(None, (scope.name, name))), "returns"))
    return found


class Lint:
    """Looks through modules for texts for shells that are put together.

    Args:
        modules: The modules.
        quoting: The names of those that may.
    """

    def __init__(self, modules: list[Module], quoting: frozenset[str] = frozenset()) -> None:
        self._modules = [module for module in modules if module.name not in quoting]
        self._takes = {name: {place} for name, place in RUNS.items()}
        self._faults: dict[tuple[str, int, int], Fault] = {}

    def faults(self) -> list[Fault]:
        """Find the faults."""
        known = -1
        while known != (known := sum(map(len, self._takes.values()))):  # until no further parameter turns up
            for module in self._modules:
                self._look_through(module)
        return sorted(self._faults.values())

    def _look_through(self, module: Module) -> None:
        for call, name, scope in module.calls():
            if _is_of(call, *LOCAL):
                continue
            for place, keyword in tuple(self._takes.get(name, ())):
                for value in _given(call, place, keyword):
                    self._follow(value, scope, frozenset())
            if _is_of(call, "shlex") and name == "join":
                for value in call.args:
                    self._follow(value, scope, frozenset())
        for name in RETURNS:
            for function in module.functions.get(name, ()):
                self._follow_returned(function, module, frozenset())

    def _follow(self, value: ast.AST, scope: Scope, seen: frozenset[int]) -> None:
        """Look at where a text comes from."""
        if id(value) in seen or is_constant(value, scope.module):
            return
        seen |= {id(value)}
        match value:
            case ast.JoinedStr() | ast.BinOp(op=ast.Mod()):
                self._complain(value, scope)
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                if not any(isinstance(side, ast.List | ast.Tuple) for side in (left, right)):
                    self._complain(value, scope)
                self._follow(left, scope, seen)
                self._follow(right, scope, seen)
            case ast.Call():
                self._follow_call(value, scope, seen)
            case ast.List(elts=words) | ast.Tuple(elts=words):
                for before, word in pairwise(words):
                    if isinstance(before, ast.Constant) and before.value == "-c":
                        self._follow(word, scope, seen)
            case ast.Name(id=name):
                self._follow_name(name, scope, seen)
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                for function in scope.module.functions.get(name, ()):
                    self._follow_returned(function, scope.module, seen)
            case ast.IfExp(body=first, orelse=second) | ast.NamedExpr(value=first, target=second):
                self._follow(first, scope, seen)
                self._follow(second, scope, seen)
            case ast.BoolOp(values=values):
                for each in values:
                    self._follow(each, scope, seen)
            case ast.Await(value=inner) | ast.Starred(value=inner):
                self._follow(inner, scope, seen)
            case _:
                pass

    def _follow_call(self, call: ast.Call, scope: Scope, seen: frozenset[int]) -> None:
        name = called(call)
        if _is_of(call, "shlex", *LOCAL):
            return  # the first is looked at by itself
        if name in BUILDS and isinstance(call.func, ast.Attribute):
            parts = [call.func.value, *call.args, *(each.value for each in call.keywords)]
            if not all(is_constant(part, scope.module) for part in parts):
                self._complain(call, scope)
        for function in scope.module.functions.get(name, ()):
            self._follow_returned(function, scope.module, seen)

    def _follow_returned(self, function: Function, module: Module, seen: frozenset[int]) -> None:
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and node.value is not None:
                self._follow(node.value, module.scopes[id(node)], seen)

    def _follow_name(self, name: str, scope: Scope, seen: frozenset[int]) -> None:
        function = scope.function
        for node in ast.walk(function or scope.module.tree):
            match node:
                case ast.Assign(targets=targets, value=value):
                    if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                        self._follow(value, scope, seen)
                case ast.AnnAssign(target=ast.Name(id=target), value=ast.AST() as value) if target == name:
                    self._follow(value, scope, seen)
                case ast.AugAssign(target=ast.Name(id=target), value=value) if target == name:
                    if not isinstance(value, ast.List | ast.Tuple):
                        self._complain(node, scope)
                case ast.NamedExpr(target=ast.Name(id=target), value=value) if target == name:
                    self._follow(value, scope, seen)
        if function is not None and (place := _parameter(function, name)) is not None:
            # Whoever calls this function gives the text.
            self._takes.setdefault(function.name, set()).add((place, name))

    def _complain(self, node: ast.AST, scope: Scope) -> None:
        line, column = getattr(node, "lineno", 0), getattr(node, "col_offset", 0)
        self._faults[scope.module.name, line, column] = Fault(scope.module.name, line, ast.unparse(node))


def is_constant(value: ast.AST, module: Module) -> bool:
    """Whether a text is always the same, whatever anybody gives."""
    match value:
        case ast.Constant():
            return True
        case ast.Name(id=name):
            return name.strip("_").isupper()  # the names of constants, also of other modules
        case ast.Attribute(attr=name):
            return name.strip("_").isupper()
        case ast.JoinedStr(values=parts):
            return all(isinstance(p, ast.Constant) or is_constant(getattr(p, "value", p), module) for p in parts)
        case ast.BinOp(left=left, right=right):
            return is_constant(left, module) and is_constant(right, module)
        case ast.IfExp(body=first, orelse=second):
            return is_constant(first, module) and is_constant(second, module)
        case _:
            return False


def _given(call: ast.Call, place: int, keyword: str) -> Iterator[ast.expr]:
    """Give what a call has for a parameter."""
    if len(call.args) > place and not any(isinstance(each, ast.Starred) for each in call.args[: place + 1]):
        yield call.args[place]
    yield from (each.value for each in call.keywords if each.arg == keyword)


def _parameter(function: Function, name: str) -> int | None:
    """Give the place of a parameter in calls; 99 where it has none."""
    names = [each.arg for each in (*function.args.posonlyargs, *function.args.args)]
    if name in names:
        return names.index(name) - (names[0] in ("self", "cls", "mcs"))
    return 99 if name in [each.arg for each in function.args.kwonlyargs] else None
