"""Brainwash: brainwash_{train,val,test}.idl beside the image folders they name, one class `head`.

A line is `"path.png": (x1, y1, x2, y2), (...);`, the last one ends with a full stop. Boxes are continuous
pixels; the format lets any two opposite corners name a box, so swapped ones are no defect.
Source: Stewart and Andriluka, End-to-end people detection in crowded scenes, released annotations.
"""

from __future__ import annotations

import re
from pathlib import Path

from detsearch_cli import reading
from detsearch_cli.data import checks
from detsearch_cli.data.checks import Collector, Objects
from detsearch_cli.data.formats import _layout
from detsearch_cli.data.formats._find import Finder, composed
from detsearch_cli.data.images import find_images
from detsearch_cli.data.types import Split
from detsearch_cli.errors import DataError

_LINE = re.compile(r'^"([^"]+)"\s*(?::\s*(.*?))?\s*[;.]?\s*$')
_NUMBER = r"\s*([-+0-9.eE]+|nan|inf)\s*"
_BOX = re.compile(rf"\({_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\)(?:\s*:\s*[-+0-9.eE]+)?(?:/[-+0-9.]+)?")


def detect(folder: Path) -> bool:
    """Whether an .idl file lies in the folder."""
    return bool(_files(folder)[0])


def splits(folder: Path) -> tuple[str, ...]:
    """Those of train, val, test whose .idl file names images."""
    found = _files(folder)[0]
    return tuple(s for s in _layout.SPLITS if s in found)


def load(folder: Path, split: str) -> Split:
    """Read one split. Raises DataError, naming the line, for a line that is no idl."""
    files, empty = _files(folder)
    path = _layout.file_of(split, files, folder)
    collector = Collector(folder, split)
    finder = Finder()
    seen: set[str] = set()
    for number, line in enumerate(reading.read_text(path, DataError).splitlines(), start=1):
        if not line.strip():
            continue
        name, objects = _parse(path, number, line.strip())
        if composed(name) in seen:
            collector.defect(checks.DUPLICATE_ID, path, f"{name} is listed twice", "second one left out")
            continue
        seen.add(composed(name))
        file = finder.file(folder, name) or folder / name
        header = collector.open(file, path.name)
        if header is not None:
            collector.add(file, header, objects, where=path)
    if split == splits(folder)[0]:
        _orphans(collector, files)
        collector.not_offered(empty)
    return collector.finish(("head",))


def _parse(path: Path, number: int, line: str) -> tuple[str, Objects]:
    match = _LINE.match(line)
    rest = _BOX.sub("", match.group(2) or "") if match else line
    if match is None or rest.strip(" ,\t"):
        raise DataError(f'{path} line {number}: expected "image": (x1, y1, x2, y2), ...; found {line[:80]!r}')
    objects = Objects()
    for x1, y1, x2, y2 in _BOX.findall(match.group(2) or ""):
        read = [reading.decimal(word) for word in (x1, y1, x2, y2)]
        values = [value for value in read if value is not None]
        if len(values) < 4:
            got = checks.short((x1, y1, x2, y2))
            raise DataError(f"{path} line {number}: a box is four numbers, got {got}")
        left, right = sorted(values[0::2])
        top, bottom = sorted(values[1::2])
        objects.append((left, top, right, bottom), 0)
    return match.group(1), objects


def _files(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """(.idl file of each split, those that name no image)."""
    found = sorted(p for p in folder.glob("*.idl") if p.is_file())
    if len(found) == 1:
        return {_layout.split_name(found[0].stem) or "train": found[0]}, {}
    named = {name: p for p in reversed(found) if (name := _layout.split_name(p.stem))}
    return _layout.without_empty(named, _layout.is_blank)


def _orphans(collector: Collector, files: dict[str, Path]) -> None:
    """Images that no list names, in the folders that lists name; looked for once, with the first split."""
    named = {
        composed(match.group(1))
        for path in files.values()
        for line in reading.read_text(path, DataError).splitlines()
        if (match := _LINE.match(line.strip()))
    }
    for place in sorted({Path(name).parent for name in named}):
        folder = collector.folder / place
        for image in find_images(folder) if folder.is_dir() else []:
            if composed((place / image.name).as_posix()) not in named:
                collector.defect(checks.IMAGE_ONLY, image, "named by no .idl file", "image left out")
