"""The label file of an image: where it lies, and its lines of `class cx cy w h`, polygons, or boxes with key points."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from detsearch_cli import reading
from detsearch_cli.data.formats._find import Finder
from detsearch_cli.data.images import SUFFIXES

Box = tuple[float, float, float, float]


@dataclass
class Labels:
    """Objects of one file. boxes: xyxy in parts of the image; lines: where each stands, from 1.

    polygons: how many boxes are those of polygons; broken: what is wrong with the lines that were left out.
    """

    labels: list[int] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    polygons: int = 0
    broken: list[str] = field(default_factory=list)


def parse(text: str, key_numbers: int | None) -> Labels:
    """Read a label file. key_numbers: how many numbers of key points follow a box; None: the set has none.

    The same line can be a box with key points or a polygon. Only the set's yaml tells which, so no line is guessed.
    """
    found = Labels()
    boxes, labels, lines = found.boxes, found.labels, found.lines
    posed = -1 if key_numbers is None else 5 + key_numbers
    for number, line in enumerate(text.splitlines(), start=1):
        values = reading.decimals(line)
        if values == []:
            continue
        count = len(values) if values else 0
        # a class id is a whole number, also written 3.0
        if not values or not (0 <= values[0] <= reading.LARGEST and values[0].is_integer()):
            found.broken.append(_expected(number, line, key_numbers))
        elif count in (5, posed):
            _, cx, cy, w, h = values if count == 5 else values[:5]
            boxes.append((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
            labels.append(int(values[0]))
            lines.append(number)
        elif key_numbers is None and count >= 7 and count % 2 == 1:
            xs, ys = values[1::2], values[2::2]
            boxes.append((min(xs), min(ys), max(xs), max(ys)))
            labels.append(int(values[0]))
            lines.append(number)
            found.polygons += 1
        else:
            found.broken.append(_expected(number, line, key_numbers))
    return found


def _expected(number: int, line: str, key_numbers: int | None) -> str:
    numbers = "" if key_numbers is None else f" and {key_numbers} numbers of key points"
    return f"line {number}: expected class cx cy w h{numbers}, got {line[:60]!r}"


# ---------------------------------------------------------------------- where they lie


@lru_cache(maxsize=4096)
def label_folder(images: Path) -> Path:
    """Folder with the last `images` in its path replaced by `labels`; itself when there is none."""
    parts = list(images.parts)
    for i in range(len(parts) - 1, -1, -1):
        if parts[i] == "images":
            return Path(*parts[:i], "labels", *parts[i + 1 :])
    return images


def label_file(finder: Finder, image: Path) -> Path | None:
    """The label file of an image, or None."""
    name = f"{image.stem}.txt"
    return finder.file(label_folder(image.parent), name) or finder.file(image.parent, name)


def label_files(image: Path) -> tuple[Path, Path]:
    """Where the label file of an image may lie, the usual place first."""
    return label_folder(image.parent) / f"{image.stem}.txt", image.with_suffix(".txt")


def has_image(label: Path) -> bool:
    """Whether some image belongs to the label file, if not in this split."""
    parts = list(label.parent.parts)
    if "labels" in parts:
        at = len(parts) - 1 - parts[::-1].index("labels")
        parts[at] = "images"
    folders = {Path(*parts), label.parent}
    return any((f / f"{label.stem}{s}").is_file() for f in folders for s in SUFFIXES)
