"""The benchmarks measure what they say: each works in a tiny size, and what did not do its work is no figure.

What they compare with need not be installed; what is, is tried.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from bench import cold, compare, internal, report, scale, sidebyside
from bench.beds import ROOT, Bed, addresses, bed, delayed, why_no_bed
from bench.clients import CLIENTS as KINDS
from bench.clients import Clock, Spec
from bench.report import Aim, Column, Result, against, against_fastest
from bench.sidebyside import CLIENTS, Client, Job, Rejected, available, installed, medians, run_client

# The word is a keyword of Python.
imports = importlib.import_module("bench.import")

BY_NAME = {each.name: each for each in CLIENTS}
OURS = BY_NAME["reemote"]
INSTALLED = [each for each in CLIENTS if each.needs and installed(each.needs) and not each.slow]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Bed]:
    if why := why_no_bed():
        pytest.skip(why)
    with bed() as found:
        yield found


def needed(run: sidebyside.Run) -> None:
    """Each figure of a run says something."""
    assert 0 < run["work_wall"] <= run["wall"]
    assert 0 < run["work_cpu"] <= run["cpu"]


# The clients


@pytest.mark.slow
@pytest.mark.parametrize(
    ("client", "task"),
    [
        ("reemote", "cold"),
        ("reemote", "warm"),
        ("reemote", "connect"),
        ("asyncssh", "warm"),
        ("asyncssh", "connect"),
        ("asyncssh, files read once", "cold"),
    ],
)
def test_client_does_its_work(hosts: Bed, client: str, task: str) -> None:
    job = Job(task, addresses(1), repeat=2) if task == "connect" else Job(task, addresses(2), commands=2)

    run = run_client(hosts, BY_NAME[client], job)

    needed(run)
    assert run["wall"] > run["work_wall"]
    assert run["peak"] > 10


@pytest.mark.slow
@pytest.mark.parametrize("client", INSTALLED, ids=lambda each: each.name)
def test_others_do_their_work(hosts: Bed, client: Client) -> None:
    # Masters of ssh stay behind where a test is interrupted.
    task = "cold" if client.name.startswith("OpenSSH") else "warm"
    run = run_client(hosts, client, Job(task, addresses(2), commands=2), sample=True)

    needed(run)
    assert run["peak"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("task", ["cold", "connect"])
def test_programs_have_no_part_that_is_not_their_work(hosts: Bed, task: str) -> None:
    run = run_client(hosts, BY_NAME["OpenSSH ssh, curve25519"], Job(task, addresses(1)))

    assert (run["wall"], run["cpu"]) == (run["work_wall"], run["work_cpu"])


@pytest.mark.slow
def test_far_away(hosts: Bed) -> None:
    with delayed(hosts, 0.02) as far:
        job = Job("warm", ["127.0.0.1"], commands=2)
        run = compare.with_trips(run_client(far, OURS, job), job, 0.02)

    assert run["trips"] >= 1


@pytest.mark.slow
def test_clients_start_with_nobodys_settings(hosts: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/nowhere")
    monkeypatch.setenv("REEMOTE_INVENTORY", "/nowhere")

    with hosts.start(["env"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        variables = dict(line.split("=", 1) for line in process.stdout.read().decode().splitlines())

    assert set(variables) <= {"PATH", "LANG", "LC_ALL", "PYTHONPATH", "HOME", "PWD", "SHLVL", "_"}
    assert list(Path(variables["HOME"]).iterdir()) == []


# What is no figure


HEARD = {"a": ["word-0", "word-1\n"], "b": ["word-0", "word-1"]}


def test_what_was_heard_is_checked() -> None:
    sidebyside.check("client", HEARD, Job("cold", ["a", "b"], commands=2), "word")


@pytest.mark.parametrize(
    ("heard", "job", "problem"),
    [
        ({}, Job("cold", ["a", "b"]), "0 hosts answered, and not the 2"),
        ({"a": ["word-0"]}, Job("cold", ["a", "b"]), "1 hosts answered, and not the 2"),
        ({"a": ["word-0"], "c": ["word-0"]}, Job("cold", ["a", "b"]), "2 hosts answered, and not the 2"),
        ({"a": []}, Job("cold", ["a"]), "a said []"),
        ({"a": ["word-0"]}, Job("cold", ["a"], commands=2), "a said"),
        ({"a": ["word-1", "word-0"]}, Job("cold", ["a"], commands=2), "a said"),
        ({"a": ["other-0"]}, Job("cold", ["a"]), "a said"),
        ({"a": ["word-0", "word-0"]}, Job("connect", ["a"], repeat=3), "a said"),
        ({}, Job("cold", []), "nothing to do"),
        ({"a": []}, Job("cold", ["a"], commands=0), "nothing to do"),
    ],
)
def test_less_or_something_else_is_rejected(heard: dict[str, list[str]], job: Job, problem: str) -> None:
    with pytest.raises(Rejected, match=r"^client: ") as caught:
        sidebyside.check("client", heard, job, "word")

    assert problem in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("heard", [{}, {"127.1.0.1": ["word-0"]}])
def test_run_that_did_nothing_is_rejected(
    hosts: Bed, monkeypatch: pytest.MonkeyPatch, heard: dict[str, list[str]]
) -> None:
    def nothing(_: Bed, __: Client, spec: Spec) -> tuple[float, float]:
        took = {"wall": 0.001, "cpu": 0.001, "peak": 1.0, "programs": False, "figures": {}}
        Path(spec.result).write_text(json.dumps(took | {"heard": heard}))
        return 0.001, 0.001

    monkeypatch.setattr(sidebyside, "run_process", nothing)

    with pytest.raises(Rejected):
        run_client(hosts, OURS, Job("cold", addresses(1)))


@pytest.mark.slow
def test_client_that_fails_is_rejected(hosts: Bed) -> None:
    with pytest.raises(Rejected, match=r"^client ended with 1:\n(?s:.*)KeyError: 'nobody'"):
        run_client(hosts, Client("client", "nobody"), Job("cold", addresses(1)))


# Figures


def test_clock_adds_up() -> None:
    clock = Clock()
    for _ in range(2):
        with clock:
            sum(range(200_000))

    assert 0 < clock.cpu <= clock.wall * 1.5


def test_clients_are_known() -> None:
    assert {each.kind for each in (*CLIENTS, *internal.CLIENTS, scale.OURS, scale.THEIRS)} == set(KINDS)
    assert len(BY_NAME) == len(CLIENTS)


def test_addresses_are_loopback_addresses_and_differ() -> None:
    found = addresses(70_000)

    assert len(set(found)) == 70_000
    assert found[:2] == ["127.1.0.1", "127.1.0.2"]
    assert all(0 <= int(part) <= 255 for each in found for part in each.split("."))


RUNS: sidebyside.Runs = {
    "reemote": [{"wall": 1.0, "cpu": 4.0}, {"wall": 3.0, "cpu": 2.0}, {"wall": 2.0, "cpu": 2.0}],
    "asyncssh": [{"wall": 4.0, "cpu": 8.0}, {"wall": 5.0, "cpu": 8.0}, {"wall": 4.0, "cpu": 1.0}],
    "other": [{"wall": 1.0, "cpu": 1.0}],
}


def test_medians_and_ratios() -> None:
    figures = medians(RUNS)

    assert figures["reemote"] == {"wall": 2.0, "cpu": 2.0}
    assert against("wall", "reemote")(figures) == 0.5
    assert against("cpu", "reemote", "other")(figures) == 2.0
    assert against("cpu", "reemote", "nobody")(figures) is None
    assert against("cpu", "nobody")(figures) is None
    assert against_fastest("wall", "reemote")(figures) == 2.0
    assert against_fastest("wall", "reemote")({"reemote": {"wall": 1.0}}) is None


def result() -> Result:
    aims = [
        Aim("half", against("wall", "reemote"), 0.5),
        Aim("less", against("cpu", "reemote"), 0.2, "times"),
        Aim("other", against("cpu", "reemote", "nobody"), 1.0),
    ]
    columns = [Column("wall", "s", 2, ratio=True), Column("cpu", "cpu s", 1)]
    return Result("name", "Title", {"rounds": 3}, RUNS, columns, aims)


def test_aims_are_met_or_missed() -> None:
    assert report.verdict_lines(result()) == [
        "met: half: 0.50, aim 0.5",
        "missed: less: 0.25, aim 0.2 times",
        "not measured: other: aim 1",
    ]


def test_tables() -> None:
    assert report.plain_table(result()).splitlines() == [
        "                                 s     x  cpu s",
        "reemote                       2.00  0.50    2.0",
        "asyncssh                      4.00  1.00    8.0",
        "other                         1.00  0.25    1.0",
    ]
    assert report.markdown_table(result()).splitlines() == [
        "|  | s | x | cpu s |",
        "| --- | ---: | ---: | ---: |",
        "| reemote | 2.00 | 0.50 | 2.0 |",
        "| asyncssh | 4.00 | 1.00 | 8.0 |",
        "| other | 1.00 | 0.25 | 1.0 |",
    ]


def test_page_takes_the_tables(tmp_path: Path) -> None:
    places = "<!-- machine -->\n\n<!-- end of machine -->\n\n<!-- name -->\nold\n<!-- end of name -->\nlast\n"
    (tmp_path / "page.md").write_text(places)
    given = report.arguments("", {}, rounds=1).parse_args([f"--page={tmp_path / 'page.md'}"])

    for _ in range(2):  # the second time changes nothing more
        report.tell([result()], given, report.machine())
        page = (tmp_path / "page.md").read_text()
        assert "old" not in page
        assert re.search(r"<!-- name -->\n\nTitle; medians of 3 runs, load \S+ before:\n\n\|  \| s \|", page)
        assert "- met: half: 0.50, aim 0.5\n" in page
        assert page.endswith("aim 1\n\n<!-- end of name -->\nlast\n")
        assert page.count("for clients and server together") == 1

    with pytest.raises(ValueError, match="no place"):
        report.put("", "name", "")


def test_documentation_has_a_place_for_each_table() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()

    names = {"cold", "warm", "rtt", "connect", "import", "internal", "scale hold", "scale waves", "scale files"}
    for name in {*names, "machine"}:
        report.put(page, name, "")
    assert set(re.findall("<!-- end of (.*) -->", page)) == {*names, "machine"}


@pytest.mark.parametrize(("gate", "status"), [([], 0), (["--gate"], 1)])
def test_missed_aims_inform_and_end_with_1_where_they_are_a_gate(gate: list[str], status: int) -> None:
    given = report.arguments("", {}, rounds=1).parse_args(gate)

    assert report.tell([result()], given, report.machine()) == status


def test_what_is_not_installed_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    missing = [Client("Other", "other", needs="no-such-thing"), Client("Ours", "reemote", options={"no_such": 1})]

    assert available([*missing, OURS]) == [OURS]
    assert capsys.readouterr().out.splitlines() == [
        "Other: no-such-thing is not installed, so it has no row.",
        "Ours: there is no connection option no_such, so it has no row.",
    ]


def test_clients_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order = list[str]()

    def run(_: Bed, client: Client, __: Job, *, sample: bool) -> dict[str, float]:
        order.append(client.name)
        return {"wall": float(len(order)), "peak": 7.0 if sample else 0.0}

    monkeypatch.setattr(sidebyside, "run_client", run)
    seen = sidebyside.measure(cast(Bed, None), [Client("a", ""), Client("b", "")], Job("cold", ["host"]), rounds=2)

    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [run["wall"] for run in seen["a"]] == [4.0, 5.0]  # not the first, which warms up
    assert {run["peak"] for run in seen["a"]} == {7.0}  # but for the memory of programs


def test_numbers_are_from_1_on(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("0", "-1", "many"):
        with pytest.raises(SystemExit):
            compare.parser("", {"hosts": (1, "hosts")}).parse_args([f"--hosts={wrong}"])
        assert "is not a number from 1 on" in capsys.readouterr().err


# The programs


def test_task_runner_knows_them() -> None:
    text = (ROOT / "dev").read_text()
    told = re.search(r"run a benchmark: (.*)", text)
    known = re.search(r"^ *(cold \| .*)\) ;;", text, re.MULTILINE)
    programs = [path.stem for path in (ROOT / "bench").glob("*.py") if "__main__" in path.read_text()]

    assert told is not None
    assert known is not None
    assert re.findall(r"\w+", told[1].replace(" or ", " ")) == known[1].split(" | ")
    assert known[1].split(" | ") == sorted({*programs} - {"clients", "proxy"})


def machine_and_figures(document: dict[str, Any]) -> None:
    """The document has what belongs in it, and nothing that tells where it was made."""
    assert set(document) == {"machine", "versions", "benchmarks"}
    assert document["machine"]["processors"] > 0
    assert {"reemote", "asyncssh", "OpenSSH"} <= set(document["versions"])
    for each in document["benchmarks"]:
        assert set(each) == {"name", "title", "parameters", "medians", "runs", "aims"}
        assert all(set(aim) == {"aim", "most", "unit", "figure", "met"} for aim in each["aims"])
        assert set(each["medians"]) == set(each["runs"])
    assert "/" not in json.dumps(document)


@pytest.mark.slow
def test_cold_as_a_program(hosts: Bed, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"

    status = cold.main(["--hosts=2", "--rounds=1", "--only=reemote,asyncssh", f"--json={file}", "--markdown"])

    assert status == 0
    document = json.loads(file.read_text())
    machine_and_figures(document)
    [found] = document["benchmarks"]
    assert (found["name"], found["parameters"]["hosts"]) == ("cold", 2)
    assert {name: len(runs) for name, runs in found["runs"].items()} == {"reemote": 1, "asyncssh": 1}
    assert [aim["met"] is not None for aim in found["aims"]] == [True] * len(found["aims"])
    printed = capsys.readouterr().out
    assert "\n| reemote | " in printed
    assert printed.count("- met: ") + printed.count("- missed: ") == len(found["aims"])


@pytest.mark.slow
@pytest.mark.parametrize("client", internal.CLIENTS, ids=lambda each: each.name)
def test_internal(hosts: Bed, client: Client) -> None:
    needed(run_client(hosts, client, Job("command", addresses(1), commands=2)))


@pytest.mark.slow
def test_held_connections(hosts: Bed) -> None:
    """Ours and those of asyncssh."""
    found = scale.hold(hosts, 3, [2], 1)

    assert len(found.runs) == 2
    for [run] in found.runs.values():
        needed(run)
        assert run["each"] > 1
        assert run["late_max"] >= run["late_p99"] >= 0
        assert run["busy_max"] > 0


@pytest.mark.slow
def test_waves(hosts: Bed, tmp_path: Path) -> None:
    run = run_client(hosts, scale.OURS, Job("waves", addresses(5), limit=2))

    needed(run)
    assert 0 < run["open"] <= 2


@pytest.mark.slow
def test_few_files(hosts: Bed) -> None:
    found = scale.files(hosts, 3, 1)

    [run] = found.runs[scale.OURS.name]
    needed(run)


def test_what_failed_on_many_hosts_is_told_shortly() -> None:
    lines = [
        "reemote ended with 1:",
        "  + Exception Group Traceback (most recent call last):",
        '  |   File "x", line 1',
    ]
    causes = [f"    | reemote.core.errors.ConnectTimeout: host{number}: no answer" for number in range(9)]
    said = Rejected("\n".join([*lines, "  | reemote.core.errors.ExecutionError: 9 of 9 hosts failed", *causes]))

    assert scale.shortened(said).splitlines() == [
        "reemote ended with 1:",
        "    reemote.core.errors.ExecutionError: 9 of 9 hosts failed",
        "    reemote.core.errors.ConnectTimeout: host0: no answer",
        "    reemote.core.errors.ConnectTimeout: host1: no answer",
    ]


@pytest.mark.slow
def test_imports(capsys: pytest.CaptureFixture[str]) -> None:
    runs = imports.measure({"nothing": "pass", "json": "import json"}, rounds=1)

    assert runs["json"][0]["modules"] > runs["nothing"][0]["modules"]
    assert runs["json"][0]["wall"] > 0
    with pytest.raises(Rejected, match="import no_such_module: ended with 1"):
        imports.run("import no_such_module")
