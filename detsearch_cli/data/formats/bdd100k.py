"""BDD100K json: labels/det_20/det_{train,val}.json or bdd100k_labels_images_*.json, images in images/100k/.

The releases named the same files differently, such as det_v2_train_release.json; `_PATTERNS` has the names.
Labels with `box2d` are read, as continuous x1 y1 x2 y2; lanes and drivable areas are passed over. `det_20`
has the ten classes of its benchmark in their official order, the older files their own ten; `det_20` is
preferred where both lie side by side. Labels outside the ten (trailer, other person, other vehicle) are left
out.
Labels with the attribute `crowd` are kept as ignored regions.
Source: doc.bdd100k.com, "Label format"; Yu et al., BDD100K, CVPR 2020.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from detsearch_cli import reading
from detsearch_cli.data import checks
from detsearch_cli.data.checks import Collector, Objects
from detsearch_cli.data.formats import _layout
from detsearch_cli.data.formats._find import Finder, composed
from detsearch_cli.data.images import find_images
from detsearch_cli.data.types import Split
from detsearch_cli.errors import DataError

_DET_20: tuple[str, ...] = ("pedestrian", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
_DET_20 += ("traffic light", "traffic sign")
_OLD = ("bike", "bus", "car", "motor", "person", "rider", "traffic light", "traffic sign", "train", "truck")
_NOT_SCORED = frozenset({"trailer", "other person", "other vehicle"})
_NO_BOXES = re.compile(r"^(drivable area|lane|area/.*|lane/.*)$")
_LABEL_PLACES = ("labels/det_20", "labels", "bdd100k/labels/det_20", "bdd100k/labels", "det_20", "")
_PATTERNS = (
    "det_{}.json",
    "bdd100k_labels_images_{}.json",
    "bdd100k_labels_images_det20_{}.json",
    "det_v2_{}_release.json",
)
_CATEGORY = re.compile(rb'"category"\s*:\s*"([^"]*)"')


def detect(folder: Path) -> bool:
    """Whether one of the json files named above is there."""
    return bool(_files(folder)[0])


def splits(folder: Path) -> tuple[str, ...]:
    """Those of train, val, test whose label file lists frames."""
    found = _files(folder)[0]
    return tuple(s for s in _layout.SPLITS if s in found)


def load(folder: Path, split: str) -> Split:
    """Read one split. Raises DataError when the json is broken or no list of frames."""
    files, empty = _files(folder)
    path = _layout.file_of(split, files, folder)
    frames = reading.read_json(path, DataError)
    if not isinstance(frames, list):
        raise DataError(f"{path} must be a list of frames, each with a name")
    classes = _classes(files)
    label_of = {name: label for label, name in enumerate(classes)}
    images = _images(folder, split)
    collector, finder = Collector(folder, split), Finder()
    seen: set[str] = set()
    for position, frame in enumerate(frames):
        name = frame.get("name") if isinstance(frame, dict) else None
        if not isinstance(name, str) or not name.strip():
            detail = f"frame number {position} needs a name, got {checks.short(frame)}"
            collector.defect(checks.BROKEN_LABEL, path, detail, "frame left out")
            continue
        if composed(name) in seen:
            collector.defect(checks.DUPLICATE_ID, path, f"{name} is listed twice", "second one left out")
            continue
        seen.add(composed(name))
        file = finder.file(images, name) or images / name
        header = collector.open(file, path.name)
        if header is not None:
            collector.add(file, header, _objects(collector, path, frame, label_of), where=path)
    for file in find_images(images):
        if composed(file.name) not in seen:
            collector.defect(checks.IMAGE_ONLY, file, f"not in {path.name}", "image left out")
    if split == splits(folder)[0]:
        collector.not_offered(empty)
    return collector.finish(classes)


def _objects(collector: Collector, path: Path, frame: dict[str, Any], label_of: dict[str, int]) -> Objects:
    """The boxes of a frame; whatever a field holds, it becomes a value or a defect."""
    objects = Objects()
    labels = frame.get("labels") or []
    if not isinstance(labels, list):
        detail = f"labels of {frame['name']} must be a list, got {checks.short(labels)}"
        collector.defect(checks.BROKEN_LABEL, path, detail, "kept without boxes")
        return objects
    for label in labels:
        if not isinstance(label, dict):
            detail = f"a label of {frame['name']} must be an object, got {checks.short(label)}"
            collector.defect(checks.BROKEN_LABEL, path, detail, "label left out")
            continue
        box2d, name = label.get("box2d"), label.get("category")
        if box2d is None:
            continue
        if not isinstance(name, str) or name not in label_of:
            detail = f"{checks.short(name)} in {frame['name']}"
            collector.defect(checks.UNKNOWN_CLASS, path, detail, "box left out")
            continue
        box = _corners(box2d)
        if box is None:
            detail = f"box2d of {name} in {frame['name']} needs numbers x1, y1, x2, y2"
            collector.defect(checks.BROKEN_LABEL, path, detail, "box left out")
            continue
        crowd = _crowd(collector, path, frame["name"], label.get("attributes"))
        objects.append(collector.in_order(box, path), label_of[name], crowd=crowd)
    return objects


def _corners(box2d: Any) -> tuple[float, float, float, float] | None:
    if not isinstance(box2d, dict):
        return None
    x1, y1, x2, y2 = (reading.number(box2d.get(key)) for key in ("x1", "y1", "x2", "y2"))
    if x1 is None or y1 is None or x2 is None or y2 is None:
        return None
    return x1, y1, x2, y2


def _crowd(collector: Collector, path: Path, frame: str, attributes: Any) -> bool:
    """The attribute `crowd`; False, with a defect, where it says neither yes nor no."""
    value = attributes.get("crowd") if isinstance(attributes, dict) else attributes
    crowd = reading.flag(value)
    if crowd is None:
        detail = f"attribute crowd in {frame} must be true or false, got {checks.short(value)}"
        collector.defect(checks.BROKEN_LABEL, path, detail, "taken as false")
    return bool(crowd)


def _classes(files: dict[str, Path]) -> tuple[str, ...]:
    """The benchmark's ten classes; for other names in the same format, those found in all splits, sorted."""
    found = {
        m.group(1).decode("utf-8", "replace")
        for p in files.values()
        for m in _CATEGORY.finditer(p.read_bytes())
    }
    found = {name for name in found if not _NO_BOXES.match(name)}
    for known in (_DET_20, _OLD):
        if found - _NOT_SCORED <= set(known):
            return known
    return tuple(sorted(found - _NOT_SCORED))


def _files(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """(json of each split, those that list no frame)."""
    for place in _LABEL_PLACES:
        for pattern in _PATTERNS:
            found = {s: folder / place / pattern.format(s) for s in _layout.SPLITS}
            found = {s: p for s, p in found.items() if p.is_file()}
            if found:
                return _layout.without_empty(found, _lists_nothing)
    return {}, {}


def _lists_nothing(path: Path) -> bool:
    """Whether the json is an empty list, found without reading a large one."""
    try:
        with reading.open_regular(path, DataError) as file:
            return b"".join(file.read(1000).split()) == b"[]"
    except (DataError, OSError):
        return False


def _images(folder: Path, split: str) -> Path:
    roots = (folder / "images", folder / "bdd100k" / "images", folder)
    places = [r / size / split for r in roots for size in ("100k", "10k")] + [r / split for r in roots]
    for place in places:
        if place.is_dir():
            return place
    raise DataError(
        f"no images of split {split!r}: looked for {places[0]} and {len(places) - 1} other places"
    )
