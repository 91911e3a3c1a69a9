"""Pascal VOC: XML labels in Annotations/, images in JPEGImages/, lists in ImageSets/Main/.

Read as such: a year of the devkit (VOC2007), a devkit with several years below it, a folder of the same
shape, `images/` beside `annotations/`, and one folder a split with XML beside the images.

Pixels: VOC indices are 1-based and inclusive, so a box is (xmin - 1, ymin - 1, xmax, ymax) in the continuous
coordinates used everywhere else; xmin = 1, xmax = width is the whole image. xmin = xmax counts as zero area.
Many folders of this shape count from 0: a box that leaves the image by up to one pixel is clipped and not
reported.
A devkit with several years means what papers mean by 07+12: `train` is the trainval of all years, `test` the
test list of those years whose labels are public (2007).
Class names are collected over all splits and sorted, so that label numbers agree between the splits.
Source: Everingham et al., The PASCAL VOC Challenge 2012 Development Kit, section 4.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from detsearch_cli import reading
from detsearch_cli.data import checks, spelling
from detsearch_cli.data.checks import Collector, Objects
from detsearch_cli.data.formats import _layout
from detsearch_cli.data.images import SUFFIXES, find_images
from detsearch_cli.data.types import Split
from detsearch_cli.errors import DataError

_LABELS = ("Annotations", "annotations", "Annotation", "xml", "labels")
_ONE_PIXEL = 1.0
_IMAGES = ("JPEGImages", "images", "Images", "PNGImages", "img")


@dataclass(frozen=True)
class _Part:
    """Images and labels of a split that lie in one pair of folders; ids None: every label file there."""

    images: Path
    labels: Path
    ids: tuple[str, ...] | None
    list_file: Path | None = None


@dataclass(frozen=True)
class _Object:
    name: str
    box: tuple[float, float, float, float]
    difficult: bool | None


@dataclass(frozen=True)
class _Annotation:
    size: tuple[int, int] | None
    filename: str
    objects: tuple[_Object, ...]
    broken: tuple[str, ...]


def detect(folder: Path) -> bool:
    """Whether the folder looks like VOC: XML labels at one of the places named above."""
    return bool(_parts(folder))


def splits(folder: Path) -> tuple[str, ...]:
    """Those of train, val, test that can be loaded."""
    return tuple(s for s in _layout.SPLITS if s in _parts(folder))


def load(folder: Path, split: str) -> Split:
    """Read one split. Raises DataError when nothing of it can be used."""
    parts = _parts(folder)
    listed = {name: [(p, _ids(p)) for p in group] for name, group in parts.items()}
    counts: Counter[str] = Counter()
    for group in listed.values():
        for part, ids in group:
            for stem in ids:
                annotation = _parse_or_none(part.labels / f"{stem}.xml")
                if annotation is not None:
                    counts.update(o.name for o in annotation.objects)
    names = spelling.class_names(counts, _layout.listed_classes(folder))
    collector = Collector(folder, split)
    suspects = {name: (detail, handled) for name, detail, handled in names.problems}
    for part, ids in listed[split]:
        _load_part(collector, part, ids, names, suspects)
    if split == splits(folder)[0]:
        for part in {p.labels: p for group in parts.values() for p in group}.values():
            _orphans(collector, part)
    return collector.finish(names.names)


def _load_part(
    collector: Collector,
    part: _Part,
    ids: tuple[str, ...],
    names: spelling.ClassNames,
    suspects: dict[str, tuple[str, str]],
) -> None:
    images = {p.stem: p for p in find_images(part.images)}
    named_by = part.list_file or part.labels
    seen: set[str] = set()
    for stem in ids:
        label_file = part.labels / f"{stem}.xml"
        if stem in seen:
            collector.defect(checks.DUPLICATE_ID, named_by, f"{stem} is listed twice", "second one left out")
            continue
        seen.add(stem)
        annotation = _read(collector, label_file, images.get(stem))
        if annotation is None:
            continue
        file = images.get(stem) or part.images / (annotation.filename or f"{stem}.jpg")
        header = collector.open(file, named_by.name)
        if header is None:
            continue
        objects = _objects(collector, label_file, annotation, names)
        for name in {o.name for o in annotation.objects} & suspects.keys():
            collector.defect(checks.CLASS_SPELLING, label_file, *suspects[name])
        declared = annotation.size or (0, 0)
        collector.add(file, header, objects, where=label_file, declared=declared, tolerance=_ONE_PIXEL)


def _read(collector: Collector, label_file: Path, image: Path | None) -> _Annotation | None:
    """The annotation; None, with a defect, when it is missing or broken."""
    try:
        return _parse(label_file)
    except FileNotFoundError:
        if image is None:
            collector.defect(
                checks.MISSING_IMAGE, label_file, "neither image nor label exists", "image left out"
            )
        else:
            collector.defect(checks.IMAGE_ONLY, image, f"no {label_file.name}", "image left out")
    except (ET.ParseError, UnicodeDecodeError) as error:
        collector.defect(checks.BROKEN_LABEL, label_file, str(error), "image left out")
    return None


def _objects(
    collector: Collector, label_file: Path, annotation: _Annotation, names: spelling.ClassNames
) -> Objects:
    for reason in annotation.broken:
        collector.defect(checks.BROKEN_LABEL, label_file, reason, "object left out")
    silent = sum(o.difficult is None for o in annotation.objects)
    if silent:
        collector.defect(checks.NO_DIFFICULT, label_file, f"{silent} objects", "taken as not difficult")
    objects = Objects()
    for item in annotation.objects:
        x1, y1, x2, y2 = collector.in_order(item.box, label_file)
        # An inclusive box of one pixel is a slip of the mouse, not an object: made empty, hence left out.
        box = (x1 - 1, y1 - 1, x2 if x2 != x1 else x1 - 1, y2 if y2 != y1 else y1 - 1)
        objects.append(box, names.of[item.name], difficult=bool(item.difficult))
    return objects


def _orphans(collector: Collector, part: _Part) -> None:
    """Label files without image and images without label that no split names.

    A folder is looked through once, with the first split; what a split names is reported by that split.
    """
    images = {p.stem: p for p in find_images(part.images)}
    labels = {p.stem: p for p in part.labels.glob("*.xml")}
    groups = _parts(collector.folder).values()
    listed = {stem for group in groups for p in group if p.labels == part.labels for stem in _ids(p)}
    for stem in sorted(labels.keys() - images.keys() - listed):
        collector.defect(checks.LABEL_ONLY, labels[stem], "no image of this name", "label left out")
    for stem in sorted(images.keys() - labels.keys() - listed):
        collector.defect(checks.IMAGE_ONLY, images[stem], "no label file", "image left out")


def _ids(part: _Part) -> tuple[str, ...]:
    return part.ids if part.ids is not None else tuple(sorted(p.stem for p in part.labels.glob("*.xml")))


def _parts(folder: Path) -> dict[str, list[_Part]]:
    """Split name -> where it lies; empty when the folder is not VOC."""
    years = sorted(p for p in folder.glob("VOC20*") if p.is_dir() and _pair(p))
    if len(years) == 1:
        return _lists(years[0])
    if years:
        return _several_years(years)
    if _pair(folder):
        return _lists(folder)
    beside = _layout.split_folders(folder)
    return {s: [_Part(p, p, None)] for s, p in beside.items() if _has_labels(p)}


def _several_years(years: list[Path]) -> dict[str, list[_Part]]:
    result: dict[str, list[_Part]] = {"train": [], "test": []}
    for year in years:
        lists = _lists(year, trainval=True)
        for name in ("train", "test"):
            # The test labels of 2012 are not public: its list alone offers nothing to score against.
            result[name] += [
                p for p in lists.get(name, []) if any((p.labels / f"{i}.xml").exists() for i in _ids(p)[:5])
            ]
    return {name: parts for name, parts in result.items() if parts}


def _has_labels(folder: Path) -> bool:
    """Whether the folder holds XML, the first of which starts as VOC's does."""
    try:
        first = next((p for p in folder.glob("*.xml") if p.is_file()), None)
        if first is None:
            return False
        with first.open("rb") as file:
            return b"<annotation" in file.read(1024)
    except OSError:
        return False


def _pair(folder: Path) -> tuple[Path, Path] | None:
    """(images, labels) of one VOC folder."""
    labels = next((folder / n for n in _LABELS if _has_labels(folder / n)), None)
    if labels is None:
        return (folder, folder) if _has_labels(folder) else None
    images = next((folder / n for n in _IMAGES if (folder / n).is_dir()), None)
    return (images or labels, labels)


def _lists(folder: Path, trainval: bool = False) -> dict[str, list[_Part]]:
    pair = _pair(folder)
    if pair is None:
        raise DataError(f"{folder} has no XML labels; VOC keeps them in Annotations/")
    images, labels = pair
    main = folder / "ImageSets" / "Main"
    main = main if main.is_dir() else main.parent
    found = {
        n: main / f"{n}.txt" for n in ("train", "val", "test", "trainval") if (main / f"{n}.txt").is_file()
    }
    if not found:
        return {"train": [_Part(images, labels, None)]}
    whole = found.pop("trainval", None)
    if trainval and (whole or "train" in found):
        joined = [whole] if whole else [found[n] for n in ("train", "val") if n in found]
        rest = {"test": [found["test"]]} if "test" in found else {}
        lists = {"train": joined, **rest}
    else:
        if whole and "train" not in found:
            found = {"train": whole, **{n: p for n, p in found.items() if n == "test"}}
        lists = {n: [p] for n, p in found.items()}
    return {
        n: [_Part(images, labels, _read_list(p), p) for p in paths] for n, paths in lists.items() if paths
    }


def _read_list(path: Path) -> tuple[str, ...]:
    """Image ids of a list file: one a line, possibly with a suffix, or followed by -1, 0 or 1."""
    ids = []
    for line in reading.read_text(path, DataError).splitlines():
        whole = line.strip()
        if not whole:
            continue
        words = whole.split()
        name = words[0] if len(words) == 2 and words[1] in ("-1", "0", "1") else whole
        stem, dot, suffix = name.rpartition(".")
        ids.append(stem if dot and f".{suffix.lower()}" in SUFFIXES else name)
    return tuple(ids)


def _parse_or_none(path: Path) -> _Annotation | None:
    try:
        return _parse(path)
    except (OSError, ET.ParseError, UnicodeDecodeError):
        return None


def _parse(path: Path) -> _Annotation:
    """Raises FileNotFoundError, ET.ParseError."""
    stat = path.stat()
    return _parse_once(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=65536)
def _parse_once(path: Path, modified: int, size: int) -> _Annotation:
    # Every split needs the class names of all: without the cache each file would be parsed once a split.
    root = ET.fromstring(path.read_bytes())
    objects, broken = [], []
    for node in root.iterfind("object"):
        name = (node.findtext("name") or "").strip()
        box = node.find("bndbox")
        if not name or box is None:
            broken.append(f"object {name or 'without name'} has no {'bndbox' if name else 'name'}")
            continue
        try:
            x1, y1, x2, y2 = (float(box.findtext(k) or "") for k in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError:
            broken.append(f"bndbox of {name} needs four numbers")
            continue
        flag = (node.findtext("difficult") or "").strip()
        objects.append(_Object(name, (x1, y1, x2, y2), flag != "0" if flag else None))
    return _Annotation(_size(root), (root.findtext("filename") or "").strip(), tuple(objects), tuple(broken))


def _size(root: ET.Element) -> tuple[int, int] | None:
    try:
        return int(float(root.findtext("size/width") or "")), int(float(root.findtext("size/height") or ""))
    except ValueError:
        return None
