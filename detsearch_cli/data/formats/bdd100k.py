"""BDD100K json: labels/det_20/det_{train,val}.json or bdd100k_labels_images_*.json, images in images/100k/.

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
from detsearch_cli.data.images import find_images
from detsearch_cli.data.types import Split
from detsearch_cli.errors import DataError

_DET_20: tuple[str, ...] = ("pedestrian", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
_DET_20 += ("traffic light", "traffic sign")
_OLD = ("bike", "bus", "car", "motor", "person", "rider", "traffic light", "traffic sign", "train", "truck")
_NOT_SCORED = frozenset({"trailer", "other person", "other vehicle"})
_NO_BOXES = re.compile(r"^(drivable area|lane|area/.*|lane/.*)$")
_LABEL_PLACES = ("labels/det_20", "labels", "bdd100k/labels/det_20", "bdd100k/labels", "det_20", "")
_CATEGORY = re.compile(rb'"category"\s*:\s*"([^"]*)"')


def detect(folder: Path) -> bool:
    """Whether one of the json files named above is there."""
    return bool(_files(folder))


def splits(folder: Path) -> tuple[str, ...]:
    """Those of train, val, test that have a label file."""
    found = _files(folder)
    return tuple(s for s in _layout.SPLITS if s in found)


def load(folder: Path, split: str) -> Split:
    """Read one split. Raises DataError when the json is broken or no list of frames."""
    files = _files(folder)
    path = files[split]
    frames = reading.read_json(path, DataError)
    if not isinstance(frames, list) or not all(isinstance(f, dict) and "name" in f for f in frames):
        raise DataError(f"{path} must be a list of frames, each with a name")
    classes = _classes(files)
    label_of = {name: label for label, name in enumerate(classes)}
    images = _images(folder, split)
    collector = Collector(folder, split)
    seen: set[str] = set()
    for frame in frames:
        name = str(frame["name"])
        if name in seen:
            collector.defect(checks.DUPLICATE_ID, path, f"{name} is listed twice", "second one left out")
            continue
        seen.add(name)
        header = collector.open(images / name, path.name)
        if header is not None:
            objects = _objects(collector, path, frame, label_of)
            collector.add(images / name, header, objects, where=path)
    for file in find_images(images):
        if file.name not in seen:
            collector.defect(checks.IMAGE_ONLY, file, f"not in {path.name}", "image left out")
    return collector.finish(classes)


def _objects(collector: Collector, path: Path, frame: dict[str, Any], label_of: dict[str, int]) -> Objects:
    objects = Objects()
    for label in frame.get("labels") or []:
        box2d, name = label.get("box2d"), label.get("category")
        if box2d is None:
            continue
        if name not in label_of:
            detail = f"{name!r} in {frame['name']}"
            collector.defect(checks.UNKNOWN_CLASS, path, detail, "box left out")
            continue
        try:
            x1, y1, x2, y2 = (float(box2d[k]) for k in ("x1", "y1", "x2", "y2"))
        except (KeyError, TypeError, ValueError):
            detail = f"box2d of {name} in {frame['name']} needs x1, y1, x2, y2"
            collector.defect(checks.BROKEN_LABEL, path, detail, "box left out")
            continue
        crowd = bool((label.get("attributes") or {}).get("crowd", False))
        objects.append(collector.in_order((x1, y1, x2, y2), path), label_of[name], crowd=crowd)
    return objects


def _classes(files: dict[str, Path]) -> tuple[str, ...]:
    """The benchmark's ten classes; for other names in the same format, those found in all splits, sorted."""
    found = {m.group(1).decode() for p in files.values() for m in _CATEGORY.finditer(p.read_bytes())}
    found = {name for name in found if not _NO_BOXES.match(name)}
    for known in (_DET_20, _OLD):
        if found - _NOT_SCORED <= set(known):
            return known
    return tuple(sorted(found - _NOT_SCORED))


def _files(folder: Path) -> dict[str, Path]:
    for place in _LABEL_PLACES:
        for pattern in (
            "det_{}.json",
            "bdd100k_labels_images_{}.json",
            "bdd100k_labels_images_det20_{}.json",
        ):
            found = {s: folder / place / pattern.format(s) for s in _layout.SPLITS}
            found = {s: p for s, p in found.items() if p.is_file()}
            if found:
                return found
    return {}


def _images(folder: Path, split: str) -> Path:
    roots = (folder / "images", folder / "bdd100k" / "images", folder)
    places = [r / size / split for r in roots for size in ("100k", "10k")] + [r / split for r in roots]
    for place in places:
        if place.is_dir():
            return place
    raise DataError(
        f"no images of split {split!r}: looked for {places[0]} and {len(places) - 1} other places"
    )
