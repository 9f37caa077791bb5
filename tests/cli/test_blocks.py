"""Hosts that answered the same, and outliers."""

from __future__ import annotations

import time
from typing import Any

import pytest

from reemote.cli.blocks import difference, groups, show
from reemote.core.errors import CommandFailed, ConnectionRefused
from reemote.core.response import Completed, Response


def answer(host: str, value: Any = None, *, changed: bool = False, **more: Any) -> Response[Any]:
    return Response({"host": host, "value": value, "changed": changed, "error": False, **more})


def ran(host: str, stdout: str, stderr: str = "", status: int = 0) -> Response[Any]:
    return answer(host, Completed(command=host, stdout=stdout, stderr=stderr, exit_status=status), changed=True)


def failed(host: str, detail: str, **more: Any) -> Response[Any]:
    return Response.of_failure(ConnectionRefused(detail, **more), host)


def hosts(number: int) -> list[str]:
    return [f"web{n:02}" for n in range(1, number + 1)]


def written(capsys: pytest.CaptureFixture[str], *responses: Response[Any], **more: Any) -> list[str]:
    show(responses, "table", **more)
    return capsys.readouterr().out.splitlines()


LONG = "".join(f"line {n}\n" for n in range(1, 11))


def test_fifty_hosts_with_two_outliers_are_two_groups_and_a_diff(capsys: pytest.CaptureFixture[str]) -> None:
    other = LONG.replace("line 7", "line seven")

    assert written(capsys, *(ran(name, other if name in ("web07", "web33") else LONG) for name in hosts(50))) == [
        "web[01-06,08-32,34-50] (48 hosts)  changed",
        *(f"    line {n}" for n in range(1, 11)),
        "web[07,33] (2 hosts)  changed",
        "    differs from web[01-06,08-32,34-50]:",
        "    @@ -6,3 +6,3 @@",
        "     line 6",
        "    -line 7",
        "    +line seven",
        "     line 8",
    ]


def test_the_largest_group_goes_first_and_then_the_order_of_the_inventory(capsys: pytest.CaptureFixture[str]) -> None:
    outputs = {"d": "x\n", "b": "y\n", "a": "z\n", "c": "z", "e": "y\n"}

    assert written(capsys, *(ran(*pair) for pair in outputs.items())) == [
        "b,e (2 hosts)  changed", "    y", "a,c (2 hosts)  changed", "    z", "d  changed", "    x",
    ]  # fmt: skip


def test_what_is_short_or_differs_much_is_written_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    usual = [ran(name, "one\ntwo\n") for name in hosts(3)]
    assert written(capsys, *usual, ran("db", "one\nthree\n"))[3:] == ["db  changed", "    one", "    three"]
    usual = [ran(name, LONG) for name in hosts(3)]
    assert "differs" not in str(written(capsys, *usual, ran("db", LONG.replace("line", "row"))))
    assert written(capsys, *usual, ran("db", ""))[11:] == ["db  changed"]
    # Where each answered something else, there is nothing usual.
    assert "differs" not in str(written(capsys, ran("a", LONG), ran("b", LONG + "more\n")))


def test_a_failure_is_no_outlier(capsys: pytest.CaptureFixture[str]) -> None:
    record = Completed(command="x", stdout=LONG, exit_status=1)
    failure = Response.of_failure(CommandFailed("exit status 1", completed=record), "db")
    lines = written(capsys, *(ran(name, LONG) for name in hosts(3)), failure)

    assert lines[11:14] == ["db  failed  CommandFailed", "    exit status 1", "    line 1"]
    assert len(lines) == 23


def test_the_same_text_on_the_other_stream_or_with_another_status_is_another_answer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    responses = [ran("a", "x"), ran("b", "", "x"), ran("c", "x", status=1), ran("d", "x"), answer("e", "x")]

    assert [group.hosts for group in groups(responses)] == [["a", "d"], ["b"], ["c"], ["e"]]
    assert "c  changed  exit status 1" in written(capsys, *responses)


def test_text_and_data_are_not_the_same() -> None:
    responses = [answer("a", "[1]"), answer("b", [1]), answer("c", None), answer("d", "null"), answer("e", [1])]

    assert [group.hosts for group in groups(responses)] == [["b", "e"], ["a"], ["c"], ["d"]]


def test_failures_that_differ_in_the_host_only(capsys: pytest.CaptureFixture[str]) -> None:
    responses = [failed(name, f"nothing listens at {name} (10.0.0.{n}:22)") for n, name in enumerate(hosts(3))]

    assert written(capsys, *responses, failed("db", "nothing listens at db (10.1.0.1:22)")) == [
        "web[01-03],db (4 hosts)  failed  ConnectionRefusedError",
        "    nothing listens at {host}",
    ]
    assert written(capsys, responses[0])[1] == "    nothing listens at web01 (10.0.0.0:22)"
    # A name that is part of another one stays.
    apart = [failed("web", "no web1 for web"), failed("web2", "no web1 for web2"), failed("1", "no web1 for 1")]
    assert written(capsys, *apart) == [
        "web,web2,1 (3 hosts)  failed  ConnectionRefusedError", "    no web1 for {host}",
    ]  # fmt: skip


def test_a_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    diff = "--- motd\n+++ motd\n@@ -1 +1 @@\n-old\n+new\n"
    responses = [
        answer("web1", changed=True, diff=diff),
        answer("web2", changed=True, diff=diff),
        answer("db", skipped=True),
        answer("app"),
    ]
    diffs = {"web1": [("motd", diff)], "web2": [("motd", diff)]}
    changes = ["    --- motd", "    +++ motd", "    @@ -1 +1 @@", "    -old", "    +new"]

    assert written(capsys, *responses, dry_run=True, diffs=diffs) == [
        "web[1-2] (2 hosts)  would change", "    motd:", *changes, "db  skipped", "app  ok",
    ]  # fmt: skip
    assert written(capsys, *responses, dry_run=True) == ["web[1-2] (2 hosts)  would change", "db  skipped", "app  ok"]
    other = {**diffs, "web2": [("motd", diff.replace("new", "newer"))]}
    assert [group.hosts for group in groups(responses[:2], diffs=other)] == [["web1"], ["web2"]]


def test_an_output_that_was_cut_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    record = Completed(command="x", stdout="begin ... end\n")
    record.update(truncated=True, stdout_size=10**9, stderr_size=0)

    assert written(capsys, answer("web1", record)) == [
        "web1  ok", "    begin ... end", "    (stdout had 1,000,000,000 bytes: the middle is left out)",
    ]  # fmt: skip


def test_difference_is_a_unified_diff() -> None:
    usual = [(f"line {n}", "") for n in range(40)]
    other = [*usual[:5], ("new", "red"), *usual[5:30], *usual[31:]]

    assert [text for text, _ in difference(usual, other)] == [
        "@@ -5,2 +5,3 @@", " line 4", "+new", " line 5", "@@ -30,3 +31,2 @@", " line 29", "-line 30", " line 31",
    ]  # fmt: skip
    assert difference(usual, usual) == []
    assert difference(usual, []) == difference([], usual) == []


@pytest.mark.parametrize("differing", [0, 50, 5000])
def test_many_hosts_fold_in_no_time(differing: int, capsys: pytest.CaptureFixture[str]) -> None:
    text = "".join(f"a line that has a number, {n}\n" for n in range(350))  # 10 kB
    responses = [
        ran(f"web{n:04}", text + f"{n}\n" if n < differing else text.replace(", 7\n", f", {n % 2}\n"))
        for n in range(5000)
    ]
    start = time.process_time()
    lines = written(capsys, *responses)

    assert time.process_time() - start < 10  # it takes one second or less here
    assert sum(line.startswith("web") for line in lines) == (differing + 2 if differing < 5000 else 5000)
