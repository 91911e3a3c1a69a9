"""FDDB: ellipse lists in FDDB-folds/, each ellipse read as its bounding box, one class `face`.

An ellipse is `major_radius minor_radius angle centre_x centre_y 1`, the angle in radians between the major
axis and the horizontal. The box holds the rotated ellipse exactly: half its width is
sqrt(a^2 cos^2 t + b^2 sin^2 t), half its height sqrt(a^2 sin^2 t + b^2 cos^2 t). Boxes are clipped to the
image.
All folds together are one set, offered as `train`.
Source: Jain and Learned-Miller, FDDB, UMass technical report UM-CS-2010-009, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from detsearch_cli import reading
from detsearch_cli.data import checks
from detsearch_cli.data.checks import Collector, Objects
from detsearch_cli.data.formats._find import Finder, composed
from detsearch_cli.data.images import find_images
from detsearch_cli.data.types import Split
from detsearch_cli.errors import DataError

_PLACES = ("images", "originalPics", "")


def detect(folder: Path) -> bool:
    """Whether a FDDB-fold-*-ellipseList.txt lies in FDDB-folds/ or in the folder."""
    return bool(_files(folder))


def splits(folder: Path) -> tuple[str, ...]:
    """("train",)."""
    return ("train",) if detect(folder) else ()


def load(folder: Path, split: str) -> Split:
    """Read all folds. Raises DataError, naming the line, when a list breaks its pattern."""
    collector = Collector(folder, split)
    places = [folder / p for p in _PLACES if (folder / p).is_dir()]
    finder = Finder()
    seen: set[str] = set()
    for path in _files(folder):
        for name, ellipses in _blocks(path):
            if composed(name) in seen:
                collector.defect(checks.DUPLICATE_ID, path, f"{name} is listed twice", "second one left out")
                continue
            seen.add(composed(name))
            found = (finder.file(place, f"{name}.jpg") for place in places)
            file = next((p for p in found if p is not None), places[0] / f"{name}.jpg")
            header = collector.open(file, path.name)
            if header is None:
                continue
            objects = Objects()
            for ellipse in ellipses:
                objects.append(ellipse_box(*ellipse), 0)
            collector.add(file, header, objects, where=path)
    _orphans(collector, seen)
    return collector.finish(("face",))


def _orphans(collector: Collector, named: set[str]) -> None:
    """Images in images/ that no fold names. originalPics/ holds ten times what is annotated, by design."""
    images = collector.folder / "images"
    for file in find_images(images, recursive=True) if images.is_dir() else []:
        if composed(file.relative_to(images).with_suffix("").as_posix()) not in named:
            collector.defect(checks.IMAGE_ONLY, file, "named by no fold", "image left out")


def ellipse_box(
    major: float, minor: float, angle: float, centre_x: float, centre_y: float
) -> tuple[float, float, float, float]:
    """Bounding box xyxy of a rotated ellipse; radii and centre in px, angle in radians."""
    half_width = math.hypot(major * math.cos(angle), minor * math.sin(angle))
    half_height = math.hypot(major * math.sin(angle), minor * math.cos(angle))
    return centre_x - half_width, centre_y - half_height, centre_x + half_width, centre_y + half_height


def _files(folder: Path) -> list[Path]:
    for place in (folder / "FDDB-folds", folder):
        found = sorted(place.glob("FDDB-fold-*-ellipseList.txt"))
        if found:
            return found
    return []


def _blocks(path: Path) -> Iterator[tuple[str, list[tuple[float, float, float, float, float]]]]:
    """(image, ellipses) for each image. Raises DataError naming the line that breaks the pattern."""
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
        rows = lines[at + 1 : at + 1 + count]
        if len(rows) < count:
            raise DataError(f"{path} is cut short: {name} (line {at}) has {len(rows)} of {count} faces")
        yield name, [_ellipse(path, at + 2 + i, row) for i, row in enumerate(rows)]
        at += 1 + count


def _ellipse(path: Path, number: int, line: str) -> tuple[float, float, float, float, float]:
    words = line.split()
    values = [value for word in words if (value := reading.decimal(word)) is not None]
    # all six, the last is always 1: with one lost the others would be read as what they are not
    if len(values) != 6 or len(words) != 6 or values[0] < 0 or values[1] < 0:
        raise DataError(
            f"{path} line {number}: an ellipse is two radii, an angle, a centre and 1, got {checks.short(line)}"
        )
    major, minor, angle, centre_x, centre_y, _ = values
    return major, minor, angle, centre_x, centre_y
