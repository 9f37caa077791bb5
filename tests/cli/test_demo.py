"""``reemote demo``."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Cli
from tests.cli.test_run import COLOUR, on_terminal


def test_demo_in_a_pipe_is_plain(cli: Cli) -> None:
    done = cli("demo")

    assert (done.code, done.err) == (0, "")
    assert "\x1b" not in done.out
    for host in ("server104", "server105"):
        assert f"    {host} at 127.0.0.1:" in done.out
    assert "\nserver[104-105] (2 hosts)  changed\n" in done.out
    assert "class Survey:" in done.out
    assert "8 commands on 2 connections in " in done.out


@pytest.mark.slow
def test_demo_on_a_terminal_has_colours() -> None:
    output = on_terminal(["demo"])

    assert COLOUR.search(output)
    assert "server105" in output
