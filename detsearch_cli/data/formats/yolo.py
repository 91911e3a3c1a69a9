"""YOLO txt: one .txt an image with `class cx cy w h` in parts of the image, names in data.yaml or any yaml.

`train`, `val`, `test` in the yaml may be folders, list files, or lists of either. Without yaml, the folders
images/train, train/images, train, or images are tried, with names from classes.txt or obj.names. The label
of images/a/b.jpg is labels/a/b.txt, else b.txt beside the image. Lines of seven or more numbers are polygons;
their bounding box is taken. An image without label file is kept as background, as the format's trainers do.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detsearch_cli import reading
from detsearch_cli.data import checks
from detsearch_cli.data.checks import Collector, Objects
from detsearch_cli.data.formats import _layout
from detsearch_cli.data.images import SUFFIXES, Header, find_images
from detsearch_cli.data.types import Split
from detsearch_cli.errors import DataError

_NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt", "classes.names")
_NO_LABELS = frozenset(
    {"classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "predefined_classes.txt"}
)


@dataclass(frozen=True)
class _Layout:
    """Names, the images' places of each split, and what the configuration promises but does not keep."""

    names: tuple[str, ...]
    named_by: Path
    places: dict[str, tuple[Path, ...]]
    broken: tuple[tuple[str, str], ...]


def detect(folder: Path) -> bool:
    """Whether class names and at least one split with images are found as described above."""
    config = _config(folder)
    if config is not None and any(k in config[1] for k in ("train", "val", "test")):
        return True
    named = config is not None or any((folder / f).is_file() for f in _NAME_FILES)
    return named and any(_has_label(p) for p in _folders(folder).values())


def splits(folder: Path) -> tuple[str, ...]:
    """Those of train, val, test whose images exist."""
    found = _layout_of(folder).places
    return tuple(s for s in _layout.SPLITS if s in found)


def load(folder: Path, split: str) -> Split:
    """Read one split. Raises DataError when a label has a class id that has no name."""
    layout = _layout_of(folder)
    collector = Collector(folder, split)
    images = _images(layout.places[split])
    first = split == splits(folder)[0]
    if first:
        for name, reason in layout.broken:
            collector.defect(checks.SPLIT_PROBLEM, layout.named_by, reason, f"{name} not offered")
    seen: set[Path] = set()
    for image in images:
        if image in seen:
            detail = f"{image.name} is listed twice"
            collector.defect(checks.DUPLICATE_ID, layout.named_by, detail, "second one left out")
            continue
        seen.add(image)
        _add(collector, image, layout)
    _label_orphans(collector, seen)
    return collector.finish(layout.names)


def _add(collector: Collector, image: Path, layout: _Layout) -> None:
    header = collector.open(image, layout.named_by.name)
    if header is None:
        return
    label_file = next((p for p in _label_files(image) if p.is_file()), None)
    if label_file is None:
        detail = f"no {image.stem}.txt under labels or beside it"
        collector.defect(checks.IMAGE_ONLY, image, detail, "kept as background")
        label_file, objects = image, Objects()
    else:
        objects = _objects(collector, label_file, header, layout)
    collector.add(image, header, objects, where=label_file)


def _objects(collector: Collector, path: Path, header: Header, layout: _Layout) -> Objects:
    objects = Objects()
    for number, line in enumerate(reading.read_text(path, DataError).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            values = [float(w) for w in words]
        except ValueError:
            values = []
        label = int(values[0]) if values and values[0] >= 0 and values[0] == int(values[0]) else -1
        polygon = len(values) >= 7 and len(values) % 2 == 1
        if label < 0 or not (len(values) == 5 or polygon):
            detail = f"line {number}: expected class cx cy w h, got {line[:60]!r}"
            collector.defect(checks.BROKEN_LABEL, path, detail, "line left out")
            continue
        if label >= len(layout.names):
            raise DataError(
                f"{path} line {number}: class id {label} has no name, {layout.named_by} names only "
                f"{len(layout.names)} (ids 0 to {len(layout.names) - 1}); add the missing names there"
            )
        objects.append(_box(values[1:], header), label)
    return objects


def _box(values: list[float], header: Header) -> tuple[float, float, float, float]:
    """cx cy w h, or the corners of a polygon, in parts of the image -> xyxy px."""
    if len(values) == 4:
        cx, cy, w, h = values
        x1, y1, x2, y2 = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    else:
        xs, ys = values[0::2], values[1::2]
        x1, y1, x2, y2 = min(xs), min(ys), max(xs), max(ys)
    return x1 * header.width, y1 * header.height, x2 * header.width, y2 * header.height


def _layout_of(folder: Path) -> _Layout:
    config = _config(folder)
    if config is None:
        named_by = next(folder / f for f in _NAME_FILES if (folder / f).is_file())
        names = tuple(
            line.strip() for line in reading.read_text(named_by, DataError).splitlines() if line.strip()
        )
        return _Layout(names, named_by, {s: (p,) for s, p in _folders(folder).items()}, ())
    path, content = config
    names = _names(path, content)
    places: dict[str, tuple[Path, ...]] = {}
    broken: list[tuple[str, str]] = []
    for split in _layout.SPLITS:
        value = content.get(split, content.get("valid") if split == "val" else None)
        if not value:
            continue
        written = [str(v) for v in (value if isinstance(value, list) else [value])]
        found = [_resolve(path, content, w) for w in written]
        if None in found:
            broken.append((split, f"{split}: {written[found.index(None)]} does not exist"))
            continue
        resolved = tuple(p for p in found if p is not None)
        same = next((s for s, p in places.items() if p == resolved), None)
        if same:
            # The tutorial sets validate on their training images; a score there would prove nothing.
            broken.append((split, f"{split} is the same images as {same}"))
            continue
        places[split] = resolved
    if not places:
        places = {s: (p,) for s, p in _folders(folder).items()}
    return _Layout(names, path, places, tuple(broken))


def _config(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The yaml file with `names`: data.yaml first. Raises DataError when data.yaml itself is broken."""
    files = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")], key=lambda p: (p.stem != "data", p.name))
    for path in files:
        try:
            content = reading.read_yaml(path, DataError)
        except DataError:
            if path.stem == "data":
                raise
            continue
        if isinstance(content, dict) and "names" in content:
            return path, content
    return None


def _names(path: Path, content: dict[str, Any]) -> tuple[str, ...]:
    """Class names from a list or from {0: name, ...}. Raises DataError for gaps, doubles and a wrong `nc`."""
    names = content["names"]
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(f"{path}: names must be numbered 0 to {len(names) - 1} without gaps")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: names must be a list of class names, got {names!r}")
    texts = tuple(str(n).strip() for n in names)
    if len(set(texts)) != len(texts):
        double = next(t for t in texts if texts.count(t) > 1)
        raise DataError(f"{path}: class name {double!r} stands for two ids; every class needs its own name")
    count = content.get("nc", len(texts))
    if count != len(texts):
        raise DataError(f"{path}: nc is {count} but {len(texts)} names are given; labels would shift")
    return texts


def _resolve(path: Path, content: dict[str, Any], written: str) -> Path | None:
    """A place named in the yaml. Exports write paths from folders that were theirs: leading ../ may go."""
    base = str(content.get("path") or ".")
    plain = os.path.normpath(written).replace("\\", "/").lstrip("./")
    roots = [path.parent / base, path.parent]
    for candidate in [*(r / written for r in roots), path.parent / plain, path.parent / Path(plain).name]:
        if candidate.is_dir() or candidate.is_file():
            # A folder `train` that only holds images/ and labels/ means its images.
            inner = candidate / "images"
            return Path(os.path.normpath(inner if inner.is_dir() else candidate))
    return None


def _folders(folder: Path) -> dict[str, Path]:
    """Split name -> folder of its images, where no yaml says so."""
    inside = _layout.split_folders(folder / "images")
    if inside:
        return inside
    beside = _layout.split_folders(folder)
    if beside:
        return {s: p / "images" if (p / "images").is_dir() else p for s, p in beside.items()}
    images = folder / "images"
    return {"train": images} if images.is_dir() else {"train": folder}


def _has_label(folder: Path) -> bool:
    """Whether labels lie in the labels folder that mirrors this one, or beside the first images."""
    images = find_images(folder)[:50] if folder.is_dir() else []
    if images and _label_folder(folder) != folder and _label_folder(folder).is_dir():
        return True
    return any(image.with_suffix(".txt").is_file() for image in images)


def _images(places: Iterable[Path]) -> list[Path]:
    """Images of folders (searched through) and of list files (paths relative to the file, or absolute)."""
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            found += find_images(place, recursive=True)
            continue
        lines = (line.strip() for line in reading.read_text(place, DataError).splitlines())
        found += [Path(os.path.normpath(place.parent / line)) for line in lines if line]
    return found


def _label_folder(images: Path) -> Path:
    """Folder with the last `images` in its path replaced by `labels`; itself when there is none."""
    parts = list(images.parts)
    for i in range(len(parts) - 1, -1, -1):
        if parts[i] == "images":
            return Path(*parts[:i], "labels", *parts[i + 1 :])
    return images


def _label_files(image: Path) -> tuple[Path, Path]:
    return _label_folder(image.parent) / f"{image.stem}.txt", image.with_suffix(".txt")


def _label_orphans(collector: Collector, images: set[Path]) -> None:
    """Label files whose image is not in the split, in the folders the split's labels come from."""
    known = {p for image in images for p in _label_files(image)}
    for folder in sorted({p.parent for p in known}):
        for path in sorted(folder.glob("*.txt")) if folder.is_dir() else []:
            if path not in known and path.name not in _NO_LABELS and not _image_of(path):
                collector.defect(checks.LABEL_ONLY, path, "no image of this name", "label left out")


def _image_of(label: Path) -> bool:
    """Whether some image belongs to the label file, if not in this split."""
    parts = list(label.parent.parts)
    if "labels" in parts:
        at = len(parts) - 1 - parts[::-1].index("labels")
        parts[at] = "images"
    folders = {Path(*parts), label.parent}
    return any((f / f"{label.stem}{s}").is_file() for f in folders for s in SUFFIXES)
