"""What a terminal shows while hosts are at work, drawn by itself."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from reemote.cli.bars import Bar, Bars
from reemote.cli.live import Works
from reemote.cli.screen import Screen, clock
from reemote.core.events import HostConnected, HostFinished, HostStarted, OutputLine, StepStarted
from reemote.core.response import Response

Draw = Callable[..., list[str]]


@pytest.fixture
def draw() -> Draw:
    """Draw the lines of hosts as they are on a terminal of some size."""

    def drawn(screen: Screen[Any], columns: int = 80, lines: int = 24) -> list[str]:
        console = Console(file=io.StringIO(), width=columns, height=lines, force_terminal=True, color_system=None)
        screen.console = console
        with console.capture() as capture:
            console.print(screen.drawn())
        return [line.rstrip() for line in capture.get().splitlines()]

    return drawn


def bars(*hosts: str) -> Bars:
    return Bars(hosts, Console(file=io.StringIO(), force_terminal=True))


def works(*hosts: str, **more: Any) -> Works:
    return Works(hosts, Console(file=io.StringIO(), force_terminal=True), **more)


def begin(screen: Screen[Any], *hosts: str) -> None:
    for host in hosts:
        screen.tell(HostStarted(host=host))
        screen.tell(HostConnected(host=host))


def end(screen: Screen[Any], host: str, **more: Any) -> None:
    response = Response({"host": host, "value": None, "changed": True, "error": False, **more})
    screen.tell(HostFinished(host=host, response=response, seconds=1))


def write(screen: Screen[Any], host: str, *lines: str) -> None:
    for line in lines:
        screen.tell(OutputLine(host=host, step=1, stream="stdout", line=line))


# Transfers


def test_files_add_up() -> None:
    bar = Bar("web1")
    bar.begin()
    bar.progress(b"a", b"x/a", 10, 100)
    bar.progress(b"b", b"x/b", 5, 50)
    bar.progress(b"a", b"x/a", 100, 100)
    assert (bar.done, bar.total, bar.label) == (105, 150, "a")
    bar.progress(b"c", b"x/c", 7, 7)
    bar.progress(b"c", b"x/c", 9, 9)  # of unknown size
    assert (bar.done, bar.total) == (114, 159)
    for number in range(5000):
        bar.progress(b"%d" % number, b"x", 1, 1)
    assert (bar.done, bar.total) == (5114, 5159)


def test_names_of_files_are_escaped(draw: Draw) -> None:
    screen = bars("web1\x1b[2J")
    begin(screen, "web1\x1b[2J")
    screen.rows["web1\x1b[2J"].progress(b"dir/a\n\x1b[2J\xff", b"x", 1, 3)

    [line] = draw(screen)
    assert line.startswith("web1\\x1b[2J ")
    assert line.endswith("  1/3 bytes  0 bytes/s a\\n\\x1b[2J\\udcff")


def test_many_transfers_on_a_small_screen(draw: Draw) -> None:
    names = [f"web{number:03}" for number in range(100)]
    screen = bars(*names)
    begin(screen, *names[50:53])
    for name in names[50:53]:
        screen.rows[name].progress(b"file", b"x", 10**6, 2 * 10**6)
    end(screen, "web090", error=True, value="SFTPFailure")
    end(screen, "web091")

    lines = draw(screen, lines=8)
    assert [line.split()[0] for line in lines[:6]] == ["web000", "web001", "web050", "web051", "web052", "web090"]
    assert lines[2].endswith("file")
    assert lines[5].endswith("failed SFTPFailure")
    assert lines[6].startswith("100 hosts: 3 running, 95 waiting, 1 failed, 1 changed   3.0/6.0 MB   ")
    assert len(lines) == 7
    assert len(draw(screen, lines=1)) <= 2

    with screen:
        for name in names:
            if name not in ("web090", "web091"):
                end(screen, name, changed=False)
    assert draw(screen, lines=8) == ["100 hosts: 1 failed, 1 changed, 98 ok   3.0/6.0 MB"]
    assert len(draw(screen, lines=200)) == 100


def test_narrow_screen(draw: Draw) -> None:
    screen = bars("server104", "server105")
    begin(screen, "server104")
    screen.rows["server104"].progress(b"file", b"x", 10**6, 2 * 10**6)

    assert draw(screen, columns=45)[:2] == [
        "server104          1.0/2.0 MB file",
        "server105                     waiting",
    ]
    assert all(len(line) <= 20 for line in draw(screen, columns=20))


def test_what_was_left_is_interrupted(draw: Draw) -> None:
    screen = bars("a", "b", "c", "d")
    begin(screen, "a")
    end(screen, "b")
    end(screen, "d", error=True, value="Cancelled")
    with pytest.raises(KeyboardInterrupt), screen:
        raise KeyboardInterrupt

    assert [line.split()[-1] for line in draw(screen)] == ["interrupted", "changed", "interrupted", "cancelled"]


# Commands and deployments


def test_states_steps_and_last_lines(draw: Draw) -> None:
    screen = works("web1", "web2", "web3", "web4", "web5")
    begin(screen, "web1", "web3")
    screen.tell(HostStarted(host="web2"))
    screen.tell(StepStarted(host="web1", step=1, parent=None, name="Deploy", operation=None))
    screen.tell(StepStarted(host="web1", step=2, parent=1, name="Restart", operation=None))
    write(screen, "web1", "reading", "10%\r20%\r  30%\r", "  ")
    end(screen, "web3", error=True, value="CommandFailed")
    screen.tell(HostFinished(host="web5", response=None, seconds=0))

    assert draw(screen) == [
        "web1 running    Restart 0:00 30%",
        "web2 connecting         0:00",
        "web3 failed             0:00 CommandFailed",
        "web4 waiting",
        "web5 skipped            0:00",
        "5 hosts: 1 running, 1 connecting, 1 waiting, 1 failed, 1 skipped   0:00",
    ]
    assert draw(screen, columns=30)[0] == "web1 running    0:00"
    assert draw(screen, lines=5)[1:] == [*draw(screen)[1:3], *draw(screen)[5:]]


@pytest.mark.parametrize("columns", [10, 30, 80, 200])
def test_no_line_is_wider_than_the_terminal(draw: Draw, columns: int) -> None:
    hosts = [f"web{number:02}.example.com" for number in range(50)]
    screen = works(*hosts)
    begin(screen, *hosts)
    for host in hosts:
        write(screen, host, "x" * 70_000)

    for lines in (24, 100):
        drawn = draw(screen, columns=columns, lines=lines)
        assert len(drawn) == min(lines - 1, 51)
        assert all(len(line) <= columns - 3 for line in drawn)


HOSTILE = "\x1b[2J\x1b]52;c;ZXZpbA==\x07\u202e\u2028\x85evil"


def test_what_hosts_write_cannot_drive_the_terminal(draw: Draw) -> None:
    screen = works("web1", "web\x1b[2J2")
    begin(screen, "web1", "web\x1b[2J2")
    screen.tell(StepStarted(host="web1", step=2, parent=1, name=HOSTILE, operation=None))
    write(screen, "web1", HOSTILE + "\n" + HOSTILE)
    screen.tell(HostFinished(host="web\x1b[2J2", response=None, error=ValueError(), seconds=1))

    lines = draw(screen, columns=200)
    assert all(line.isprintable() for line in lines)
    assert "\\x1b[2J\\x1b]52;c;ZXZpbA==\\x07\\u202e\\u2028\\x85evil\\n\\x1b[2J" in lines[0]
    assert lines[1].startswith("web\\x1b[2J2 failed")
    assert lines[1].endswith("ValueError")


def test_a_dry_run_speaks_of_what_would_be(draw: Draw) -> None:
    screen = works("web1", "web2", dry_run=True)
    begin(screen, "web1", "web2")
    end(screen, "web1")
    end(screen, "web2", changed=False, skipped=True)

    assert draw(screen)[-1] == "2 hosts: 1 would change, 1 skipped   0:00"


def test_what_stays_on_the_terminal(draw: Draw) -> None:
    one, two = works("web1"), works("web1", "web2")
    begin(one, "web1")
    assert draw(one) == ["web1 running 0:00"]
    for screen in (one, two):
        with screen:
            end(screen, "web1")
    assert draw(one) == []
    assert draw(two) == ["2 hosts: 1 changed, 1 interrupted   0:00"]


def test_times() -> None:
    assert [clock(seconds) for seconds in (0, 59.9, 60, 3600, 36_061)] == [
        "0:00",
        "0:59",
        "1:00",
        "1:00:00",
        "10:01:01",
    ]
