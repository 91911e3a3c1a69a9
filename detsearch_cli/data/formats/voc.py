"""Pascal VOC: XML labels in Annotations/, images in JPEGImages/, lists in ImageSets/Main/.

Read as such: a year of the devkit (VOC2007), a devkit with several years below it, a folder of the same
shape, `images/` beside `annotations/`, one folder a split with XML beside the images or in a folder of its own,
and `images/train` beside `annotations/train`.

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

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from detsearch_cli import reading
from detsearch_cli.data import checks, spelling
from detsearch_cli.data.checks import Collector, Objects
from detsearch_cli.data.formats import _layout
from detsearch_cli.data.formats._find import Finder, composed
from detsearch_cli.data.formats._voc_xml import MOST_BYTES, Annotation, is_annotation, parse
from detsearch_cli.data.images import SUFFIXES, find_images
from detsearch_cli.data.types import Split
from detsearch_cli.errors import DataError

_LABELS = ("Annotations", "annotations", "Annotation", "xml", "labels")
_ONE_PIXEL = 1.0
_LOOKED_AT = 5
"""Other XML may lie among the labels: what an editor wrote, a list of classes."""
_IMAGES = ("JPEGImages", "images", "Images", "PNGImages", "img")


@dataclass(frozen=True)
class _Part:
    """Images and labels of a split that lie in one pair of folders; ids None: every label file there."""

    images: Path
    labels: Path
    ids: tuple[str, ...] | None
    list_file: Path | None = None


@dataclass(frozen=True)
class _Found:
    """The parts of each split, and why others are not offered: (split, where, reason)."""

    parts: dict[str, list[_Part]]
    problems: tuple[tuple[str, Path, str], ...] = ()


def detect(folder: Path) -> bool:
    """Whether the folder looks like VOC: XML labels at one of the places named above."""
    return bool(_parts(folder))


def splits(folder: Path) -> tuple[str, ...]:
    """Those of train, val, test that can be loaded. Raises DataError saying why when none can."""
    found = _found(folder)
    if not found.parts and found.problems:
        raise DataError(f"{folder} is VOC without a split that can be used: {found.problems[0][2]}")
    return tuple(s for s in _layout.SPLITS if s in found.parts)


def load(folder: Path, split: str) -> Split:
    """Read one split. Raises DataError when nothing of it can be used."""
    found = _found(folder)
    if split not in found.parts:
        raise DataError(f"{folder} has no split {split!r} any more; its files were moved since it was opened")
    listed = {name: [(p, _ids(p)) for p in group] for name, group in found.parts.items()}
    counts: Counter[str] = Counter()
    finder = Finder()
    for group in listed.values():
        for part, ids in group:
            for stem in ids:
                annotation = _parse_or_none(_label(finder, part, stem))
                if annotation is not None:
                    counts.update(o.name for o in annotation.objects)
    names = spelling.class_names(counts, _layout.listed_classes(folder))
    collector = Collector(folder, split)
    suspects = {name: (detail, handled) for name, detail, handled in names.problems}
    for part, ids in listed[split]:
        _load_part(collector, part, ids, names, suspects, finder)
    if split == next(s for s in _layout.SPLITS if s in found.parts):
        for name, where, reason in found.problems:
            collector.defect(checks.SPLIT_PROBLEM, where, reason, f"{name} not offered")
        for part in {p.labels: p for group in found.parts.values() for p in group}.values():
            _orphans(collector, part, found)
    return collector.finish(names.names)


def _load_part(
    collector: Collector,
    part: _Part,
    ids: tuple[str, ...],
    names: spelling.ClassNames,
    suspects: dict[str, tuple[str, str]],
    finder: Finder,
) -> None:
    images = _by_stem(part.images)
    named_by = part.list_file or part.labels
    seen: set[str] = set()
    for stem in ids:
        label_file = _label(finder, part, stem)
        if stem in seen:
            collector.defect(checks.DUPLICATE_ID, named_by, f"{stem} is listed twice", "second one left out")
            continue
        seen.add(stem)
        pictures = images.get(stem, [])
        annotation = _read(collector, label_file, pictures)
        if annotation is None:
            continue
        file = _picture(collector, pictures, annotation.filename)
        if file is None:
            name = annotation.filename or f"{stem}.jpg"
            file = finder.file(part.images, name) or part.images / name
        header = collector.open(file, named_by.name)
        if header is None:
            continue
        objects = _objects(collector, label_file, annotation, names)
        for name in {o.name for o in annotation.objects} & suspects.keys():
            collector.defect(checks.CLASS_SPELLING, label_file, *suspects[name])
        declared = annotation.size or (0, 0)
        collector.add(file, header, objects, where=label_file, declared=declared, tolerance=_ONE_PIXEL)


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    """Images by the composed form of their stem."""
    found: dict[str, list[Path]] = {}
    for path in find_images(folder):
        found.setdefault(composed(path.stem), []).append(path)
    return found


def _picture(collector: Collector, pictures: list[Path], filename: str) -> Path | None:
    """That of several files of one stem, such as a picture and its mask, which the XML names; else the first."""
    if len(pictures) < 2:
        return pictures[0] if pictures else None
    chosen = next((p for p in pictures if composed(p.name) == composed(filename)), None)
    reason = "is the one that the XML names" if chosen else "comes first, and the XML names neither"
    chosen = chosen or pictures[0]
    for other in pictures:
        if other != chosen:
            detail = f"{chosen.name} has the same stem and {reason}"
            collector.defect(checks.DUPLICATE_ID, other, detail, "second one left out")
    return chosen


def _read(collector: Collector, label_file: Path, pictures: list[Path]) -> Annotation | None:
    """The annotation; None, with a defect, when it is missing or broken."""
    try:
        annotation = _parse(label_file)
    except DataError as error:
        collector.defect(checks.BROKEN_LABEL, label_file, str(error), "image left out")
        return None
    if annotation is None and pictures:
        collector.defect(checks.IMAGE_ONLY, pictures[0], f"no {label_file.name}", "image left out")
    elif annotation is None:
        collector.defect(checks.MISSING_IMAGE, label_file, "neither image nor label exists", "image left out")
    return annotation


def _objects(
    collector: Collector, label_file: Path, annotation: Annotation, names: spelling.ClassNames
) -> Objects:
    for reason, handled in annotation.problems:
        collector.defect(checks.BROKEN_LABEL, label_file, reason, handled)
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


def _orphans(collector: Collector, part: _Part, found: _Found) -> None:
    """Label files without image and images without label that no split names.

    A folder is looked through once, with the first split; what a split names is reported by that split.
    """
    images = _by_stem(part.images)
    labels = {composed(p.stem): p for p in _label_files(part.labels)}
    listed = {
        stem for group in found.parts.values() for p in group if p.labels == part.labels for stem in _ids(p)
    }
    for stem in sorted(labels.keys() - images.keys() - listed):
        collector.defect(checks.LABEL_ONLY, labels[stem], "no image of this name", "label left out")
    for stem in sorted(images.keys() - labels.keys() - listed):
        for image in images[stem]:
            collector.defect(checks.IMAGE_ONLY, image, "no label file", "image left out")


def _ids(part: _Part) -> tuple[str, ...]:
    """Stems of the label files, in the composed form."""
    if part.ids is not None:
        return tuple(composed(stem) for stem in part.ids)
    return tuple(sorted(composed(p.stem) for p in _label_files(part.labels)))


def _label(finder: Finder, part: _Part, stem: str) -> Path:
    return finder.file(part.labels, f"{stem}.xml") or part.labels / f"{stem}.xml"


def _label_files(folder: Path) -> list[Path]:
    # Hidden ones are what macOS writes beside real files on foreign disks.
    return [p for p in folder.glob("*.xml") if not p.name.startswith(".")]


def _found(folder: Path) -> _Found:
    """The splits that can be loaded. One whose list or folder leads to no label file is not offered."""
    parts = _parts(folder)
    usable: dict[str, list[_Part]] = {}
    finder = Finder()
    problems = list(_folders_without_labels(folder, parts))
    for name, group in parts.items():
        if any(finder.file(p.labels, f"{stem}.xml") for p in group for stem in _ids(p)):
            usable[name] = group
            continue
        where = group[0].list_file or group[0].labels
        count = sum(len(_ids(p)) for p in group)
        reason = f"none of its {count} ids has an XML in {group[0].labels}" if count else "it names no image"
        problems.append((name, where, reason))
    return _Found(usable, tuple(problems))


def _folders_without_labels(folder: Path, parts: dict[str, list[_Part]]) -> list[tuple[str, Path, str]]:
    """Folders named after a split beside those that are read, when no list says which splits there are."""
    if any(
        p.list_file or p.labels in (folder, *(folder / n for n in _LABELS)) for g in parts.values() for p in g
    ):
        return []
    beside = [folder, *(folder / n for n in _IMAGES)]
    named = {split: path for place in beside for split, path in _layout.split_folders(place).items()}
    return [(s, p, "no XML label file in it") for s, p in named.items() if s not in parts]


def _parts(folder: Path) -> dict[str, list[_Part]]:
    """Split name -> where it lies; empty when the folder is not VOC."""
    years = sorted(p for p in folder.glob("VOC20*") if p.is_dir() and _pair(p))
    if len(years) == 1:
        return _lists(years[0])
    if years:
        return _several_years(years)
    if _pair(folder):
        return _lists(folder)
    inner = {s: _pair(p) for s, p in _layout.split_folders(folder).items()}
    parts = {s: [_Part(*pair, None)] for s, pair in inner.items() if pair}
    return parts or _split_labels(folder)


def _split_labels(folder: Path) -> dict[str, list[_Part]]:
    """`annotations/train/*.xml` beside `images/train/*.jpg`."""
    for name in _LABELS:
        labels = {s: p for s, p in _layout.split_folders(folder / name).items() if _has_labels(p)}
        if labels:
            images = next((folder / n for n in _IMAGES if (folder / n).is_dir()), folder / name)
            places = _layout.split_folders(images)
            return {s: [_Part(places.get(s, images), p, None)] for s, p in labels.items()}
    return {}


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
    """Whether the folder holds XML, one of the first of which starts as VOC's does."""
    for path in islice(_label_files(folder), _LOOKED_AT):
        try:
            with reading.open_regular(path, DataError) as file:
                if is_annotation(file.read(1024)):
                    return True
        except (OSError, DataError):  # the other files decide
            continue
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


def _parse_or_none(path: Path) -> Annotation | None:
    try:
        return _parse(path)
    except DataError:
        return None


def _parse(path: Path) -> Annotation | None:
    """The annotation; None when there is no such file. Raises DataError with the reason when it cannot be read."""
    try:
        stat = path.stat()
    except (OSError, ValueError):  # ValueError: a NUL in an id of a list
        return None
    return _parse_once(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=65536)
def _parse_once(path: Path, modified: int, size: int) -> Annotation:
    # Every split needs the class names of all: without the cache each file would be parsed once a split.
    if size > MOST_BYTES:
        raise DataError(f"{size} bytes; a label file of at most {MOST_BYTES} is read")
    with reading.open_regular(path, DataError) as file:
        return parse(file.read())
