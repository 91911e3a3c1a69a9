"""WIDER FACE: WIDER_{train,val}/images and wider_face_split/wider_face_*_bbx_gt.txt, one class `face`.

Faces flagged invalid are kept as ignored regions, like COCO's crowds: neither found nor missed faces count
there. Boxes are x y w h in continuous pixels. The test set has no public labels and is not offered.
Source: readme of wider_face_split.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from detsearch_cli import reading
from detsearch_cli.data import checks
from detsearch_cli.data.checks import Collector, Objects
from detsearch_cli.data.formats import _layout
from detsearch_cli.data.formats._find import Finder, composed
from detsearch_cli.data.images import find_images
from detsearch_cli.data.types import Split
from detsearch_cli.errors import DataError

_INVALID = 7


def detect(folder: Path) -> bool:
    """Whether a wider_face_*_bbx_gt.txt lies in wider_face_split/ or in the folder."""
    return bool(_files(folder)[0])


def splits(folder: Path) -> tuple[str, ...]:
    """Those of train, val, test whose label file names images."""
    found = _files(folder)[0]
    return tuple(s for s in _layout.SPLITS if s in found)


def load(folder: Path, split: str) -> Split:
    """Read one split. Raises DataError, naming the line, when the label file is cut short or no such file."""
    files, empty = _files(folder)
    path = _layout.file_of(split, files, folder)
    images = _images(folder, split)
    collector = Collector(folder, split)
    finder = Finder()
    seen: set[str] = set()
    for name, rows in _blocks(path):
        if composed(name) in seen:
            collector.defect(checks.DUPLICATE_ID, path, f"{name} is listed twice", "second one left out")
            continue
        seen.add(composed(name))
        file = finder.file(images, name) or images / name
        header = collector.open(file, path.name)
        if header is None:
            continue
        objects = Objects()
        for x, y, width, height, *rest in rows:
            invalid = len(rest) > _INVALID - 4 and rest[_INVALID - 4] == 1
            objects.append((x, y, x + width, y + height), 0, crowd=invalid)
        collector.add(file, header, objects, where=path)
    for file in find_images(images, recursive=True):
        if composed(file.relative_to(images).as_posix()) not in seen:
            collector.defect(checks.IMAGE_ONLY, file, f"not in {path.name}", "image left out")
    if split == splits(folder)[0]:
        collector.not_offered(empty)
    return collector.finish(("face",))


def _files(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """(label file of each split, those that name no image)."""
    for place in (folder / "wider_face_split", folder):
        found = {s: place / f"wider_face_{s}_bbx_gt.txt" for s in _layout.SPLITS}
        found = {s: p for s, p in found.items() if p.is_file()}
        if found:
            return _layout.without_empty(found, _layout.is_blank)
    return {}, {}


def _images(folder: Path, split: str) -> Path:
    places = (folder / f"WIDER_{split}" / "images", folder / f"WIDER_{split}", folder / "images")
    for place in places:
        if place.is_dir():
            return place
    raise DataError(f"no images of split {split!r}: looked for {', '.join(str(p) for p in places)}")


def _blocks(path: Path) -> Iterator[tuple[str, list[list[float]]]]:
    """(image, rows of numbers) for each image. Raises DataError naming the line that breaks the pattern."""
    lines = reading.read_text(path, DataError).splitlines()
    at = 0
    while at < len(lines):
        name = lines[at].strip()
        at += 1
        if not name:
            continue
        count = reading.whole(lines[at]) if at < len(lines) else None
        if count is None or count < 0:
            found = repr(lines[at]) if at < len(lines) else "the end of the file"
            raise DataError(f"{path} line {at + 1}: expected the number of faces of {name}, found {found}")
        # An image without faces is followed by one row of zeros all the same.
        rows = lines[at + 1 : at + 1 + max(count, 1)]
        if count == 0 and not (rows and _is_zeros(rows[0])):
            rows = []
        if len(rows) < count:
            raise DataError(f"{path} is cut short: {name} (line {at}) has {len(rows)} of {count} faces")
        yield name, [_numbers(path, at + 2 + i, row) for i, row in enumerate(rows[:count])]
        at += 1 + len(rows)


def _is_zeros(line: str) -> bool:
    words = line.split()
    return len(words) >= 4 and all(w == "0" for w in words)


def _numbers(path: Path, number: int, line: str) -> list[float]:
    values = [reading.decimal(word) for word in line.split()]
    numbers = [value for value in values if value is not None]
    if len(numbers) < max(4, len(values)):
        raise DataError(f"{path} line {number}: a face is at least x y w h, got {checks.short(line)}")
    return numbers
