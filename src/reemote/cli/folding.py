"""Many names in few words: ``web01`` to ``web12`` are ``web[01-12]``, as in ClusterShell's node sets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

_NUMBER = re.compile(r"([0-9]{1,18})")

_Parts = tuple[str, ...]
"""A name taken apart: text, number, text, number, ..., text."""


def fold(names: Iterable[str]) -> str:
    """Write *names* as ranges of numbers, separated by commas.

    Several brackets in a word stand for every combination. Numbers are in their order, what has nothing to
    do with each other is in the order in which it came. Names that contain brackets are left as they are.
    """
    return ",".join(folded(names))


def folded(names: Iterable[str]) -> Iterator[str]:
    """Give the words of which :func:`fold` makes a line."""
    alike: dict[_Parts, list[_Parts]] = {}
    for name in dict.fromkeys(names):
        parts = tuple(_NUMBER.split(name)) if not {"[", "]", ","} & set(name) else (name,)
        alike.setdefault(parts[::2], []).append(parts)
    for found in alike.values():
        yield from map("".join, _folded(found))


def _folded(names: list[_Parts]) -> list[_Parts]:
    """Fold names that differ in their numbers only: by the last number, then by the one before it, and so on."""
    for place in range(len(names[0]) - 2, 0, -2):
        alike: dict[_Parts, list[str]] = {}
        for name in names:
            alike.setdefault((*name[:place], "", *name[place + 1 :]), []).append(name[place])
        names = [(*key[:place], _ranges(numbers), *key[place + 1 :]) for key, numbers in alike.items()]
    return names


def _ranges(numbers: Sequence[str]) -> str:
    """Write numbers as ranges in brackets; a single one stays as it is."""
    if len(numbers) == 1:
        return numbers[0]
    padded = {len(number) for number in numbers if number.startswith("0") and len(number) > 1}
    by_width: dict[int, list[int]] = {}
    for number in numbers:
        by_width.setdefault(len(number) if len(number) in padded else 0, []).append(int(number))
    found = [_range(run, width) for width in sorted(by_width) for run in _runs(sorted(by_width[width]))]
    return f"[{','.join(found)}]"


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Give the first and the last number of each run without a gap."""
    for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        found = [number for _, number in run]
        yield found[0], found[-1]


def _range(run: tuple[int, int], width: int) -> str:
    first, last = (f"{number:0{width}}" for number in run)
    return first if first == last else f"{first}-{last}"
