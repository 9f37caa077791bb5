"""The whole API against requests made of its own description: schemathesis finds nothing.

It sends what the OpenAPI document allows, which has to be accepted, and what it forbids, which has to
be refused; every answer has to be one that the document tells of.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import asyncssh
import pytest

from reemote.core.errors import ConnectionRefused
from reemote.core.response import as_json
from reemote.testing import Fake
from tests.server.serving import serving

EXAMPLES = 5
"""How many requests are made up for each path and kind of phase."""


HOOKS = """
import schemathesis
from hypothesis import strategies
from pydantic import ValidationError

from reemote.core import catalogue

OPERATIONS = {f"/reemote/{name}/{operation.route}": operation for name, operation in catalogue.catalogue()}


@schemathesis.hook
def filter_case(context, case):
    operation = OPERATIONS.get(case.operation.path)
    if operation is None:
        return True
    query, body = case.query or {}, case.body if isinstance(case.body, dict) else {}
    needed = {name for name, field in operation.model_fields.items() if field.is_required()}
    if needed & body.keys() - query.keys():
        return False
    given = {**query, **body}
    try:
        operation(**{name: value for name, value in given.items() if name in operation.model_fields})
    except ValidationError as error:
        return any(each["loc"] for each in error.errors())
    return True


@schemathesis.hook
def before_load_schema(context, raw_schema):
    shell = raw_schema["paths"]["/reemote/host/shell"]["post"]
    [cmd] = [each for each in shell["parameters"] if each["name"] == "cmd"]
    body = raw_schema["components"]["schemas"]["HostShellRequest"]["properties"]["cmd"]
    assert cmd["schema"].pop("maxLength") == body.pop("maxLength") == 128 * 1024 - 1


schemathesis.openapi.format("encoding", strategies.sampled_from(["utf-8", "latin-1", "ascii", "utf-16"]))
schemathesis.openapi.format("host-name", strategies.just("server104"))
schemathesis.openapi.format("key-name", strategies.just("id_ed25519"))
schemathesis.openapi.format("user-name", strategies.from_regex("[a-z][a-z0-9-]{0,30}", fullmatch=True))
"""
"""What the formats of the document mean: encodings that Python knows, keys that there are, names that
SASLprep (RFC 4013) lets pass. Requests that give a needed parameter in the body instead of the query are
left out, since a schema cannot say "either". How long a command may be is left out, too: schemathesis makes
one pattern of it and of what a command may contain, which takes a second to compile, for each of many
requests; test_parity tries the limit. So are requests against rules between parameters: a schema
cannot say that two go together, where one may be in the query and one in the body. Such a mistake has no
place."""

CONFIG = """
[[operations]]
include-path = "/reemote/sftp/content"
checks.positive_data_acceptance.expected-statuses = ["2xx", "403", "404", "422"]
"""
"""Nor can a schema say which hosts there are, and that content comes from one of them."""


class Scripted(Fake):
    """A fake fleet in the place of the server's connections."""

    open_connections = 0

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fleet = Scripted()
    fleet.on(re.compile(".*", re.DOTALL), stdout="said\n", stderr="\ufffd", exit_status=3)
    fleet.fail("server105", ConnectionRefused("nobody is there"))
    monkeypatch.setattr("reemote.server.runner.Pool", lambda: fleet)
    return fleet


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_schemathesis_finds_nothing(fleet: Fake, tmp_path: Path, home: Path) -> None:
    (tmp_path / "inventory.json").write_text(as_json(fleet.inventory.model_dump(mode="json", exclude_unset=True)))
    (tmp_path / "hooks.py").write_text(HOOKS)
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    (home / ".ssh").mkdir()
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(home / ".ssh" / "id_ed25519")
    async with serving(tmp_path) as served:
        url = f"{str(served.client.base_url).rstrip('/')}/openapi.json"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", "run", url),
            *("--checks", "all", "--phases", "examples,coverage,fuzzing", "--mode", "all"),
            *("--max-examples", str(EXAMPLES), "--seed", "1", "--generation-deterministic", "--no-color"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=tmp_path,
            # No more than it needs: for each request it looks twice through all of the environment for proxies.
            env={"PATH": os.environ["PATH"], "HOME": str(home), "SCHEMATHESIS_HOOKS": "hooks"},
        )
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert fleet.calls, "operations have run"
