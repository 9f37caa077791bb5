"""What type checkers make of programs: mypy accepts those that are right, and finds what is wrong in others."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent / "typing"
ROOT = HERE.parent.parent


def mypy(name: str) -> list[str]:
    """Give mypy's errors for one file, as ``line: code``."""
    options = ["--no-pretty", "--hide-error-context", "--no-color-output"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, f"tests/typing/{name}"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.stderr == ""
    errors = re.findall(r"^(.+?):(\d+): error: (.*)  \[([a-z-]+)\]$", done.stdout, re.MULTILINE)
    elsewhere = [error for error in errors if Path(error[0]).name != name]
    assert elsewhere == [], "errors in the package itself"
    assert errors or "Success" in done.stdout, done.stdout
    return [f"{line}: {code}" for _, line, _, code in errors]


def expected(name: str) -> list[str]:
    lines = (HERE / name).read_text().splitlines()
    found = ((number, re.search(r"# E: ([a-z-]+)$", line)) for number, line in enumerate(lines, 1))
    return [f"{number}: {match[1]}" for number, match in found if match]


def test_programs_that_are_right_have_no_type_error() -> None:
    assert mypy("ok.py") == []


def test_mistakes_are_type_errors() -> None:
    assert len(expected("must_fail.py")) > 30
    assert mypy("must_fail.py") == expected("must_fail.py")
