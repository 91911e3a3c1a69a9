"""Writes a data set in another format, or divided anew, as a new folder; what it reads is never changed.

Images are copied byte for byte. Rendered ones, and those that EXIF rotates, are written upright as PNG,
because readers disagree on rotation. The folder appears whole or not at all: it is written beside its place, in
a marked folder, and moved. The next command for the same place removes what a killed one left beside it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from detsearch_cli.data import spelling
from detsearch_cli.data.images import read_header
from detsearch_cli.data.leaks import in_both
from detsearch_cli.data.source import FolderSource, join
from detsearch_cli.data.splits import fractions_of, permutation
from detsearch_cli.data.types import Record, Source, Split
from detsearch_cli.data.usable import left_out, usable
from detsearch_cli.errors import DataError, OutputError, StorageError
from detsearch_cli.files import (
    is_gone,
    is_ours,
    is_unfinished,
    resolved,
    storage_error,
    unfinished,
    write_signed_json,
)

MARK, DRAFT = "draft.json", "draft"  # the file that signs an unfinished folder, and what it says


@dataclass(frozen=True)
class Converted:
    """What was written: images and boxes of each split, and what the format could not express."""

    folder: Path
    format: str
    images: dict[str, int]
    boxes: dict[str, int]
    notes: tuple[str, ...]


def convert(source: Source, out: Path, format: str, splits: Sequence[str] | None = None) -> Converted:
    """Write splits (default: all) of `source` to the new folder `out` as "coco", "voc" or "yolo".

    Defects are handled as in loading: the copy has none of them. Raises DataError for an unknown format or
    split, OutputError for a folder that is not empty or lies in the source, StorageError when the disk refuses.
    """
    if format not in WRITERS:
        raise DataError(f"can write {', '.join(WRITERS)}, not {format!r}")
    _check_target(source, out)
    return _write({name: usable(source.load(name)) for name in splits or source.splits}, out, format)


def split(
    source: Source, out: Path, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2), seed: int = 0
) -> Converted:
    """Join all splits of `source` and divide the images anew into train, val and test, as a COCO folder.

    A fraction of 0 leaves its split away. Raises as `convert` does, and DataError for fractions that do not
    sum to 1 or images that do not suffice for them.
    """
    # every one compared, not the least: min() of a NaN is whatever stands first
    fair = len(fractions) == 3 and all(0 <= part <= 1 for part in fractions) and fractions[0] > 0
    if not fair or abs(sum(fractions) - 1) > 1e-6:
        raise DataError(
            f"fractions are train, val, test >= 0 with sum 1 and a train above 0, got {fractions}"
        )
    _check_target(source, out)
    whole = usable(join([source.load(name) for name in source.splits], "+".join(source.splits)))
    counts = fractions_of(len(whole), fractions)
    if any(f > 0 and c == 0 for f, c in zip(fractions, counts, strict=True)):
        raise DataError(
            f"{len(whole)} images do not suffice for fractions {fractions}: a split would be empty"
        )
    order = permutation(whole, seed)
    parts: dict[str, Split] = {}
    start = 0
    for name, count in zip(("train", "val", "test"), counts, strict=True):
        if count:
            parts[name] = whole.take(sorted(order[start : start + count]), name)
        start += count
    return _write(parts, out, "coco")


def _check_target(source: Source, out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; name a new folder")
    if out.is_dir() and any(out.iterdir()):
        raise OutputError(f"{out} is not empty; name a new folder, nothing is ever overwritten")
    if isinstance(source, FolderSource) and resolved(out).is_relative_to(resolved(source.folder)):
        raise OutputError(
            f"{out} lies in the data set {source.folder}, which is never written to; name another place"
        )


def _write(splits: dict[str, Split], out: Path, format: str) -> Converted:
    target = resolved(out)  # a link to an empty folder stays a link
    draft = _new_draft(target)
    try:
        with unfinished(draft):
            write_signed_json(draft / MARK, DRAFT, {"process": os.getpid(), "host": socket.gethostname()})
            folder = draft / "set"  # not the draft itself: the mark stays beside the set until that has moved
            folder.mkdir()
            boxes, notes = WRITERS[format](folder, splits)
            # The system lets a folder replace none but an empty one, so what came there meanwhile is not lost.
            folder.rename(target)
    except OSError as error:
        raise StorageError(
            f"cannot write {out}: {error.strerror or error}; nothing was left behind"
        ) from error
    finally:
        _remove(draft)  # ours: `_new_draft` made it, under a name that was free
    images = {name: len(s) for name, s in splits.items()}
    parts = list(splits.values())
    shared = [said for n, s in enumerate(parts) for before in parts[:n] if (said := in_both(before, s))]
    return Converted(out, format, images, boxes, (*notes, *left_out(parts), *shared))


def _new_draft(target: Path) -> Path:
    """A new folder beside `target`; those that killed processes left for the same target are removed."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for found in target.parent.iterdir():
            if _is_left_behind(found, target.name):
                # Ours: named like a draft of this very target, and marked by a process that is gone. What it
                # links to is safe: rmtree follows no link.
                _remove(found)
        prefix = f".{target.name}.{os.getpid()}."
        return Path(tempfile.mkdtemp(prefix=prefix, suffix=".part", dir=target.parent))
    except OSError as error:
        raise storage_error(target, error) from error


def _remove(draft: Path) -> None:
    """Remove the set before its mark: after a kill on the way the rest is still known as ours."""
    shutil.rmtree(draft / "set", ignore_errors=True)
    shutil.rmtree(draft, ignore_errors=True)


def _is_left_behind(path: Path, name: str) -> bool:
    """Whether `path` is a draft for the target `name` whose process, of this machine, was killed."""
    named = re.fullmatch(rf"\.{re.escape(name)}\.([0-9]{{1,10}})\.\w+\.part", path.name)
    if named is None or path.is_symlink() or is_unfinished(path) or not is_ours(path / MARK, DRAFT):
        return False
    try:
        marked = json.loads((path / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    number = int(named[1])
    # the numbers of another machine's processes, on a shared disk, mean nothing here
    if (marked.get("process"), marked.get("host")) != (number, socket.gethostname()):
        return False
    # our own number: of an earlier process that had it; in a container every run may have the same
    return number == os.getpid() or is_gone(number)


class _Images:
    """Copies images into a new set; no two of them share a stem, over all splits."""

    def __init__(self) -> None:
        self.taken: set[str] = set()

    def copy(self, split: Split, index: int, folder: Path) -> str:
        """Copy image `index` into `folder`; returns the file's name there."""
        record = split.records[index]
        stem = record.file.stem if record.file else f"{split.name}_{record.image_id:06d}"
        wanted, number = stem, 1
        while stem.casefold() in self.taken:
            number += 1
            stem = f"{wanted}_{number}"
        self.taken.add(stem.casefold())
        if record.file is not None and read_header(record.file).orientation == 1:
            name = stem + record.file.suffix
            shutil.copyfile(record.file, folder / name)
            return name
        Image.fromarray(split.read(index)).save(folder / f"{stem}.png")
        return f"{stem}.png"


def _write_coco(folder: Path, splits: dict[str, Split]) -> tuple[dict[str, int], list[str]]:
    images = _Images()
    (folder / "annotations").mkdir()
    for name, content in splits.items():
        (folder / name).mkdir()
        annotations: list[dict[str, Any]] = []
        rows = []
        for index, record in enumerate(content.records):
            file_name = images.copy(content, index, folder / name)
            size = {"width": record.width, "height": record.height}
            rows.append({"id": record.image_id, "file_name": file_name, **size})
            annotations += _coco_objects(record, content.category_ids, len(annotations))
        categories = [
            {"id": number, "name": text}
            for number, text in zip(content.category_ids, content.classes, strict=True)
        ]
        document = {"images": rows, "annotations": annotations, "categories": categories}
        path = folder / "annotations" / f"instances_{name}.json"
        path.write_text(json.dumps(document), encoding="utf-8")
    return {name: sum(len(r.boxes) for r in s.records) for name, s in splits.items()}, []


def _coco_objects(record: Record, category_ids: tuple[int, ...], before: int) -> list[dict[str, Any]]:
    objects = []
    for i, (x1, y1, x2, y2) in enumerate(record.boxes.tolist()):
        item = {
            "id": before + i + 1,
            "image_id": record.image_id,
            "category_id": category_ids[int(record.labels[i])],
            "bbox": [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)],
            "area": round(float(record.area[i]), 3),
            "iscrowd": int(record.crowd[i]),
        }
        # Not COCO's own key; our reader takes it, others pass over it.
        objects.append(item | ({"difficult": 1} if record.difficult[i] else {}))
    return objects


def _write_voc(folder: Path, splits: dict[str, Split]) -> tuple[dict[str, int], list[str]]:
    classes = next(iter(splits.values())).classes
    images, dropped, crowd = _Images(), 0, 0
    written = dict.fromkeys(splits, 0)
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    # Without the list its reader would take a rare spelling of another class for a slip.
    if spelling.alike(classes):
        (folder / "classes.txt").write_text("".join(f"{c}\n" for c in classes), encoding="utf-8")
    for name, content in splits.items():
        stems = []
        for index, record in enumerate(content.records):
            file_name = images.copy(content, index, folder / "JPEGImages")
            stems.append(Path(file_name).stem)
            # An inclusive box of one pixel or less cannot be told from a degenerate one.
            wide = ((record.boxes[:, 2:] - record.boxes[:, :2]) > 1).all(axis=1)
            dropped += int((~wide).sum())
            written[name] += int(wide.sum())
            crowd += int(record.crowd.sum())
            root = _voc_xml(record, wide.tolist(), classes, file_name)
            ET.indent(root)
            ET.ElementTree(root).write(folder / "Annotations" / f"{stems[-1]}.xml", encoding="utf-8")
        text = "".join(f"{stem}\n" for stem in stems)
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text(text, encoding="utf-8")
    seen = {int(v) for s in splits.values() for r in s.records for v in r.labels}
    return written, _notes(
        (dropped, "boxes of at most one pixel left out: VOC's inclusive corners cannot express them"),
        (crowd, "crowd regions written as difficult: VOC has no regions to ignore"),
        (len(classes) - len(seen), "classes without boxes are lost: VOC lists classes by their boxes only"),
    )


def _voc_xml(record: Record, keep: list[bool], classes: tuple[str, ...], file_name: str) -> ET.Element:
    root = ET.Element("annotation")
    ET.SubElement(root, "filename").text = file_name
    size = ET.SubElement(root, "size")
    for key, value in (("width", record.width), ("height", record.height), ("depth", 3)):
        ET.SubElement(size, key).text = str(value)
    for i, (x1, y1, x2, y2) in enumerate(record.boxes.tolist()):
        if not keep[i]:
            continue
        item = ET.SubElement(root, "object")
        ET.SubElement(item, "name").text = classes[int(record.labels[i])]
        ET.SubElement(item, "truncated").text = "0"
        ET.SubElement(item, "difficult").text = str(int(record.difficult[i] or record.crowd[i]))
        box = ET.SubElement(item, "bndbox")
        for key, value in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
            ET.SubElement(box, key).text = f"{value:.3f}".rstrip("0").rstrip(".")
    return root


def _write_yolo(folder: Path, splits: dict[str, Split]) -> tuple[dict[str, int], list[str]]:
    images, crowd, difficult = _Images(), 0, 0
    written = dict.fromkeys(splits, 0)
    for name, content in splits.items():
        for part in ("images", "labels"):
            (folder / part / name).mkdir(parents=True)
        for index, record in enumerate(content.records):
            stem = Path(images.copy(content, index, folder / "images" / name)).stem
            scale = (record.width, record.height)
            lines = []
            for i, (x1, y1, x2, y2) in enumerate(record.boxes.tolist()):
                if record.crowd[i]:
                    continue
                parts = (
                    (x1 + x2) / 2 / scale[0],
                    (y1 + y2) / 2 / scale[1],
                    (x2 - x1) / scale[0],
                    (y2 - y1) / scale[1],
                )
                lines.append(f"{int(record.labels[i])} " + " ".join(f"{v:.8f}" for v in parts) + "\n")
            written[name] += len(lines)
            crowd += int(record.crowd.sum())
            difficult += int(record.difficult.sum())
            (folder / "labels" / name / f"{stem}.txt").write_text("".join(lines), encoding="utf-8")
    names = dict(enumerate(next(iter(splits.values())).classes))
    config: dict[str, Any] = {**{name: f"images/{name}" for name in splits}, "names": names}
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    return written, _notes(
        (crowd, "crowd regions left out: YOLO has no regions to ignore"),
        (difficult, "difficult boxes written as ordinary ones: YOLO has no such flag"),
    )


def _notes(*counted: tuple[int, str]) -> list[str]:
    return [f"{count} {text}" for count, text in counted if count]


WRITERS: dict[str, Callable[[Path, dict[str, Split]], tuple[dict[str, int], list[str]]]] = {
    "coco": _write_coco,
    "voc": _write_voc,
    "yolo": _write_yolo,
}
