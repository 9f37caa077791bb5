"""The image is built once, by one of those who need it, and from nothing but the sources of this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import image
from tests.lab.hosts import Lab
from tests.lab.image import BuildFailed, Recipe

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cache(lab: Lab, tmp_path: Path) -> Path:
    """Another cache, which has the tarball only."""
    tarball = lab.root.with_name(f"{lab.root.name}.tar.gz")
    (tmp_path / tarball.name).symlink_to(tarball)
    return tmp_path


def build(cache: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.lab", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"REEMOTE_LAB_CACHE": str(cache), "REEMOTE_LAB_SUITE": image.SUITE},
    )


def test_two_processes_share_one_image(lab: Lab, cache: Path) -> None:
    # What a killed build has left is cleared away.
    (cache / f"{lab.root.name}.new-old").mkdir()
    processes = [build(cache) for _ in range(2)]
    results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert all(out.startswith(f"{cache / lab.root.name} (tarball of ") for out, _ in results)
    assert {each.name for each in cache.iterdir()} == {
        lab.root.name,
        f"{lab.root.name}.lock",
        f"{lab.root.name}.tar.gz",
    }
    unpacked = cache / lab.root.name
    for file in ["etc/shadow", "usr/bin/sudo", "usr/sbin/sshd", "var/lib/dpkg/status", "tmp"]:
        first, second = (lab.root / file).stat(), (unpacked / file).stat()
        assert (first.st_mode, first.st_uid, first.st_gid) == (second.st_mode, second.st_uid, second.st_gid)


def test_the_image_holds_nothing_of_its_build(lab: Lab) -> None:
    assert list((lab.root / "etc/ssh").glob("ssh_host_*")) == []
    assert list((lab.root / "var/cache/apt/archives").glob("*.deb")) == []
    assert (lab.root / "etc/machine-id").read_text() == ""
    assert (lab.root / "etc/apt/sources.list").read_text() == ""
    assert not (lab.root / "etc/resolv.conf").exists()
    assert list((lab.root / "proc").iterdir()) == []


@pytest.mark.usefixtures("lab")
def test_what_differs_has_another_name() -> None:
    recipe = Recipe()
    names = {recipe.name, Recipe("sid").name, Recipe(packages=(*recipe.packages, "doas")).name}
    assert len(names) == 3
    assert Recipe(packages=recipe.packages[::-1]).name == recipe.name
    assert Recipe(recipe.codename).name == recipe.name
    assert re.fullmatch(r"sid-[0-9a-f]{16}", Recipe("sid").name)


def test_a_build_that_fails_says_why_and_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "CACHE", cache / "new")
    recipe = Recipe("nonesuch")
    with pytest.raises(BuildFailed, match="No such script"):
        recipe.ensure()
    assert [each.name for each in (cache / "new").iterdir()] == [f"{recipe.name}.lock"]


@pytest.mark.usefixtures("lab")
def test_the_mirror_is_that_of_this_machine() -> None:
    mirror = image._mirror(Recipe().codename)
    sources = "".join(
        path.read_text()
        for path in [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
        if path.is_file()
    )
    assert mirror in sources
    # A suite that the machine does not have comes from where its own one does.
    assert image._mirror("nonesuch") == mirror


def test_the_program_says_how_it_is_used(tmp_path: Path) -> None:
    process = build(tmp_path, "--help")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "usage: python -m tests.lab [--again]" in out


def test_the_program_needs_root(tmp_path: Path) -> None:
    other = ["unshare", "-U"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*other, sys.executable, "-m", "tests.lab"],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"REEMOTE_LAB_CACHE": str(tmp_path)},
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (1, "lab: needs root, for the files of all users\n")
