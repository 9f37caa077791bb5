"""Transfers over HTTP: they keep to the files below one directory of the server's machine."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2
import pytest

from reemote.core import catalogue
from reemote.core.operation import Operation
from reemote.host import Command, Shell
from reemote.scp import Download, Upload
from reemote.server.openapi import OPTIONS
from reemote.server.routes import accepted
from reemote.server.runner import local_paths
from reemote.sftp import Get, Mget, Mput, Put, Sync
from reemote.transfer.local import LocalFiles, here
from tests.server.inprocess import FakePool, Served, client, served

HOSTS = ("one", "two")
SECRET = "canary-7f3a"


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An application for all tests: to make one takes a second."""
    directory = tmp_path_factory.mktemp("server")
    with served(directory, *HOSTS, files=directory / "files") as api:
        yield api


@pytest.fixture
def top(shared: Served) -> Iterator[Path]:
    """The directory that everything of the server is in."""
    path = shared.app.settings.files.parent
    yield path
    for name in ("files", "outside"):
        shutil.rmtree(path / name, ignore_errors=True)
    shared.app.settings.audit_file.unlink(missing_ok=True)


@pytest.fixture
def outside(top: Path) -> Path:
    """A directory beside the root, with a secret in it."""
    path = top / "outside"
    path.mkdir()
    (path / "secret").write_text(SECRET)
    return path


@pytest.fixture
def root(top: Path, outside: Path) -> Path:
    """A root with files, and with what leads out of it."""
    path = top / "files"
    (path / "sub").mkdir(parents=True)
    (path / "plain").write_text("plain")
    (path / "sub" / "deep").write_text("deep")
    (path / "link-out").symlink_to(outside / "secret")
    (path / "dir-out").symlink_to(outside)
    (path / "link-nowhere").symlink_to(outside / "made")
    os.mkfifo(path / "fifo")
    return path


@pytest.fixture
def api(root: Path, shared: Served) -> Iterator[Served]:
    """The application with new hosts."""
    fake = FakePool(*HOSTS)
    for name in HOSTS:
        (fake.files(name) / "from").write_text(f"from {name}")
    with mock.patch("reemote.server.runner.Pool", return_value=fake):
        yield shared._replace(fake=fake)


@pytest.fixture
async def http(api: Served) -> AsyncIterator[httpx2.AsyncClient]:
    async with client(api) as made:
        yield made


def content(top: Path) -> dict[str, str]:
    """All files below a directory."""
    return {str(each.relative_to(top)): each.read_text() for each in top.rglob("*") if each.is_file()}


def audit(api: Served) -> list[dict[str, Any]]:
    file = api.app.settings.audit_file
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


# What is refused before anything runs

REFUSED = [
    "..",
    "../outside/secret",
    "sub/../../outside/secret",
    "sub/../plain",
    "/etc/passwd",
    "//etc/passwd",
    "/proc/self/environ",
    "/dev/zero",
    "/dev/stdin",
    "{outside}/secret",
    "{root}/../outside/secret",
    "{root}-beside/file",
    "link-out",
    "link-nowhere",
    "dir-out/secret",
    "{root}/dir-out/secret",
    "dir-out",
    "fifo",
    "plain/below",
]

UPLOADS = {"sftp/put/": "localpaths", "sftp/mput": "localpaths", "scp/upload": "srcpaths"}
DOWNLOADS = {"sftp/get": "localpath", "sftp/mget": "localpath", "scp/download": "dstpath"}
REMOTE: dict[str, dict[str, Any]] = {
    "sftp/put/": {"remotepath": "/"},
    "sftp/mput": {"remotepath": "/"},
    "scp/upload": {"dstpath": "/"},
    "sftp/get": {"remotepaths": ["/from"]},
    "sftp/mget": {"remotepaths": ["/fr*"]},
    "scp/download": {"srcpaths": ["/from"]},
    "sftp/sync": {"remotepath": "/to"},
}
ALL = {**UPLOADS, **DOWNLOADS, "sftp/sync": "localpath"}


def body_for(route: str, path: str, **more: Any) -> dict[str, Any]:
    return {ALL[route]: [path] if route in UPLOADS else path, **REMOTE[route], **more}


async def send(http: httpx2.AsyncClient, route: str, path: str, **more: Any) -> httpx2.Response:
    method = "PUT" if route == "sftp/sync" else "POST"
    return await http.request(method, f"/reemote/{route}", json=body_for(route, path, **more))


@pytest.mark.parametrize("route", ALL)
async def test_paths_that_lead_out_are_refused_before_anything_runs(
    http: httpx2.AsyncClient, api: Served, root: Path, outside: Path, route: str
) -> None:
    before = content(root)
    for path in REFUSED:
        answer = await send(http, route, path.replace("{outside}", str(outside)).replace("{root}", str(root)))

        assert answer.status_code == 403, path
        assert answer.json()["error"] is True
        assert answer.json()["value"]
        assert SECRET not in answer.text
    assert audit(api) == []
    assert content(root) == before
    assert content(outside) == {"secret": SECRET}
    for name in HOSTS:
        assert content(api.fake.files(name)) == {"from": f"from {name}"}


@pytest.mark.parametrize("route", ALL)
async def test_a_nul_and_an_empty_path_are_no_paths(http: httpx2.AsyncClient, api: Served, route: str) -> None:
    for path in ("plain\0", "\0", "", "sub\0/../../x"):
        assert (await send(http, route, path)).status_code == 422
    assert audit(api) == []


@pytest.mark.parametrize("route", UPLOADS)
async def test_one_wrong_path_among_right_ones(http: httpx2.AsyncClient, api: Served, route: str) -> None:
    body = {UPLOADS[route]: ["plain", "../outside/secret"], **REMOTE[route]}
    assert (await http.post(f"/reemote/{route}", json=body)).status_code == 403
    assert content(api.fake.files("one")) == {"from": "from one"}


async def test_dots_that_are_encoded_for_a_query(http: httpx2.AsyncClient, api: Served, root: Path) -> None:
    for path in ("%2e%2e/outside/secret", "%2e%2e%2foutside%2fsecret", "dir-out%2fsecret"):
        answer = await http.post(f"/reemote/sftp/put/?remotepath=/x&localpaths={path}")
        assert answer.status_code == 403
    # Encoded twice, the percent sign is a character like others.
    answer = await http.post("/reemote/sftp/put/?remotepath=/x&localpaths=%252e%252e%252foutside%252fsecret")
    assert [each["value"] for each in answer.json()] == ["FileNotFoundError"] * 2
    assert content(api.fake.files("one")) == {"from": "from one"}


@pytest.mark.parametrize("pattern", ["../outside/*", "/etc/pass*", "dir-out/*", "{outside}/sec*", "sub/../*"])
@pytest.mark.parametrize("route", ["sftp/mput", "scp/upload"])
async def test_patterns_lead_out_neither(
    http: httpx2.AsyncClient, api: Served, outside: Path, route: str, pattern: str
) -> None:
    answer = await send(http, route, pattern.replace("{outside}", str(outside)))
    assert answer.status_code == 403
    assert content(api.fake.files("one")) == {"from": "from one"}


@pytest.mark.parametrize("route", DOWNLOADS)
async def test_places_with_the_name_of_the_host_are_checked(
    http: httpx2.AsyncClient, api: Served, outside: Path, route: str
) -> None:
    for path in ("../{host}", "/etc/{host}", "dir-out/{host}", "sub/../{host}", "link-out/{host}"):
        assert (await send(http, route, path)).status_code == 403
    assert audit(api) == []
    assert list(outside.iterdir()) == [outside / "secret"]


def test_each_local_parameter_is_known() -> None:
    """What an operation says of its parameters is what the server goes by."""
    made: list[tuple[Operation[Any], list[str | bytes]]] = [
        (Put(localpaths="a", remotepath="b"), ["a"]),
        (Mput(localpaths=["a", b"c"], remotepath="b"), ["a", b"c"]),
        (Get(remotepaths="b", localpath="a"), ["a"]),
        (Mget(remotepaths="b"), []),
        (Sync(localpath="a", remotepath="b"), ["a"]),
        (Upload(srcpaths="a", dstpath="b"), ["a"]),
        (Download(srcpaths="b", dstpath="a"), ["a"]),
        (Shell(cmd="b", output="a"), ["a"]),
        (Shell(cmd="b", output=5), []),
        (Command(argv=["b"], output="a"), ["a"]),
    ]
    for operation, paths in made:
        assert [os.fsdecode(path) for path in local_paths(operation)] == [os.fsdecode(path) for path in paths]
    known = {type(operation) for operation, _ in made}
    for _, operation_type in catalogue.catalogue():
        names = {p.name for p in catalogue.parameters(operation_type) if "files.Local object" in repr(p.annotation)}
        assert bool(names) == (operation_type in known), operation_type


# What is refused while it runs: it is the failure of one host


@pytest.mark.parametrize("route", ["sftp/put/", "sftp/mput", "scp/upload"])
async def test_a_directory_with_a_link_in_it(http: httpx2.AsyncClient, api: Served, root: Path, route: str) -> None:
    (root / "sub" / "link").symlink_to(root.parent / "outside" / "secret")
    follow = {} if route == "scp/upload" else {"follow_symlinks": True}

    answer = await send(http, route, "sub", recurse=True, **follow)

    assert answer.status_code == 200
    assert [(each["host"], each["value"], each["error"]) for each in answer.json()] == [
        (name, "PermissionError", True) for name in HOSTS
    ]
    assert all("a symbolic link" in each["detail"] for each in answer.json())
    assert SECRET not in answer.text
    for name in HOSTS:
        assert SECRET not in content(api.fake.files(name)).values()


async def test_a_link_that_is_not_followed_is_copied_as_one(http: httpx2.AsyncClient, api: Served, root: Path) -> None:
    (root / "sub" / "link").symlink_to("deep")
    answer = await send(http, "sftp/put/", "sub", recurse=True)
    assert [each["error"] for each in answer.json()] == [False, False]
    assert (api.fake.files("one") / "sub" / "link").readlink() == Path("deep")


async def test_patterns_do_not_match_through_links(http: httpx2.AsyncClient, api: Served) -> None:
    answer = await send(http, "sftp/mput", "*/secret")
    assert [each["value"] for each in answer.json()] == ["FileNotFoundError"] * 2
    answer = await send(http, "sftp/mput", "link-o*", follow_symlinks=True)
    assert [each["value"] for each in answer.json()] == ["PermissionError"] * 2
    assert content(api.fake.files("one")) == {"from": "from one"}


async def test_a_download_over_a_link_fails_on_its_host_alone(
    http: httpx2.AsyncClient, root: Path, outside: Path
) -> None:
    (root / "to").mkdir()
    (root / "to" / "one").symlink_to(outside)
    (root / "to" / "two").mkdir()

    answer = await send(http, "sftp/get", "to/{host}/file")

    one, two = answer.json()
    assert (one["value"], one["error"], two["error"]) == ("PermissionError", True, False)
    assert (root / "to" / "two" / "file").read_text() == "from two"
    assert content(outside) == {"secret": SECRET}


async def test_a_host_makes_no_links(http: httpx2.AsyncClient, api: Served, root: Path, outside: Path) -> None:
    for name in HOSTS:
        tree = api.fake.files(name) / "tree"
        tree.mkdir()
        (tree / "link").symlink_to(".")

    answer = await send(http, "sftp/get", "{host}", remotepaths=["/tree"], recurse=True)

    assert [each["value"] for each in answer.json()] == ["PermissionError"] * 2
    assert not any(each.is_symlink() for each in root.rglob("one/*"))


async def test_names_of_hosts_lead_out_neither(tmp_path: Path) -> None:
    root, outside = tmp_path / "files", tmp_path / "outside"
    (root / "sub").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_text(SECRET)
    names = ("..", "../outside", "../../outside", "sub/../..", ".")
    with served(tmp_path, *names, files=root) as api:
        for name in names:
            (api.fake.files(name) / "secret").write_text("changed")
        async with client(api) as http:
            for path in ("{host}", "{host}/outside/secret", "sub/{host}", "{host}/secret"):
                answer = await send(http, "sftp/get", path, remotepaths=["/secret"])
                assert answer.status_code == 200
    assert content(outside) == {"secret": SECRET}
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "audit.jsonl", "files", "inventory.json", "outside", "token",
    ]  # fmt: skip


# What works


@pytest.mark.parametrize(
    ("route", "path"),
    [
        *((route, path) for route in UPLOADS for path in ("plain", "./plain", "{root}/plain")),
        ("sftp/mput", "pl*n"),
        ("scp/upload", "pl*n"),
    ],
)
async def test_files_of_the_directory_go_out(
    http: httpx2.AsyncClient, api: Served, root: Path, route: str, path: str
) -> None:
    answer = await send(http, route, path.replace("{root}", str(root)))
    assert [(each["error"], each["changed"]) for each in answer.json()] == [(False, True)] * 2
    for name in HOSTS:
        assert (api.fake.files(name) / "plain").read_text() == "plain"


@pytest.mark.parametrize("path", ["got-{host}", "sub/got-{host}", "{root}/got-{host}"])
@pytest.mark.parametrize("route", DOWNLOADS)
async def test_files_come_into_the_directory_with_their_modes_less_the_umask(
    http: httpx2.AsyncClient, api: Served, root: Path, umask: None, route: str, path: str
) -> None:
    for name, mode in zip(HOSTS, (0o600, 0o664), strict=True):
        (api.fake.files(name) / "from").chmod(mode)
    answer = await send(http, route, path.replace("{root}", str(root)))
    assert [(each["error"], each["changed"]) for each in answer.json()] == [(False, True)] * 2
    for name, mode in zip(HOSTS, (0o600, 0o644), strict=True):
        got = root / path.replace("{root}/", "").replace("{host}", name)
        assert got.read_text() == f"from {name}"
        assert stat.S_IMODE(got.stat().st_mode) == mode


async def test_without_a_path_they_come_into_the_directory_itself(http: httpx2.AsyncClient, root: Path) -> None:
    answer = await http.post("/reemote/sftp/get", json={"remotepaths": ["/from"], "group": "one"})
    assert answer.json() == []
    answer = await http.post("/reemote/sftp/get", json={"remotepaths": ["/from"]})
    assert [each["value"] for each in answer.json()] == ["FileExistsError"] * 2, "each would write over the other's"
    assert not (root / "from").exists()


async def test_a_directory_is_made_equal(http: httpx2.AsyncClient, api: Served) -> None:
    for changed in (True, False):
        answer = await send(http, "sftp/sync", "sub")
        assert [(each["error"], each["changed"]) for each in answer.json()] == [(False, changed)] * 2
    assert (api.fake.files("two") / "to" / "deep").read_text() == "deep"


async def test_the_directory_is_made_for_its_owner_when_it_is_needed(tmp_path: Path, umask: None) -> None:
    directory = tmp_path / "data" / "files"
    with served(tmp_path, "one", files=directory) as api:
        (api.fake.files("one") / "from").write_text("from one")
        async with client(api) as http:
            assert not directory.exists()
            answer = await send(http, "sftp/get", "got")
    assert answer.json()[0]["error"] is False
    assert (directory / "got").read_text() == "from one"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


async def test_all_runs_of_a_server_share_one_view_and_python_is_not_confined(
    http: httpx2.AsyncClient, api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[LocalFiles] = []
    original = Put.perform

    async def perform(self: Put, host: Any) -> Any:
        seen.append(here.get())
        return await original(self, host)

    monkeypatch.setattr(Put, "perform", perform)
    outside = here.get()
    for _ in range(2):
        await send(http, "sftp/put/", "plain")

    assert len(seen) == 4
    assert {id(each) for each in seen} == {id(api.app.runner.files)}  # type: ignore[union-attr]
    assert outside is here.get()
    assert outside is not seen[0]


# What exists in Python only


@pytest.mark.parametrize("name", ["progress_handler", "error_handler"])
@pytest.mark.parametrize("route", ALL)
async def test_handlers_exist_in_python_only(http: httpx2.AsyncClient, api: Served, route: str, name: str) -> None:
    path = f"/reemote/{route}"
    method = "PUT" if route == "sftp/sync" else "POST"
    values: tuple[Any, ...] = (None, "print", 1, {})
    for value in values:
        answer = await http.request(method, path, json=body_for(route, "plain", **{name: value}))
        assert answer.status_code == 422
    answer = await http.request(method, path, params={name: ""}, json=body_for(route, "plain"))
    assert answer.status_code == 422
    assert name not in json.dumps(api.app.openapi()["paths"][path])
    assert audit(api) == []


def test_no_operation_takes_functions_over_http() -> None:
    for _, operation in catalogue.catalogue():
        for parameter in accepted(operation):
            assert "Callable" not in repr(parameter.annotation)
            assert parameter.name in OPTIONS or parameter.schema != {"type": "null"}


async def test_what_changes_after_the_check_leads_nobody_out(
    http: httpx2.AsyncClient, root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Put.perform

    async def perform(self: Put, host: Any) -> Any:
        if not (root / "sub").is_symlink():
            (root / "sub").rename(root / "sub-kept")
            (root / "sub").symlink_to(outside)
        return await original(self, host)

    monkeypatch.setattr(Put, "perform", perform)
    answer = await send(http, "sftp/put/", "sub/deep")
    assert [each["value"] for each in answer.json()] == ["PermissionError"] * 2
    assert SECRET not in answer.text
    assert content(outside) == {"secret": SECRET}
