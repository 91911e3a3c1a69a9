"""Builds a Split out of what a format reads, and records everything that is wrong on the way.

A defect that can be handled is handled (clipped, left out, converted, rotated) and recorded; nothing on disk
is changed. Loading reads image headers only; `decode_all` decodes every pixel and finds truncated files.
"""

from __future__ import annotations

import os
import reprlib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detsearch_cli.data.images import Header, ImageError, conversion, read_header, read_image, turn_boxes
from detsearch_cli.data.types import Defect, Record, Split
from detsearch_cli.errors import DataError

MISSING_IMAGE = "missing image"
UNREADABLE_IMAGE = "unreadable image"
TRUNCATED_IMAGE = "truncated image"
SIZE = "size contradicts image"
OUTSIDE = "box outside image"
ZERO_AREA = "zero-area box"
SWAPPED = "swapped corners"
BROKEN_LABEL = "broken label"
UNKNOWN_CLASS = "unknown class"
CLASS_SPELLING = "class-name spelling"
DUPLICATE_ID = "duplicate id"
NO_DIFFICULT = "difficult missing"
CROWD = "crowd region"
EXIF = "EXIF rotation"
LABEL_ONLY = "label without image"
IMAGE_ONLY = "image without label"
SPLIT_PROBLEM = "split not usable"
DUPLICATE_LABEL = "duplicate label"
NO_BOX = "box missing"
LABEL_MISSING = "no annotation"
MOVED = "path of another machine"
ROOT_CATEGORY = "category without boxes"
EXTRA_NUMBERS = "polygons or key points"

# Annotation tools round coordinates to two decimals; a box may leave the image by that much and be sound.
ROUNDING = 0.05


@dataclass
class Objects:
    """Objects of one image, as the annotation gives them. Boxes are xyxy px, continuous coordinates."""

    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    area: list[float] = field(default_factory=list)

    def append(
        self,
        box: tuple[float, float, float, float],
        label: int,
        crowd: bool = False,
        difficult: bool = False,
        area: float = float("nan"),
    ) -> None:
        """Add one object; area NaN means that of the box."""
        self.boxes.append(box)
        self.labels.append(label)
        self.crowd.append(crowd)
        self.difficult.append(difficult)
        self.area.append(area)

    def join(self, other: Objects) -> None:
        """Add the objects of another list, apart from those whose box and label are here already."""
        here = set(zip(self.boxes, self.labels, strict=True))
        for i, item in enumerate(zip(other.boxes, other.labels, strict=True)):
            if item not in here:
                self.append(*item, other.crowd[i], other.difficult[i], other.area[i])

    def doubles(self) -> list[tuple[float, float, float, float]]:
        """Boxes that are there more than once with one label."""
        if len(set(self.boxes)) == len(self.boxes):  # of nearly all images, and cheap to find out
            return []
        counts = Counter(zip(self.boxes, self.labels, strict=True))
        return [
            box for (box, _), count in counts.items() if count > 1 and box[0] < box[2] and box[1] < box[3]
        ]


class Reader:
    """`Split.read` for images on disk."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self.files = files

    def __call__(self, index: int) -> np.ndarray:
        """Image `index` as uint8 (H, W, 3) RGB."""
        return read_image(self.files[index])


class Collector:
    """Gathers the records and defects of one split of the data set in `folder`."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder = folder
        self.split = split
        self.records: list[Record] = []
        self.defects: list[Defect] = []

    def defect(self, kind: str, file: Path, detail: str, handled: str) -> None:
        """Record a defect of `file`, named as it can be opened from here."""
        self.defects.append(Defect(kind, file.as_posix(), detail, handled))

    def not_offered(self, empty: dict[str, Path]) -> None:
        """Record the splits that are not offered because their file, split name -> file, names no image."""
        for split, path in empty.items():
            self.defect(SPLIT_PROBLEM, path, "it lists no image", f"{split} not offered")

    def open(self, file: Path, named_by: str) -> Header | None:
        """Header of an image; None, with a defect, when it is missing or unreadable."""
        try:
            header = read_header(file)
        except FileNotFoundError:
            self.defect(MISSING_IMAGE, file, f"named by {named_by}", "image left out")
            return None
        except ImageError as error:
            self.defect(UNREADABLE_IMAGE, file, error.reason, "image left out")
            return None
        converted = conversion(header.mode)
        if converted is not None:
            self.defect(converted[0], file, f"mode {header.mode}", converted[1])
        return header

    def add(
        self,
        file: Path,
        header: Header,
        objects: Objects,
        *,
        where: Path,
        declared: tuple[int, int] | None = None,
        image_id: int | None = None,
        tolerance: float = ROUNDING,
    ) -> None:
        """Check the objects of one image and keep it.

        where: the label file that defects are blamed on; declared: (width, height) px the annotation claims;
        tolerance: px by which a box may leave the image without being reported (it is clipped all the same).
        """
        boxes = np.asarray(objects.boxes, dtype=np.float64).reshape(-1, 4)
        if header.orientation != 1:
            boxes = self._turn(file, header, boxes, declared)
        elif declared is not None and declared != (header.width, header.height):
            detail = (
                f"annotation says {declared[0]}x{declared[1]}, {file.name} is {header.width}x{header.height}"
            )
            self.defect(SIZE, where, detail, "image's own size taken, boxes kept")
        for box in objects.doubles():
            detail = f"{file.name} {_show(np.array(box))} is there more than once"
            self.defect(DUPLICATE_LABEL, where, detail, "kept; only one of them can be found")
        boxes, keep = self._clip(boxes, header, file, where, tolerance)
        crowd = np.asarray(objects.crowd, dtype=bool)[keep]
        for box in boxes[crowd]:
            self.defect(CROWD, where, f"{file.name} {_show(box)}", "kept as an ignored region")
        self.records.append(
            Record(
                image_id=len(self.records) + 1 if image_id is None else image_id,
                file=file,
                height=header.height,
                width=header.width,
                boxes=boxes,
                labels=np.asarray(objects.labels, dtype=np.int64)[keep],
                crowd=crowd,
                difficult=np.asarray(objects.difficult, dtype=bool)[keep],
                area=_areas(boxes, np.asarray(objects.area, dtype=np.float64)[keep]),
            )
        )

    def _turn(
        self, file: Path, header: Header, boxes: np.ndarray, declared: tuple[int, int] | None
    ) -> np.ndarray:
        """Boxes in the image as shown.

        The declared size tells which frame they were drawn in; when it does not (square, turned by 180
        degrees, not declared), it was the shown one, because annotation tools show it.
        """
        shown = (header.width, header.height)
        stored = shown[::-1] if header.sideways else shown
        detail = f"orientation {header.orientation}"
        if header.sideways and declared == stored and stored != shown:
            boxes = turn_boxes(boxes, header.orientation, header.width, header.height)
            self.defect(EXIF, file, detail, "image and boxes rotated")
            return boxes
        self.defect(EXIF, file, detail, "image rotated, boxes are those of the rotated image")
        if declared is not None and declared != shown:
            said = f"annotation says {declared[0]}x{declared[1]}, shown {shown[0]}x{shown[1]}"
            self.defect(SIZE, file, said, "image's own size taken, boxes kept")
        return boxes

    def _clip(
        self, boxes: np.ndarray, header: Header, file: Path, where: Path, tolerance: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (N, 4) -> (float32 (K, 4) inside the image with positive area, keep (N,) bool)."""
        limit = np.array([header.width, header.height, header.width, header.height], dtype=np.float64)
        finite = np.isfinite(boxes).all(axis=1)
        clipped = np.clip(np.where(finite[:, None], boxes, 0), 0, limit).astype(np.float32)
        alive = finite & (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
        moved = np.abs(clipped - boxes).max(axis=1, initial=0) > tolerance if len(boxes) else finite
        for i in np.flatnonzero(~alive | moved):
            x1, y1, x2, y2 = boxes[i]
            if not finite[i]:
                kind, handled = BROKEN_LABEL, "box left out"
            elif x2 <= x1 or y2 <= y1:
                kind, handled = ZERO_AREA, "box left out"
            else:
                kind, handled = OUTSIDE, "box clipped" if alive[i] else "box left out"
            self.defect(
                kind, where, f"{file.name} {_show(boxes[i])} in {header.width}x{header.height}", handled
            )
        return clipped[alive], alive

    def in_order(
        self, box: tuple[float, float, float, float], where: Path
    ) -> tuple[float, float, float, float]:
        """The box with x1 <= x2 and y1 <= y2; a defect when its corners were swapped."""
        x1, y1, x2, y2 = box
        if not (x1 > x2 or y1 > y2):
            return box
        self.defect(SWAPPED, where, _show(np.array(box)), "corners put in order")
        return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)

    def finish(
        self, classes: Sequence[str], category_ids: Sequence[int] | None = None, own_ids: bool = False
    ) -> Split:
        """The Split. Raises DataError when no image or no class is left. own_ids: as in `Split`."""
        if not classes:
            raise DataError(
                f"{self.folder} has no class in its annotations; at least one labelled box is needed"
            )
        if not self.records:
            first = ""
            if self.defects:
                first = f", first: {self.defects[0].kind} {self.defects[0].file}: {self.defects[0].detail}"
            raise DataError(
                f"split {self.split!r} of {self.folder} has no usable image "
                f"({len(self.defects)} defects{first}); check that images and labels lie where the format "
                "expects them"
            )
        return Split(
            name=self.split,
            classes=tuple(classes),
            category_ids=tuple(category_ids) if category_ids else tuple(range(1, len(classes) + 1)),
            records=tuple(self.records),
            defects=tuple(self.defects),
            read=Reader(tuple(r.file for r in self.records if r.file is not None)),
            own_ids=own_ids,
        )


def _areas(boxes: np.ndarray, given: np.ndarray) -> np.ndarray:
    """The given areas (K,) px^2, or those of the boxes (K, 4) where none or a senseless one is given."""
    sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2]
    return np.where(np.isfinite(given) & (given > 0), given, sides[:, 0] * sides[:, 1])


def short(value: object) -> str:
    """A value of any type and depth in at most some 60 characters, for details and error messages."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlevel = 2


def _show(box: np.ndarray) -> str:
    return "(" + ", ".join(f"{v:g}" for v in box.tolist()) + ")"


def decode_all(split: Split) -> list[Defect]:
    """Decode every image of a file, on all cores; a defect for each that fails, in order."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        found = pool.map(lambda index: _decode(split, index), range(len(split)))
        return [defect for defect in found if defect is not None]


def _decode(split: Split, index: int) -> Defect | None:
    record = split.records[index]
    if record.file is None:
        return None
    name, handled = record.file.as_posix(), "training would stop here"
    try:
        height, width = split.read(index).shape[:2]
    except ImageError as error:
        return Defect(TRUNCATED_IMAGE, name, error.reason, "image left out")
    except DataError as error:
        return Defect(TRUNCATED_IMAGE, name, str(error), handled)
    if (height, width) == (record.height, record.width):
        return None
    detail = f"header says {record.width}x{record.height}, pixels are {width}x{height}"
    return Defect(SIZE, name, detail, handled)


def refuse_defects(source: str, split: Split, defects: Iterable[Defect]) -> None:
    """Raise DataError naming the first defect and how many there are; return when there is none."""
    listed = list(defects)
    if not listed:
        return
    first = listed[0]
    raise DataError(
        f"strict: split {split.name!r} of {source} has {len(listed)} defects, the first is {first.kind} in "
        f"{first.file} ({first.detail}); mend them or load without strict"
    )
