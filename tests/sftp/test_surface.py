"""The surface of the file operations: the routes and parameters that others rely on, and those of asyncssh."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncssh
import httpx2
import pytest

from reemote import sftp
from reemote.core.catalogue import operations, parameters, summary, value_type
from reemote.core.errors import ConnectionRefused
from reemote.core.operation import Effect, Operation
from reemote.core.remote import Privileged
from tests.server.inprocess import Served, client, served

NULL: Any = None
ATTRIBUTES = {"permissions": None, "uid": None, "gid": None, "atime": None, "mtime": None}
NEEDED = object()
BLOCKS = {"block_size": -1, "max_requests": -1}

CONTRACT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Islink": ("GET", "islink", {"path": NEEDED}),
    "Isfile": ("GET", "isfile", {"path": NEEDED}),
    "Isdir": ("GET", "isdir", {"path": NEEDED}),
    "Getsize": ("GET", "getsize", {"path": NEEDED}),
    "Getatime": ("GET", "getatime", {"path": NEEDED}),
    "GetatimeNs": ("GET", "getatimens", {"path": NEEDED}),
    "Getmtime": ("GET", "getmtime", {"path": NEEDED}),
    "GetmtimeNs": ("GET", "getmtimens", {"path": NEEDED}),
    "Getcrtime": ("GET", "getcrtime", {"path": NEEDED}),
    "GetcrtimeNs": ("GET", "getcrtimens", {"path": NEEDED}),
    "Getcwd": ("GET", "getcwd", {}),
    "Stat": ("GET", "stat", {"path": NEEDED, "follow_symlinks": True}),
    "Read": ("GET", "read", {"path": NEEDED, "encoding": "utf-8", "errors": "strict", **BLOCKS}),
    "Listdir": ("GET", "listdir", {"path": NEEDED}),
    "Readdir": ("GET", "readdir", {"path": NEEDED}),
    "Exists": ("GET", "exists", {"path": NEEDED}),
    "Lexists": ("GET", "lexists", {"path": NEEDED}),
    "Lstat": ("GET", "lstat", {"path": NEEDED}),
    "Readlink": ("GET", "readlink", {"path": NEEDED}),
    "Glob": ("GET", "glob", {"path": NEEDED}),
    "GlobSftpName": ("GET", "globsftpname", {"path": NEEDED}),
    "StatVfs": ("GET", "statvfs", {"path": NEEDED}),
    "Realpath": ("GET", "realpath", {"path": NEEDED}),
    "Client": ("GET", "client", {}),
    "Mkdir": ("POST", "mkdir", {"path": NEEDED, **ATTRIBUTES}),
    "Setstat": ("POST", "setstat", {"path": NEEDED, **ATTRIBUTES}),
    "Makedirs": ("POST", "makedirs", {"path": NEEDED, **ATTRIBUTES}),
    "Rmdir": ("POST", "rmdir", {"path": NEEDED}),
    "Rmtree": ("POST", "rmtree", {"path": NEEDED}),
    "Chmod": ("POST", "chmod", {"path": NEEDED, "permissions": None, "follow_symlinks": False}),
    "Chown": ("POST", "chown", {"path": NEEDED, "follow_symlinks": False, "uid": None, "gid": None}),
    "Utime": ("POST", "utime", {"path": NEEDED, "follow_symlinks": False, "atime": None, "mtime": None}),
    "Chdir": ("POST", "chdir", {"path": NEEDED}),
    "Rename": ("POST", "rename", {"oldpath": NEEDED, "newpath": NEEDED}),
    "Remove": ("POST", "remove", {"path": NEEDED}),
    "Write": ("POST", "write", {
        "text": NEEDED, "path": NEEDED, "mode": "w", **ATTRIBUTES, "encoding": "utf-8", "errors": "strict", **BLOCKS,
    }),
    "Link": ("POST", "link", {"file_path": NEEDED, "link_path": NEEDED}),
    "Symlink": ("POST", "symlink", {"file_path": NEEDED, "link_path": NEEDED}),
    "Unlink": ("POST", "unlink", {"path": NEEDED}),
    "Truncate": ("POST", "truncate", {"path": NEEDED, "size": NEEDED}),
    "Directory": ("PUT", "directory", {"path": NEEDED, "present": NEEDED, **ATTRIBUTES}),
}  # fmt: skip
"""Method, route and parameters with their defaults. There may be more, with defaults."""

METHODS = {Effect.READS: "GET", Effect.CHANGES: "POST", Effect.ENSURES: "PUT"}

ATTRS = {"attrs": "permissions uid gid atime mtime"}

OTHER_NAMES: dict[str, dict[str, str]] = {
    "Stat": {"flags": ""},  # which fields a server of a later version is to send: all
    "Lstat": {"flags": ""},
    "Mkdir": ATTRS,
    "Makedirs": ATTRS,
    "Setstat": {**ATTRS, "follow_symlinks": ""},  # Chmod, Chown and Utime have it
    "Rmtree": {"ignore_errors": "", "onerror": ""},  # a failure is never silent
    "Chmod": {"mode": "permissions"},  # as everywhere here
    "Chown": {"uid_or_owner": "uid", "gid_or_group": "gid", "owner": "", "group": ""},  # names: protocol 4 and later
    "Utime": {"times": "atime mtime", "ns": "atime mtime"},
    "Glob": {"patterns": "path", "error_handler": ""},
    "GlobSftpName": {"patterns": "path", "error_handler": ""},
    "Realpath": {"compose_paths": "", "check": ""},  # protocol 6
    "Rename": {"flags": ""},  # protocol 5
    "Link": {"oldpath": "file_path", "newpath": "link_path"},
    "Symlink": {"oldpath": "file_path", "newpath": "link_path"},
    "Read": {"pflags_or_mode": "", "attrs": ""},
    "Write": {"pflags_or_mode": "mode", **ATTRS},
}
"""Parameters of asyncssh that have another name here, or none."""

METHOD_NAMES = {
    "GetatimeNs": "getatime_ns",
    "GetmtimeNs": "getmtime_ns",
    "GetcrtimeNs": "getcrtime_ns",
    "GlobSftpName": "glob_sftpname",
    "Read": "open",
    "Write": "open",
}

FOUND = {operation.__name__: operation for operation in operations("sftp")}
every_operation = pytest.mark.parametrize("name", CONTRACT)


def test_they_are_in_the_order_of_the_documentation() -> None:
    assert [name for name in FOUND if name in CONTRACT] == list(CONTRACT)


@every_operation
def test_the_contract_is_kept(name: str) -> None:
    method, route, expected = CONTRACT[name]
    operation = FOUND[name]
    assert operation is getattr(sftp, name)
    assert name in sftp.__all__
    assert issubclass(operation, Privileged)
    assert (METHODS[operation.effect], operation.route) == (method, route)
    found = {p.name: NEEDED if p.required else p.default for p in parameters(operation)}
    assert {key: found[key] for key in expected} == expected
    assert {key: found[key] for key in ("group", "name")} == {"group": "all", "name": None}
    assert all(found[key] is not NEEDED for key in found.keys() - expected.keys())


@every_operation
def test_it_has_the_parameters_of_asyncssh(name: str) -> None:
    if name == "Directory":
        return  # made of several
    if name == "Client":
        assert {"version", "limits", "supports_remote_copy"} <= set(dir(asyncssh.SFTPClient))
        return
    method = getattr(asyncssh.SFTPClient, METHOD_NAMES.get(name, name.lower()))
    theirs = set(inspect.signature(method).parameters) - {"self"}
    others = OTHER_NAMES.get(name, {})
    assert set(others) <= theirs, "there are others now"
    mapped = {new for old in theirs for new in others.get(old, old).split()}
    assert mapped <= set(FOUND[name].model_fields)


@every_operation
def test_questions_are_reads_and_changes_have_no_value(name: str) -> None:
    operation = FOUND[name]
    assert (operation.effect is Effect.READS) == (value_type(operation) is not None)
    assert not re.search(r"\bsftp\b", summary(operation)[:-1], re.IGNORECASE) or name == "Client"


# Over HTTP


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path, "server104") as api:
        yield api


@pytest.fixture
async def http(api: Served) -> AsyncIterator[httpx2.AsyncClient]:
    async with client(api) as http:
        yield http


async def answer(http: httpx2.AsyncClient, operation: type[Operation[Any]], **arguments: Any) -> dict[str, Any]:
    response = await http.request(METHODS[operation.effect], f"/reemote/sftp/{operation.route}", **arguments)
    assert response.status_code == 200, response.text
    [found] = response.json()
    assert isinstance(found, dict)
    return found


async def test_a_question_over_http(api: Served, http: httpx2.AsyncClient) -> None:
    (api.fake.files("server104") / "etc").mkdir()
    assert await answer(http, sftp.Isdir, params={"path": "/etc"}) == {
        "host": "server104",
        "value": True,
        "changed": False,
        "error": False,
    }
    found = await answer(http, sftp.Isdir, params={"path": "/no"})
    assert found["value"] is False
    found = await answer(http, sftp.Listdir, params={"path": "/no"})
    assert (found["value"], found["error"], found["changed"]) == ("SFTPNoSuchFile", True, False)
    found = await answer(http, sftp.Stat, params={"path": "/etc", "follow_symlinks": "false"})
    assert list(found["value"]) == ["uid", "gid", "permissions", "atime", "mtime", "size"]
    found = await answer(http, sftp.Readdir, params={"path": "/"})
    assert [each["filename"] for each in found["value"]] == ["etc"]


@pytest.mark.parametrize("permissions", ["0640", "640", "0o640", 0o640])
@pytest.mark.parametrize("place", ["params", "json"])
async def test_permissions_over_http(api: Served, http: httpx2.AsyncClient, place: str, permissions: Any) -> None:
    if place == "params" and permissions == 0o640:
        return  # digits in a query are octal
    arguments = {"path": "/file", "text": "größe", "permissions": permissions}
    assert (await answer(http, sftp.Write, **{place: arguments}))["changed"] is True
    file = api.fake.files("server104") / "file"
    assert (file.read_text(), file.stat().st_mode & 0o7777) == ("größe", 0o640)
    assert (await answer(http, sftp.Write, **{place: arguments}))["changed"] is False
    assert (await answer(http, sftp.Chmod, **{place: {"path": "/file", "permissions": permissions}}))[
        "changed"
    ] is False
    assert (await answer(http, sftp.Read, params={"path": "/file"}))["value"] == "größe"


async def test_a_directory_over_http(api: Served, http: httpx2.AsyncClient) -> None:
    wanted = {"path": "/a/b", "present": "true", "permissions": "0750", "atime": "1.5", "mtime": "2"}
    for changed in (True, False):
        found = await answer(http, sftp.Directory, params=wanted)
        assert (found["value"], found["changed"], found["error"]) == (None, changed, False)
    assert (await answer(http, sftp.Directory, json={"path": "/a", "present": False, "recurse": True}))["changed"]
    assert list(api.fake.files("server104").iterdir()) == []


async def test_several_patterns_over_http(api: Served, http: httpx2.AsyncClient) -> None:
    for name in ("a.txt", "b.conf", "c.doc"):
        (api.fake.files("server104") / name).touch()
    found = await answer(http, sftp.Glob, params=[("path", "/*.txt"), ("path", "/*.conf")])
    assert found["value"] == ["/a.txt", "/b.conf"]
    assert (await answer(http, sftp.Glob, params={"path": "/*.doc"}))["value"] == ["/c.doc"]


@pytest.mark.parametrize(
    ("operation", "params"),
    [
        (sftp.Isdir, {}),
        (sftp.Isdir, {"path": ""}),
        (sftp.Isdir, {"path": "a\0b"}),
        (sftp.Chmod, {"path": "/x"}),
        (sftp.Chmod, {"path": "/x", "permissions": "rw-r--r--"}),
        (sftp.Chmod, {"path": "/x", "permissions": "0888"}),
        (sftp.Chown, {"path": "/x"}),
        (sftp.Utime, {"path": "/x", "atime": "5"}),
        (sftp.Write, {"path": "/x", "text": "größe", "encoding": "ascii"}),
        (sftp.Directory, {"path": "/x"}),
        (sftp.Rmtree, {"path": "/"}),
        (sftp.Truncate, {"path": "/x", "size": "-1"}),
    ],
)
async def test_what_is_refused_over_http(
    http: httpx2.AsyncClient, operation: type[Operation[Any]], params: dict[str, str]
) -> None:
    response = await http.request(METHODS[operation.effect], f"/reemote/sftp/{operation.route}", params=params)
    assert response.status_code == 422
    assert response.json()["error"] is True


async def test_a_host_that_is_down(api: Served, http: httpx2.AsyncClient) -> None:
    api.fake.fail("server104", ConnectionRefused("nobody listens there"))
    for operation, params in (
        (sftp.Exists, {"path": "/"}),
        (sftp.Remove, {"path": "/x"}),
        (sftp.Directory, {"path": "/x", "present": "true"}),
    ):
        found = await answer(http, operation, params=params)
        assert (found["value"], found["changed"], found["outcome"]) == ("ConnectionRefusedError", False, "not_started")


async def test_how_parameters_are_described(http: httpx2.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    details = document["paths"]["/reemote/sftp/write"]["post"]
    found = {parameter["name"]: parameter for parameter in details["parameters"]}
    assert found["path"]["schema"] == {"type": "string", "minLength": 1, "pattern": r"^[^\u0000]*$"}
    assert (found["path"]["required"], found["text"]["required"]) == (True, True)
    assert found["text"]["schema"] == {"type": "string"}
    assert found["mode"]["schema"]["enum"] == ["w", "a", "x", "wb", "ab", "xb"]
    assert found["permissions"]["schema"] == {"type": "string", "pattern": "^(0o)?[0-7]{1,4}$"}, "a query is text"
    body = document["components"]["schemas"]["SftpWriteRequest"]["properties"]
    assert body["permissions"]["anyOf"] == [
        {"type": "integer", "minimum": 0, "maximum": 4095},
        {"type": "string", "pattern": "^(0o)?[0-7]{1,4}$"},
        {"type": "null"},
    ]
    assert (found["encoding"]["schema"]["format"], found["errors"]["schema"]["enum"][0]) == ("encoding", "strict")
    assert found["atime"]["schema"] == {"type": "number", "minimum": 0, "exclusiveMaximum": 2**32}
    assert found["uid"]["schema"] == {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
    patterns = document["paths"]["/reemote/sftp/glob"]["get"]["parameters"][0]
    assert (patterns["name"], patterns["schema"]["type"], patterns["schema"]["minItems"]) == ("path", "array", 1)
