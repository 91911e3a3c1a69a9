"""Reads COCO's results file, `[{image_id, category_id, bbox, score}]`, as any framework writes it.

Nothing is guessed, dropped or shifted: what does not fit the split is refused by the entry and the rule it breaks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from detsearch_cli.data.types import Split
from detsearch_cli.errors import EvaluationError
from detsearch_cli.reading import LARGEST, number, read_json, whole

SHOWN = 6  # ids and names listed in an error message before it says "..."
FITTING, LEAVING = 0.95, 0.25
"""Shares of boxes. Corners read as x, y, width, height leave the image on the right or below for most boxes that do not
lie in its upper left quarter; boxes of width and height are hardly ever all larger than their x and y."""


@dataclass(frozen=True)
class Columns:
    """A results file, one row an entry. image (D,) int64 rows of the split, boxes (D, 4) float64 x, y, width, height px,

    scores (D,) float64, labels (D,) int64.
    """

    image: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def read_results(path: Path, split: Split, own: bool = False) -> Columns:
    """The entries of a results file, against the ids of `split`. own: this program has written it for this split.

    Raises EvaluationError naming the file, the entry and the rule it breaks.
    """
    entries = _entries(path)
    labels = {c: i for i, c in enumerate(split.category_ids)}
    categories = _categories(path, entries, split)
    image = ImageIds(split).rows(path, [entry["image_id"] for entry in entries], own)
    boxes = [_bbox(path, n, entry) for n, entry in enumerate(entries)]
    scores = [_score(path, n, entry) for n, entry in enumerate(entries)]
    return Columns(
        np.array(image, np.int64),
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(scores, np.float64),
        np.array([labels[c] for c in categories], np.int64),
    )


# ---------------------------------------------------------------------- images


class ImageIds:
    """Which image of a split an `image_id` means: it may be the data's own id, or name the image's file.

    A whole number names a file by a name that is this number, leading zeros or not: other frameworks write
    int(stem). Where the data has ids of its own (COCO), a whole number is such an id, and a text may be one.
    """

    def __init__(self, split: Split) -> None:
        self.split = split
        self.by_id = {int(r.image_id): [row] for row, r in enumerate(split.records)}

    @cached_property
    def by_name(self) -> Mapping[str, list[int]]:
        """Rows of the images that a text names, with the file's ending or without."""
        rows: dict[str, list[int]] = {}
        for row, record in enumerate(self.split.records):
            for name in {record.file.name, record.file.stem} if record.file else set():
                rows.setdefault(name, []).append(row)
        return rows

    @cached_property
    def by_number(self) -> Mapping[int, list[int]]:
        """Rows of the images whose file's name is this number."""
        rows: dict[int, list[int]] = {}
        for row, record in enumerate(self.split.records):
            stem = record.file.stem if record.file else ""
            # digits alone: whole() also reads a sign, which no framework makes of a name
            found = whole(stem) if stem.isdigit() else None
            if found is not None:
                rows.setdefault(found, []).append(row)
        return rows

    @cached_property
    def ambiguous(self) -> bool:
        """Whether a whole number may mean two images: ids that were only counted, and files named by other numbers."""
        return not self.split.own_ids and any(
            self.by_id.get(n, rows) != rows for n, rows in self.by_number.items()
        )

    def rows(self, path: Path, ids: list[int | str], own: bool) -> list[int]:
        """The row of every entry's `image_id`. own: whole numbers are ids, whatever the files' names. EvaluationError.

        All whole numbers of a file are read in one way, all texts in one: half of them may fit the other by chance.
        """
        first: dict[int | str, int] = {}
        for entry, image_id in enumerate(ids):
            first.setdefault(image_id, entry)
        numbers = {v: n for v, n in first.items() if isinstance(v, int)}
        texts = {v: n for v, n in first.items() if isinstance(v, str)}
        as_ids = {v: self.by_id[v] for v in numbers if v in self.by_id}
        in_text = {v: whole(v) for v in texts} if self.split.own_ids else {}
        text_as_ids = {v: self.by_id[n] for v, n in in_text.items() if n in self.by_id}
        # COCO's own format: a whole number is an id there, even where it is some file's name too
        found = self._choose(
            path, numbers, as_ids, {} if own else self.by_number, own or self.split.own_ids
        ) | self._choose(path, texts, text_as_ids, self.by_name, False)
        return [found[image_id] for image_id in ids]

    def _choose(
        self,
        path: Path,
        first: Mapping[Any, int],
        ids: Mapping[Any, list[int]],
        names: Mapping[Any, list[int]],
        ids_first: bool,
    ) -> dict[Any, int]:
        """Row of every value, all read as ids or all as names. first: the entry in which each value is met first."""
        by_ids, by_names = (all(v in reading for v in first) for reading in (ids, names))
        for value, entry in first.items():
            if not (by_ids or by_names) and value not in (ids if len(ids) >= len(names) else names):
                raise self._unknown(path, entry, value)
            if by_ids and by_names and not ids_first and ids[value] != names[value]:
                raise self._two_readings(path, entry, value, ids[value][0], names[value])
        chosen = ids if by_ids else names
        for value, entry in first.items():
            if len(chosen[value]) > 1:
                rule = f"image_id {value!r} names {len(chosen[value])} images; write numeric ids"
                raise _entry(path, entry, rule)
        return {value: chosen[value][0] for value in first}

    def _unknown(self, path: Path, entry: int, value: Any) -> EvaluationError:
        some = _some(sorted(self.by_id))
        return _entry(
            path,
            entry,
            f"image_id must be one of split {self.split.name!r} ({len(self.by_id)} images: {some}) "
            f"or the name of an image file in it, got {value!r}; check --split and --data",
        )

    def _two_readings(
        self, path: Path, entry: int, value: Any, by_id: int, by_name: list[int]
    ) -> EvaluationError:
        files = [record.file.name for record in self.split.records if record.file]
        kind = "the id" if self.split.own_ids else "the number"
        return _entry(
            path,
            entry,
            f"image_id {value!r} may be {kind} of {files[by_id]} or the name of {files[by_name[0]]}, and all the "
            f"others fit both readings too; write {'ids as numbers' if self.split.own_ids else 'file names'}, such as "
            f"{self.split.records[by_name[0]].image_id if self.split.own_ids else files[by_name[0]]!r}",
        )


# ---------------------------------------------------------------------- entries


def _entries(path: Path) -> list[dict[str, Any]]:
    """The file's entries, each with its four keys. A whole number as image_id is an int: 3.0 is 3."""
    content = read_json(path, EvaluationError)
    if not isinstance(content, list):
        raise EvaluationError(
            f"{path} must hold a list of detections (COCO's results format), got {_kind(content)}; "
            "a COCO annotation file is not a results file"
        )
    for n, entry in enumerate(content):
        if not isinstance(entry, dict):
            raise _entry(
                path, n, f"must be an object with image_id, category_id, bbox, score, got {_kind(entry)}"
            )
        missing = [k for k in ("image_id", "category_id", "bbox", "score") if k not in entry]
        if missing:
            raise _entry(
                path, n, f"must have image_id, category_id, bbox and score, {', '.join(missing)} missing"
            )
        if isinstance(entry["image_id"], str):
            continue
        entry["image_id"], written = whole(entry["image_id"]), entry["image_id"]
        if entry["image_id"] is None:
            raise _entry(path, n, f"image_id must be an integer or a file name, got {_short(written)}")
    return content


def _categories(path: Path, entries: list[dict[str, Any]], split: Split) -> list[int]:
    """Category ids of the entries. One unknown id condemns the file: those that do fit may mean other classes."""
    known = set(split.category_ids)
    found: list[int] = []
    for n, entry in enumerate(entries):
        category = whole(entry["category_id"])
        if category is None:
            raise _entry(path, n, f"category_id must be an integer, got {_short(entry['category_id'])}")
        found.append(category)
    seen = set(found)
    if seen <= known:
        return found
    first = next(n for n, category in enumerate(found) if category not in known)
    named = [f"{c} {n}" for c, n in zip(split.category_ids, split.classes, strict=True)]
    zero_based = min(seen) == 0 and max(seen) < len(split.classes)
    hint = (
        "the file's ids look like 0-based labels; they are never shifted silently, so write the data's ids"
        if zero_based
        else "the file seems to be written for other data"
    )
    raise _entry(
        path,
        first,
        f"category_id must be one of the data's ({_some(named)}), got {found[first]} "
        f"(the file has {_some(sorted(seen))}); {hint}",
    )


def _bbox(path: Path, n: int, entry: dict[str, Any]) -> list[float]:
    box = entry["bbox"]
    sides = [_finite(v) for v in box] if isinstance(box, list) and len(box) == 4 else [None]
    found = [v for v in sides if v is not None]
    if len(found) < 4:
        raise _entry(path, n, f"bbox must be four finite numbers x, y, width, height, got {_short(box)}")
    if found[2] < 0 or found[3] < 0:
        raise _entry(
            path, n, f"bbox's width and height must not be negative, got {box}; is it x1, y1, x2, y2?"
        )
    return found


def _score(path: Path, n: int, entry: dict[str, Any]) -> float:
    found = _finite(entry["score"])
    if found is None:
        raise _entry(path, n, f"score must be a finite number, got {_short(entry['score'])}")
    return found


def _finite(value: Any) -> float | None:
    """A number whose sums with others are finite too; None for anything else."""
    found = number(value)
    return None if found is None or abs(found) > LARGEST else found


# ---------------------------------------------------------------------- doubts


def doubt(columns: Columns, split: Split) -> str | None:
    """A sentence where the boxes fit another convention than x, y, width, height in pixels, which would score near 0."""
    boxes = columns.boxes
    if not len(boxes):
        return None
    if boxes.max() <= 1:
        return (
            "every coordinate of these boxes is at most 1, so they seem to be fractions of the image; "
            "bbox is x, y, width, height in pixels of the original image"
        )
    sizes = np.array([(r.width, r.height) for r in split.records], np.float64)[columns.image]
    low, high = boxes[:, :2], boxes[:, 2:]
    # a pixel of slack: detectors round, and not all clip
    leaves = (low + high > sizes + 1).any(1).mean()
    corners = ((high > low) & (high <= sizes + 1)).all(1).mean()
    if corners < FITTING or leaves < LEAVING:
        return None
    return (
        f"{leaves:.0%} of the boxes leave their image as x, y, width, height, but fit as x1, y1, x2, y2; "
        "bbox is x, y, width, height, so write x2 - x1 and y2 - y1"
    )


def _entry(path: Path, n: int, rule: str) -> EvaluationError:
    return EvaluationError(f"{path}, entry {n}: {rule}")


def _some(values: Iterable[Any]) -> str:
    listed = [str(v) for v in values]
    return ", ".join(listed[:SHOWN]) + (", ..." if len(listed) > SHOWN else "")


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
