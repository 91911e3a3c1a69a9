"""Finds images that are in a data set twice: in one split, or in what is trained on and what is scored.

Two files are the same image where they are one file, or where their bytes are equal. Few are ever read: only those
with a size in bytes that occurs twice, of these the last block, and whole only those that agree in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from detsearch_cli.data.types import Defect, Record, Split
from detsearch_cli.errors import DataError
from detsearch_cli.reading import open_regular

TWICE, ACROSS = "same image twice", "same image in two splits"
TAIL = 4096
"""Bytes. Of two JPEGs of one camera the heads are often equal, the ends hardly ever."""
_Place = tuple[int, int]  # which of the splits, which row
_Group = list[_Place]


def copies(parts: Sequence[Split], across: bool = True) -> list[_Group]:
    """Groups of (split, row) that show the same image, in order. across: only those that lie in several splits."""
    files: dict[_Place, _File] = {}
    sizes: dict[Hashable, _Group] = {}
    for number, part in enumerate(parts):
        for row, record in enumerate(part.records):
            place = (number, row)
            if record.file is None:
                sizes.setdefault(record.key or place, []).append(place)
                continue
            # one that vanished is like no other: whoever reads it says so
            with contextlib.suppress(OSError):
                files[place] = _File.of(record.file)
                sizes.setdefault(files[place].size, []).append(place)
    groups = [group for group in sizes.values() if _wanted(group, across)]
    for read in (tail, _content):
        groups = [same for group in groups for same in _divide(group, files, read) if _wanted(same, across)]
    return groups


@dataclass(frozen=True)
class _File:
    """A file as the disk knows it: two names of one file have one identity."""

    path: Path
    size: int
    identity: tuple[int, int]

    @staticmethod
    def of(path: Path) -> _File:
        state = os.stat(path)  # noqa: PTH116  100,000 of them
        return _File(path, state.st_size, (state.st_dev, state.st_ino))


def _wanted(group: _Group, across: bool) -> bool:
    return len({part for part, _ in group}) > 1 if across else len(group) > 1


def _divide(group: _Group, files: dict[_Place, _File], read: Callable[[Path], bytes]) -> list[_Group]:
    """The group by what `read` gives of each file; one whose members are all one file is not read."""
    if len({files[place].identity for place in group if place in files}) < 2:
        return [group]
    by_content: dict[bytes, _Group] = {}
    known: dict[tuple[int, int], bytes] = {}
    for place in group:
        file = files[place]
        with contextlib.suppress(DataError, OSError):
            content = known.get(file.identity) or known.setdefault(file.identity, read(file.path))
            by_content.setdefault(content, []).append(place)
    return list(by_content.values())


def tail(path: Path) -> bytes:
    """A hash of a file's last TAIL bytes. Raises DataError and OSError."""
    with open_regular(path, DataError) as file:
        file.seek(-min(TAIL, path.stat().st_size), os.SEEK_END)
        return hashlib.blake2b(file.read(TAIL), digest_size=8).digest()


def _content(path: Path) -> bytes:
    with open_regular(path, DataError) as file:
        return hashlib.blake2b(file.read()).digest()


def found_twice(split: Split, before: Sequence[Split] = ()) -> list[Defect]:
    """A defect for every image of `split` that is in it a second time, or in one of the splits `before`."""
    parts = [*before, split]
    last = len(parts) - 1
    defects = []
    for group in copies(parts, across=False):
        for number, (part, row) in enumerate(group):
            if part == last and number > 0:
                first, other = group[0]
                kind = TWICE if first == last else ACROSS
                beside = _name(parts[first].records[other])
                defects.append(
                    Defect(kind, _name(split.records[row]), f"in {parts[first].name} as {beside}", "kept")
                )
    return defects


def trained_on(train: Split, scored: Split) -> str | None:
    """The sentence that says how many images of `scored` are those of `train`; None where none is."""
    rows, first = _shared(train, scored)
    return warning(len(rows), scored, first) if rows else None


def in_both(one: Split, other: Split) -> str | None:
    """The sentence that says how many images of `other` are in `one` as well; None where none is."""
    rows, first = _shared(one, other)
    if not rows:
        return None
    return f"{len(rows)} of the {len(other)} images of {other.name!r} are in {one.name!r} as well (first: {first})"


def warning(count: int, scored: Split, first: str) -> str:
    """The sentence about scoring what was trained on. first: one of the `count` images."""
    return (
        f"{count} of the {len(scored)} images of {scored.name!r} are trained on as well, so a score on them proves "
        f"nothing (first: {first})"
    )


def _shared(one: Split, other: Split) -> tuple[list[int], str]:
    """The rows of `other` whose images are in `one`, and the files of the first."""
    found: dict[int, int] = {}
    for group in copies((one, other)):
        found |= {row: group[0][1] for part, row in group if part == 1}
    rows = sorted(found)
    if not rows:
        return rows, ""
    here, there = _name(other.records[rows[0]]), _name(one.records[found[rows[0]]])
    return rows, here if here == there else f"{here} is {there}"


def _name(record: Record) -> str:
    return record.file.as_posix() if record.file else record.key or f"image {record.image_id}"
