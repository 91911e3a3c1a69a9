"""YOLO txt: one .txt an image with `class cx cy w h` in parts of the image, names in data.yaml or any yaml.

`train`, `val`, `test` in the yaml may be folders, list files, or lists of either; darknet's obj.data, which CVAT
writes too, names list files. Without either, the list files train.txt, valid.txt, ... or the folders images/train,
train/images, train, or images are tried, with names from classes.txt or obj.names, in the folder or beside the
labels. The label of images/a/b.jpg is labels/a/b.txt, else b.txt beside the image. Lines of seven or more numbers
are polygons, of which the bounding box is taken, unless `kpt_shape` in the yaml says that they are boxes with key
points. An image without label file is kept as background, as the format's trainers do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from detsearch_cli import reading
from detsearch_cli.data import checks
from detsearch_cli.data.checks import Collector, Objects
from detsearch_cli.data.formats import _layout, _yolo_config, _yolo_labels
from detsearch_cli.data.formats._find import Finder, composed
from detsearch_cli.data.formats._moved import Locator
from detsearch_cli.data.images import SUFFIXES, Header, find_images
from detsearch_cli.data.types import Split
from detsearch_cli.errors import DataError

_NO_LABELS = frozenset(
    {"classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "predefined_classes.txt"}
)
_LOOKED_AT = 50


@dataclass(frozen=True)
class _Layout:
    """Names, the images' places of each split, and why others are not offered: (split, reason)."""

    root: Path
    names: tuple[str, ...]
    named_by: Path
    places: dict[str, tuple[Path, ...]]
    bases: tuple[Path, ...]
    key_numbers: int | None = None
    problems: tuple[tuple[str, str], ...] = ()
    moved: tuple[tuple[str, Path], ...] = ()


@dataclass
class _Seen:
    """What was met while a split is read: polygons and the first file with one, label files, images by stem."""

    polygons: int = 0
    polygon_file: Path | None = None
    labelled: int = 0
    finder: Finder = field(default_factory=Finder)


def detect(folder: Path) -> bool:
    """Whether class names and at least one split with images are found as described above."""
    if _yolo_config.has_splits(folder):
        return True
    places = _unwritten(folder)
    named = _yolo_config.has_yaml(folder) or _yolo_config.has_names(folder, _beside(places))
    return named and any(_has_label(p) for group in places.values() for p in group)


def nearly(folder: Path) -> str | None:
    """What a folder that no format knows lacks to be read as YOLO; None when it is none at all."""
    for place in (p for group in _unwritten(folder).values() for p in group):
        for image in _some_images(place):
            label = _yolo_labels.label_file(Finder(), image)
            labels = _labels_or_none(label) if label else None
            if label and labels and labels.boxes and not labels.broken:
                return (
                    f"{folder} holds YOLO labels such as {label}, but no class names: write {folder / 'classes.txt'} "
                    "with one name a line in the order of the class ids, or data.yaml with names: [first, second]"
                )
    return None


def splits(folder: Path) -> tuple[str, ...]:
    """Those of train, val, test whose images exist. Raises DataError saying why when none do."""
    layout = _layout_of(folder)
    if not layout.places and layout.problems:
        raise DataError(f"{folder} is YOLO without a split that can be used: {layout.problems[0][1]}")
    return tuple(s for s in _layout.SPLITS if s in layout.places)


def load(folder: Path, split: str) -> Split:
    """Read one split. Raises DataError when a label has a class id that has no name."""
    layout = _layout_of(folder)
    if split not in layout.places:
        raise DataError(f"{folder} has no split {split!r} any more; its files were moved since it was opened")
    collector = Collector(folder, split)
    if split == next(s for s in _layout.SPLITS if s in layout.places):
        _report_set(collector, layout)
    seen = _Seen()
    images: dict[Path, None] = {}
    for image in _images(collector, layout, split):
        if image in images:
            detail = f"{image.name} is listed twice"
            collector.defect(checks.DUPLICATE_ID, layout.named_by, detail, "second one left out")
            continue
        images[image] = None
    stems: dict[str, Path] = {}
    for image in images:
        _add(collector, image, layout, seen, stems)
    _report_labels(collector, layout, split, seen)
    _label_orphans(collector, images, layout)
    return collector.finish(layout.names)


def _report_set(collector: Collector, layout: _Layout) -> None:
    for name, reason in layout.problems:
        collector.defect(checks.SPLIT_PROBLEM, layout.named_by, reason, f"{name} not offered")
    _report_moved(collector, layout.named_by, layout.moved)
    if layout.key_numbers is not None:
        detail = f"kpt_shape puts {layout.key_numbers} numbers of key points after each box"
        collector.defect(checks.EXTRA_NUMBERS, layout.named_by, detail, "boxes read, key points passed over")


def _report_moved(collector: Collector, named_by: Path, moved: Iterable[tuple[str, Path]]) -> None:
    listed = list(moved)
    if listed:
        written, path = listed[0]
        count = "a path" if len(listed) == 1 else f"{len(listed)} paths"
        detail = f"{count} not here as written; {written[:200]} is taken to be {path}"
        collector.defect(checks.MOVED, named_by, detail, "found by the last parts")


def _report_labels(collector: Collector, layout: _Layout, split: str, seen: _Seen) -> None:
    if seen.polygon_file is not None:
        detail = f"{seen.polygons} lines of seven or more numbers in this split"
        handled = "read as polygons, their bounding boxes taken; pose labels need kpt_shape in the yaml"
        collector.defect(checks.EXTRA_NUMBERS, seen.polygon_file, detail, handled)
    if not seen.labelled and collector.records:
        detail = f"none of the {len(collector.records)} images of {split} has a label file"
        handled = "all kept as background; nothing can be scored on them"
        collector.defect(checks.SPLIT_PROBLEM, layout.places[split][0], detail, handled)


def _add(collector: Collector, image: Path, layout: _Layout, seen: _Seen, stems: dict[str, Path]) -> None:
    label_file = _yolo_labels.label_file(seen.finder, image)
    if label_file is not None:
        first = stems.setdefault(os.path.splitext(image)[0], image)  # noqa: PTH122
        if first is not image:
            detail = f"{first.name} has the same label file {label_file.name}"
            collector.defect(checks.DUPLICATE_ID, image, detail, "second one left out")
            return
    header = collector.open(image, layout.named_by.name)
    if header is None:
        return
    if label_file is None:
        detail = f"no {image.stem}.txt under labels or beside it"
        collector.defect(checks.IMAGE_ONLY, image, detail, "kept as background")
        collector.add(image, header, Objects(), where=image)
        return
    seen.labelled += 1
    try:
        text = reading.read_text(label_file, DataError)
    except DataError as error:
        collector.defect(checks.BROKEN_LABEL, label_file, str(error), "image left out")
        return
    labels = _yolo_labels.parse(text, layout.key_numbers)
    for reason in labels.broken:
        collector.defect(checks.BROKEN_LABEL, label_file, reason, "line left out")
    if labels.polygons:
        seen.polygons += labels.polygons
        seen.polygon_file = seen.polygon_file or label_file
    collector.add(image, header, _objects(labels, header, label_file, layout), where=label_file)


def _objects(labels: _yolo_labels.Labels, header: Header, path: Path, layout: _Layout) -> Objects:
    """Boxes in parts of the image -> px. Raises DataError for a class id without a name."""
    count = len(layout.names)
    if max(labels.labels, default=0) >= count:
        label, line = next((i, n) for i, n in zip(labels.labels, labels.lines, strict=True) if i >= count)
        raise DataError(
            f"{path} line {line}: class id {label} has no name, {layout.named_by} names only "
            f"{count} (ids 0 to {count - 1}); add the missing names there"
        )
    width, height, number = header.width, header.height, len(labels.boxes)
    # whole lists instead of Objects.append: most of the time of a large set went into that
    return Objects(
        boxes=[(x1 * width, y1 * height, x2 * width, y2 * height) for x1, y1, x2, y2 in labels.boxes],
        labels=labels.labels,
        crowd=[False] * number,
        difficult=[False] * number,
        area=[math.nan] * number,
    )


# ---------------------------------------------------------------------- where things lie


def _layout_of(folder: Path) -> _Layout:
    config = _yolo_config.read_config(folder)
    if config is None:
        places = _unwritten(folder)
        named = _yolo_config.named_in_files(folder, _beside(places))
        if named is None:
            raise DataError(f"{folder} has no class names any more; its files were moved since it was opened")
        return _usable(_Layout(folder, *named, places, (folder,)))
    locator = Locator(folder, config.bases)
    places, problems = {}, []
    for split, written in config.written.items():
        found = [_inner(p) if (p := locator.place(w)) is not None else None for w in written]
        if None in found:
            problems.append((split, f"{split}: {written[found.index(None)][:200]} does not exist"))
            continue
        resolved = tuple(p for p in found if p is not None)
        same = next((s for s, p in places.items() if p == resolved), None)
        if same:
            # The tutorial sets validate on their training images; a score there would prove nothing.
            problems.append((split, f"{split} is the same images as {same}"))
            continue
        places[split] = resolved
    moved = tuple(locator.moved)
    layout = _Layout(
        folder,
        config.names,
        config.named_by,
        places,
        config.bases,
        config.key_numbers,
        tuple(problems),
        moved,
    )
    if places:
        return _usable(layout)
    # The yaml names no place that exists: the usual folders, which its splits may mean, are tried.
    usual = _usable(replace(layout, places=_unwritten(folder)))
    return replace(usual, problems=tuple(p for p in usual.problems if p[0] not in usual.places))


def _inner(place: Path) -> Path:
    """A folder `train` that only holds images/ and labels/ means its images."""
    inner = place / "images"
    return Path(os.path.normpath(inner if inner.is_dir() else place))


def _usable(layout: _Layout) -> _Layout:
    """Without the splits in which no image is found, each with the reason."""
    places, problems = {}, list(layout.problems)
    for split, group in layout.places.items():
        if any(_has_image(place, layout.root, layout.bases) for place in group):
            places[split] = group
        else:
            where = ", ".join(str(p) for p in group)
            problems.append((split, f"{split}: no image in {where}"))
    return replace(layout, places=places, problems=tuple(problems))


def _has_image(place: Path, root: Path, bases: tuple[Path, ...]) -> bool:
    if place.is_dir():
        return any(_is_image(name) for _, _, names in os.walk(place) for name in names if name[0] != ".")
    locator = Locator(root, (place.parent, *bases))
    return any(locator.image(line) for line in _listed(place) if _is_image(line))


def _images(collector: Collector, layout: _Layout, split: str) -> Iterator[Path]:
    """Images of folders (searched through) and of list files (paths relative to the file or the set, or absolute)."""
    for place in layout.places[split]:
        if place.is_dir():
            yield from find_images(place, recursive=True)
            continue
        locator = Locator(layout.root, (place.parent, *layout.bases))
        others = 0
        for line in _listed(place):
            if _is_image(line):
                yield Path(os.path.normpath(locator.image(line) or place.parent / line))
            else:
                others += 1
        if others:
            # not quoted: a yaml may name any file of this computer as its list
            detail = f"{others} lines name no image file"
            collector.defect(checks.BROKEN_LABEL, place, detail, "line left out")
        _report_moved(collector, place, locator.moved)


def _listed(place: Path) -> list[str]:
    """Lines of a list file. Raises DataError when it is no text."""
    return [line.strip() for line in _yolo_config.lines_of(place) if line.strip()]


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122


def _unwritten(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Split name -> list file or folder of its images, where no yaml says so."""
    lists = _lists(folder)
    if lists:
        return lists
    inside = _layout.split_folders(folder / "images")
    if inside:
        return {s: (p,) for s, p in inside.items()}
    beside = _layout.split_folders(folder)
    if beside:
        return {s: (p / "images" if (p / "images").is_dir() else p,) for s, p in beside.items()}
    images = folder / "images"
    return {"train": (images if images.is_dir() else folder,)}


def _lists(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Split name -> train.txt, val.txt or valid.txt, test.txt, those that lead to an image."""
    found: dict[str, tuple[Path, ...]] = {}
    for split, name in (("train", "train"), ("val", "val"), ("val", "valid"), ("test", "test")):
        path = folder / f"{name}.txt"
        try:
            if split not in found and path.is_file() and _has_image(path, folder, (folder,)):
                found[split] = (path,)
        except DataError:  # other formats have lists of these names, in any encoding
            continue
    return found


def _beside(places: dict[str, tuple[Path, ...]]) -> list[Path]:
    """Folders where annotation tools put a file of class names: those of the labels, those of the images."""
    folders = [p for group in places.values() for p in group if p.is_dir()]
    return [place for p in folders for place in (_yolo_labels.label_folder(p), p)]


# ---------------------------------------------------------------------- labels


def _has_label(place: Path) -> bool:
    """Whether labels lie in the labels folder that mirrors this one, or beside the first images."""
    labels = _yolo_labels.label_folder(place)
    if place.is_dir() and labels != place:
        names = (name for _, _, files in os.walk(labels) for name in files)
        if any(name.endswith(".txt") and name not in _NO_LABELS for name in names):
            return True
    finder = Finder()
    return any(_yolo_labels.label_file(finder, image) for image in _some_images(place))


def _some_images(place: Path) -> list[Path]:
    if place.is_dir():
        return find_images(place)[:_LOOKED_AT]
    locator = Locator(place.parent, (place.parent,))
    found = (locator.image(line) for line in _listed(place)[:_LOOKED_AT] if _is_image(line))
    return [path for path in found if path is not None]


def _labels_or_none(path: Path) -> _yolo_labels.Labels | None:
    try:
        return _yolo_labels.parse(reading.read_text(path, DataError), None)
    except DataError:
        return None


def _label_orphans(collector: Collector, images: Iterable[Path], layout: _Layout) -> None:
    """Label files whose image is not in the split, in the folders the split's labels come from."""
    known = {composed(str(p)) for image in images for p in _yolo_labels.label_files(image)}
    folders = {p.parent for image in images for p in _yolo_labels.label_files(image)}
    others = {layout.named_by, *(p for group in layout.places.values() for p in group)}
    for folder in sorted(folders):
        for path in sorted(folder.glob("*.txt")) if folder.is_dir() else []:
            if (
                composed(str(path)) in known
                or path in others
                or path.name in _NO_LABELS
                or path.name.startswith(".")
            ):
                continue
            if not _yolo_labels.has_image(path):
                collector.defect(checks.LABEL_ONLY, path, "no image of this name", "label left out")
