"""Many names in few words."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reemote.cli.folding import fold, folded


@pytest.mark.parametrize(
    ("names", "folding"),
    [
        ([], ""),
        (["db"], "db"),
        (["web1"], "web1"),
        (["db", "web", "app"], "db,web,app"),
        ([f"web{n:02}" for n in range(1, 13)], "web[01-12]"),
        (["web3", "web1", "web2"], "web[1-3]"),
        (["web1", "web3"], "web[1,3]"),
        (["web8", "web9", "web10", "web11"], "web[8-11]"),
        (["web08", "web09", "web10", "web11"], "web[08-11]"),
        (["web1", "web01", "web2", "web02"], "web[1-2,01-02]"),
        (["web99", "web098", "web100"], "web[99,098,100]"),
        (["web1", "web1"], "web1"),
        (["web2", "db", "web1", "db2"], "web[1-2],db,db2"),
        (["web01.example.com", "web02.example.com", "web01.example.org"], "web[01-02].example.com,web01.example.org"),
        ([f"10.0.0.{n}" for n in range(1, 51)], "10.0.0.[1-50]"),
        ([f"10.0.{a}.{b}" for a in (0, 1) for b in (1, 2)], "10.0.[0-1].[1-2]"),
        (["10.0.0.1", "10.0.0.2", "10.0.1.1"], "10.0.0.[1-2],10.0.1.1"),
        (["dc1-web01", "dc2-web01", "dc3-web01"], "dc[1-3]-web01"),
        (["2001:db8::1", "2001:db8::2"], "2001:db8::[1-2]"),
        (["1", "2", "3"], "[1-3]"),
        (["a[1]", "a[2]"], "a[1],a[2]"),
        (["n" + "1" * 40, "n" + "1" * 39 + "2"], f"n{'1' * 36}[1111-1112]"),
    ],
)
def test_fold(names: list[str], folding: str) -> None:
    assert fold(names) == folding


def unfolded(word: str) -> list[str]:
    """Give the names that a folded word stands for."""
    parts = re.split(r"\[([0-9,-]+)\]", word)
    choices: list[list[str]] = [[part] for part in parts]
    for place in range(1, len(parts), 2):
        choices[place] = []
        for run in parts[place].split(","):
            first, _, last = run.partition("-")
            numbers = range(int(first), int(last or first) + 1)
            choices[place] += [str(number).zfill(len(first) if first.startswith("0") else 0) for number in numbers]
    return ["".join(name) for name in itertools.product(*choices)]


NAMES = st.lists(st.from_regex(r"(web|db|10\.)(0?[0-9]{1,2})(\.dc|-)?(0{0,2}[0-9]{0,2})(\.x)?", fullmatch=True))


@given(NAMES)
def test_no_name_is_lost_or_made_up(names: list[str]) -> None:
    found = [name for word in folded(names) for name in unfolded(word)]

    assert sorted(found) == sorted(set(names))
