"""``reemote sandbox``: hosts that stay up, and the files that tell of them."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, Start
from tests.leaks import alive
from tests.programs import run_program

pytestmark = pytest.mark.slow


def up(process: subprocess.Popen[str]) -> list[str]:
    """Wait until the hosts are up, and give the lines that say so."""
    assert process.stdout is not None
    return [process.stdout.readline() for _ in range(4)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_from_start_to_end(start: Start, cli: Cli, tmp_path: Path, number: signal.Signals) -> None:
    file = tmp_path / "my hosts.json"
    file_of_keys = tmp_path / "my hosts.known_hosts"
    process = start("sandbox", "--hosts", "2", "--inventory", file)

    lines = up(process)
    assert lines[0] == "2 hosts: sandbox1, sandbox2\n"
    assert f"reemote run FILE.py -i '{file}'" in lines[2]
    for path in (file, file_of_keys):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [item["connection"]["host"] for item in json.loads(file.read_text())["hosts"]] == ["sandbox1", "sandbox2"]

    program = tmp_path / "where.py"
    program.write_text(
        "from reemote.host import Shell\n"
        "class Where:\n"
        "    async def execute(self):\n"
        "        yield Shell(cmd='echo $$; pwd; sleep 300 >/dev/null 2>&1 & echo $!')\n"
    )
    done = cli("run", program, "-i", file, "-o", "json")
    assert (done.code, done.err) == (0, "")
    answers = [response["value"]["stdout"].split() for response in json.loads(done.out)]
    homes = [Path(word) for answer in answers for word in answer if word.startswith("/")]
    left = [int(answer[-1]) for answer in answers]
    assert len(set(homes)) == 2
    assert all(home.is_dir() for home in homes)

    process.send_signal(number)
    out, err = process.communicate(timeout=20)

    assert (process.returncode, out, err) == (0, "Stopped.\n", "")
    assert not file.exists()
    assert not file_of_keys.exists()
    assert not any(home.exists() for home in homes)
    assert not any(map(alive, left))


def test_other_programs_use_it_too(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "sandbox.json"
    process = start("sandbox", "--hosts", "1", cwd=tmp_path)
    up(process)
    program = tmp_path / "program.py"
    program.write_text(
        "from reemote import run\n"
        "from reemote.host import Shell\n"
        f"print(run(lambda: Shell(cmd='echo there'), {str(file)!r})[0].value.stdout)\n"
    )
    done = run_program(program, inventory_file=file)

    assert (done.stdout, done.stderr) == ("there\n\n", "")


@pytest.mark.parametrize("name", ["hosts.json", "hosts.known_hosts"])
def test_existing_files_are_not_replaced(cli: Cli, tmp_path: Path, name: str) -> None:
    existing = tmp_path / name
    existing.write_text("mine")
    done = cli("sandbox", "--inventory", tmp_path / "hosts.json")

    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"Error: {existing} exists")
    assert existing.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_links_are_not_followed(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "hosts.json").symlink_to(tmp_path / "elsewhere")
    done = cli("sandbox", "--inventory", tmp_path / "hosts.json")

    assert done.code == 2
    assert not (tmp_path / "elsewhere").exists()


def test_directory_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    done = cli("sandbox", "--inventory", tmp_path / "nowhere" / "hosts.json")

    assert (done.code, done.out) == (2, "")
    assert done.err.endswith("cannot be written: No such file or directory\n")
