"""COCO json: annotations/instances_*.json, or one json a split folder (Roboflow), images in any usual place.

Found are `annotations/instances_X.json`, other COCO json files in `annotations/` or in the folder itself,
`X/_annotations.coco.json`, and one COCO json under any name in `X/` (FiftyOne). Images are looked for in `X/`,
`images/X/`, `images/`, beside the json and in the folder. Category ids stay in `Split.category_ids`; labels are
contiguous in order of id, over all splits.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detsearch_cli import reading
from detsearch_cli.data import checks
from detsearch_cli.data.checks import Collector, Objects
from detsearch_cli.data.formats import _layout, _masks
from detsearch_cli.data.formats._coco_classes import Classes, read_classes
from detsearch_cli.data.formats._coco_files import Files, ImageFinder, find_files, mapped
from detsearch_cli.data.formats._find import composed
from detsearch_cli.data.images import Header, find_images
from detsearch_cli.data.types import Split
from detsearch_cli.errors import DataError

_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
_LARGEST_ID = 2**63


@dataclass
class _Image:
    """A usable row of `images`. file_name as written; declared: the size that the row claims, px."""

    file_name: str
    declared: tuple[int, int] | None
    objects: Objects = field(default_factory=Objects)


def detect(folder: Path) -> bool:
    """Whether the folder holds a COCO json at one of the places named above."""
    return bool(find_files(folder).splits)


def splits(folder: Path) -> tuple[str, ...]:
    """Those of train, val, test that can be loaded."""
    found = find_files(folder).splits
    return tuple(s for s in _layout.SPLITS if s in found)


def load_annotations(folder: Path, split: str) -> Split:
    """As `load`, but a missing picture stays where the json tells its size: scoring results opens none."""
    return load(folder, split, pictures=False)


def load(folder: Path, split: str, *, pictures: bool = True) -> Split:
    """Read one split. Raises DataError for json that is broken or no COCO, or classes that contradict.

    pictures: whether a missing one is left out.
    """
    files = find_files(folder)
    path = _layout.file_of(split, files.splits, folder)
    rows, annotations = _lists(path, reading.read_json(path, DataError))
    classes = read_classes((*files.splits.values(), *files.empty.values()))
    collector = Collector(folder, split)
    images = _images(collector, path, rows)
    _read_annotations(collector, path, annotations, images, classes)
    finder = ImageFinder(folder, path, split)
    numbered = _add_images(collector, path, images, finder, pictures)
    # what concerns the whole set is reported once, with its first split
    if split == splits(folder)[0]:
        _report_set(collector, files, classes, finder)
    return collector.finish(classes.names, classes.ids, own_ids=numbered)


def _lists(path: Path, content: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The images and annotations. Raises DataError when they are not what COCO says."""
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold an object with images, annotations and categories")
    result = []
    for key in ("images", "annotations"):
        value = content.get(key)
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            raise DataError(f"{path}: {key!r} must be a list of objects, got {type(value).__name__}")
        result.append(value)
    return result[0], result[1]


def _identity(value: Any) -> int | str | None:
    """What an id says: 1, 1.0 and "1" are one id. Other text is an id of its own; None for what is no id."""
    # first, and beyond what a float holds exactly: some tools number with 64 bits
    if type(value) is int and -_LARGEST_ID <= value < _LARGEST_ID:
        return value
    number = reading.whole(value)
    if number is not None:
        return number
    return str(value).strip() or None if type(value) in (int, str) else None


def _images(collector: Collector, path: Path, rows: list[dict[str, Any]]) -> dict[int | str, _Image]:
    """The usable images by id, in the file's order."""
    found: dict[int | str, _Image] = {}
    written = 0
    for position, row in enumerate(rows):
        number, name = _identity(row.get("id")), row.get("file_name")
        if number is None or not isinstance(name, str) or not name.strip():
            detail = f"image number {position} needs an id and a file_name, got {checks.short(row)}"
            collector.defect(checks.BROKEN_LABEL, path, detail, "image left out")
            continue
        if number in found:
            detail = f"image id {number} again for {name}"
            collector.defect(checks.DUPLICATE_ID, path, detail, "second image left out")
            continue
        written += isinstance(row["id"], str) and isinstance(number, int)
        found[number] = _Image(name, _declared(collector, path, row))
    if written:
        detail = f"{written} image ids are written as text"
        collector.defect(checks.BROKEN_LABEL, path, detail, "read as the numbers that they spell")
    return found


def _declared(collector: Collector, path: Path, row: dict[str, Any]) -> tuple[int, int] | None:
    """The size that the file claims, (width, height) px; None where it claims none or no size."""
    given = row.get("width"), row.get("height")
    width, height = (reading.number(v) for v in given)
    if width is not None and height is not None:
        return int(width), int(height)
    if given != (None, None):
        detail = f"{row['file_name']} is said to be {checks.short(given[0])} x {checks.short(given[1])}"
        collector.defect(checks.SIZE, path, detail, "image's own size taken")
    return None


def _read_annotations(
    collector: Collector,
    path: Path,
    annotations: list[dict[str, Any]],
    images: dict[int | str, _Image],
    classes: Classes,
) -> None:
    """Add each annotation to its image; the unusable ones are recorded and left out."""
    label_of: dict[Any, int] = {number: label for label, number in enumerate(classes.ids)}
    reader = _Reader(collector, path)
    seen: set[int | str] = set()
    for position, item in enumerate(annotations):
        number = _identity(item.get("id"))
        reader.name = f"annotation {number if number is not None else f'number {position}'}"
        if number is not None:
            if number in seen:
                reader.defect(checks.DUPLICATE_ID, "appears again", "kept, ids are not used")
            seen.add(number)
        image_id = _identity(item.get("image_id"))
        image = images.get(image_id) if image_id is not None else None
        if image is None:
            reader.defect(
                checks.LABEL_ONLY, f"no image {checks.short(item.get('image_id'))}", "annotation left out"
            )
            continue
        label = label_of.get(_identity(item.get("category_id")))
        if label is None:
            reader.defect(
                checks.UNKNOWN_CLASS, f"no category {checks.short(item.get('category_id'))}", "box left out"
            )
            continue
        box = reader.box(item)
        if box is not None:
            crowd, difficult = reader.flag(item, "iscrowd"), reader.flag(item, "difficult")
            image.objects.append(box, label, crowd, difficult, reader.area(item))
    reader.finish(annotations)
    _check_areas(collector, path, [image.objects for image in images.values()])


class _Reader:
    """Reads the fields of annotations; whatever a field holds, it becomes a value or a defect."""

    def __init__(self, collector: Collector, path: Path) -> None:
        self.collector, self.path = collector, path
        self.name = ""
        self.from_masks = 0

    def defect(self, kind: str, detail: str, handled: str) -> None:
        """Record a defect of the annotation that is read."""
        self.collector.defect(kind, self.path, f"{self.name}: {detail}", handled)

    def box(self, item: dict[str, Any]) -> tuple[float, float, float, float] | None:
        """xyxy px of `bbox`, or of the segmentation where there is no bbox; None, with a defect, without either."""
        bbox = item.get("bbox")
        if type(bbox) is list and len(bbox) == 4:
            x, y, width, height = map(reading.number, bbox)
            if x is not None and y is not None and width is not None and height is not None:
                return x, y, x + width, y + height
        segmentation = item.get("segmentation")
        if bbox not in (None, []) or not segmentation:
            self.defect(
                checks.BROKEN_LABEL, f"bbox must be four numbers, got {checks.short(bbox)}", "box left out"
            )
            return None
        box = _masks.bounds(segmentation)
        if box is None:
            detail = f"no bbox, and a segmentation without bounds: {checks.short(segmentation)}"
            self.defect(checks.BROKEN_LABEL, detail, "box left out")
        else:
            self.from_masks += 1
        return box

    def flag(self, item: dict[str, Any], key: str) -> bool:
        """Whether a flag is set; False, with a defect, where it says neither yes nor no."""
        value = item.get(key)
        if value is None or value == 0:  # of nearly all annotations
            return False
        read = reading.flag(value)
        if read is None:
            self.defect(checks.BROKEN_LABEL, f"{key} must be 0 or 1, got {checks.short(value)}", "taken as 0")
        return bool(read)

    def area(self, item: dict[str, Any]) -> float:
        """px^2; NaN where none is given, and, with a defect, where it is no number."""
        value = item.get("area")
        area = reading.number(value)
        if area is not None:
            return area
        if value is not None:
            self.defect(
                checks.BROKEN_LABEL,
                f"area must be a number, got {checks.short(value)}",
                "the box's own taken",
            )
        return math.nan

    def finish(self, annotations: list[dict[str, Any]]) -> None:
        """Record once what holds for many annotations."""
        if self.from_masks:
            detail = f"{self.from_masks} of {len(annotations)} annotations have a segmentation and no bbox"
            self.collector.defect(checks.NO_BOX, self.path, detail, "bounds of the segmentations taken")
        if not annotations:
            detail = "annotations is an empty list"
            self.collector.defect(checks.LABEL_MISSING, self.path, detail, "all images kept as background")


def _check_areas(collector: Collector, path: Path, objects: list[Objects]) -> None:
    """Take the boxes' own areas where one value stands for all: a tool wrote it because the field must be there."""
    given = {area for own in objects for area in own.area}
    if len(given) != 1 or not math.isfinite(next(iter(given))):
        return
    boxes = [(b[2] - b[0]) * (b[3] - b[1]) for own in objects for b in own.boxes]
    # two masks may well be of one size
    if len(boxes) < 3 or len(set(boxes)) == 1:
        return
    detail = f"area is {next(iter(given)):g} for every annotation, though boxes differ in size"
    collector.defect(checks.BROKEN_LABEL, path, detail, "the boxes' own areas taken")
    for own in objects:
        own.area[:] = [math.nan] * len(own.area)


def _add_images(
    collector: Collector, path: Path, images: dict[int | str, _Image], finder: ImageFinder, pictures: bool
) -> bool:
    """Open every image and keep it with its objects; ids that are no numbers make all be numbered anew.

    pictures: whether a missing one is left out. Returns whether the ids are the file's own.
    """
    numbered = all(isinstance(number, int) for number in images)
    if not numbered:
        collector.defect(checks.BROKEN_LABEL, path, "image ids are not whole numbers", "images numbered anew")
    kept: dict[Path, int | str] = {}
    for number, image in images.items():
        file = finder.find(image.file_name)
        first = kept.setdefault(file, number)
        if first != number:
            detail = f"{image.file_name} is listed as image {first} and as image {number}"
            images[first].objects.join(image.objects)
            collector.defect(checks.DUPLICATE_ID, path, detail, "one image, boxes of both, doubles left out")
    for file, number in kept.items():
        image = images[number]
        if pictures or image.declared is None or file.is_file():
            header = collector.open(file, path.name)
        else:
            header = Header(*image.declared, mode="RGB", orientation=1)
        if header is not None:
            image_id = number if numbered and isinstance(number, int) else None
            collector.add(file, header, image.objects, where=path, declared=image.declared, image_id=image_id)
    if finder.moved:
        name, file = finder.moved[0]
        detail = f"{len(finder.moved)} images are named by paths that are not here, such as {name}"
        collector.defect(checks.MOVED, path, detail, f"found by their last part: {file}")
    return numbered


def _report_set(collector: Collector, files: Files, classes: Classes, finder: ImageFinder) -> None:
    where = next(iter(files.splits.values()))
    for kind, detail, handled in classes.problems:
        collector.defect(kind, where, detail, handled)
    collector.not_offered(files.empty)
    _orphans(collector, files, finder)


def _orphans(collector: Collector, files: Files, finder: ImageFinder) -> None:
    """Images in the folders used that no split names."""
    named: set[str] = set()
    for path in files.splits.values():
        with mapped(path) as content:
            named.update(_last_part(match.group(1)) for match in _FILE_NAME.finditer(content))
    for folder in sorted(finder.used):
        for image in find_images(folder):
            if composed(image.name) not in named:
                collector.defect(checks.IMAGE_ONLY, image, "named by no annotation file", "image left out")


def _last_part(quoted: bytes) -> str:
    """The file's name in a JSON string that may hold a path; "" for what is no JSON string."""
    try:
        text: str = json.loads(quoted)
    except ValueError:
        return ""
    return composed(text.replace("\\", "/").rpartition("/")[2])
