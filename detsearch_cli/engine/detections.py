"""Detections of a split as flat arrays, and COCO's results file: `[{image_id, category_id, bbox, score}]`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detsearch_cli.data.types import Split
from detsearch_cli.engine.proposals import ProposalRecall
from detsearch_cli.errors import EvaluationError
from detsearch_cli.files import write_text

SHOWN = 6  # ids and names listed in an error message before it says "..."


@dataclass(frozen=True)
class DetectionTable:
    """Detections of a split, in any order.

    image (D,) int64 rows of `split.records`; boxes (D, 4) float64 xyxy px in the original image;
    scores (D,) float64, any scale, higher is surer; labels (D,) int64 in [0, C). proposals: what the first stage
    of a detector found of the same images, None where it has one stage or they are not known.
    """

    image: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    proposals: ProposalRecall | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @staticmethod
    def empty() -> DetectionTable:
        """No detections at all."""
        integers = np.zeros(0, np.int64)
        return DetectionTable(integers, np.zeros((0, 4)), np.zeros(0), integers)

    @staticmethod
    def concatenate(tables: Iterable[DetectionTable]) -> DetectionTable:
        """The detections of several tables over the same split, in the given order."""
        parts = [DetectionTable.empty(), *tables]
        return DetectionTable(
            np.concatenate([p.image for p in parts]).astype(np.int64),
            np.concatenate([p.boxes.reshape(-1, 4) for p in parts]).astype(np.float64),
            np.concatenate([p.scores for p in parts]).astype(np.float64),
            np.concatenate([p.labels for p in parts]).astype(np.int64),
            ProposalRecall.total(p.proposals for p in parts if p.proposals is not None),
        )

    def select(self, rows: np.ndarray) -> DetectionTable:
        """The detections at `rows`, (N,) int64 or (D,) bool."""
        # without proposals: they are known of the whole split only
        return DetectionTable(self.image[rows], self.boxes[rows], self.scores[rows], self.labels[rows])

    def check(self, split: Split) -> None:
        """Raises EvaluationError unless all is finite and belongs to images and classes of `split`."""
        # first the lengths: every later check compares rows with rows
        lengths = {len(self.image), len(self.boxes), len(self.scores), len(self.labels)}
        if len(lengths) > 1 or self.boxes.ndim != 2:
            raise EvaluationError(
                f"image, boxes, scores and labels must have one row a detection, got {lengths}"
            )
        if len(self) == 0:
            return
        _all_in_range("image row", self.image, len(split), f"split {split.name!r} has {len(split)} images")
        _all_in_range("label", self.labels, len(split.classes), f"the data has {len(split.classes)} classes")
        # a sum over a box is not finite if one of its numbers is not
        for name, values in (("score", self.scores), ("box", self.boxes.sum(1))):
            bad = np.flatnonzero(~np.isfinite(values))
            if len(bad):
                raise EvaluationError(
                    f"every {name} must be finite, {len(bad)} of {len(self)} are not (first: row {bad[0]}); "
                    "the detector has diverged or its outputs are broken"
                )
        inverted = np.flatnonzero((self.boxes[:, 2:] < self.boxes[:, :2]).any(axis=1))
        if len(inverted):
            first = self.boxes[inverted[0]].tolist()
            raise EvaluationError(f"every box must be x1 <= x2, y1 <= y2, got {first} at row {inverted[0]}")

    @staticmethod
    def load(path: Path, split: Split) -> DetectionTable:
        """Read a COCO results file written by any framework, against the ids of `split`.

        `image_id` is the data's own id, or a string naming the image's file (with or without its ending).
        `category_id` is the data's own (`split.category_ids`). Nothing is guessed, dropped or shifted:
        raises EvaluationError naming the file, the entry and the rule it breaks.
        """
        entries = _read_json(path)
        rows, labels = _ImageIds(split), {c: i for i, c in enumerate(split.category_ids)}
        _refuse_foreign_categories(path, entries, split)
        image, label, boxes, scores = [], [], [], []
        for number, entry in enumerate(entries):
            image.append(rows.find(path, number, entry["image_id"]))
            label.append(labels[entry["category_id"]])
            boxes.append(_bbox(path, number, entry))
            scores.append(_score(path, number, entry))
        xywh = np.array(boxes, np.float64).reshape(-1, 4)
        xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        return DetectionTable(
            np.array(image, np.int64), xyxy, np.array(scores, np.float64), np.array(label, np.int64)
        )

    def to_coco(self, split: Split) -> list[dict[str, Any]]:
        """COCO's results with the ids of `split`: image_id, category_id, bbox (xywh px), score."""
        self.check(split)
        ids = [int(split.records[i].image_id) for i in self.image.tolist()]
        categories = [int(split.category_ids[i]) for i in self.labels.tolist()]
        xywh = np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1).tolist()
        columns = zip(ids, categories, xywh, self.scores.tolist(), strict=True)
        return [{"image_id": i, "category_id": c, "bbox": b, "score": s} for i, c, b, s in columns]

    def save(self, path: Path, split: Split) -> None:
        """Write COCO's results file with the ids of `split`, atomically; EvaluationError or StorageError."""
        # replaces what callers name: a run folder's own detections, or a file that they have claimed
        write_text(path, "[" + ",\n".join(map(json.dumps, self.to_coco(split))) + "]\n")


class _ImageIds:
    """Row of the image an entry means: by the data's id, or by the name of its file."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.by_id = {int(r.image_id): row for row, r in enumerate(split.records)}
        self._by_name: dict[str, list[int]] | None = None

    @property
    def by_name(self) -> Mapping[str, list[int]]:
        if self._by_name is None:  # made when first needed: most files have numeric ids
            self._by_name = {}
            for row, record in enumerate(self.split.records):
                for name in {record.file.name, record.file.stem} if record.file else set():
                    self._by_name.setdefault(name, []).append(row)
        return self._by_name

    def find(self, path: Path, number: int, image_id: Any) -> int:
        if isinstance(image_id, int) and image_id in self.by_id:
            return self.by_id[image_id]
        if isinstance(image_id, str):
            rows = self.by_name.get(image_id, [])
            if len(rows) == 1:
                return rows[0]
            if len(rows) > 1:
                raise _entry(
                    path, number, f"image_id {image_id!r} names {len(rows)} images; write numeric ids"
                )
        some = _some(sorted(self.by_id))
        raise _entry(
            path,
            number,
            f"image_id must be one of split {self.split.name!r} ({len(self.by_id)} images: {some}) "
            f"or the name of an image file in it, got {image_id!r}; check --split and --data",
        )


def _read_json(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvaluationError(f"cannot read detections from {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise EvaluationError(
            f"{path} is not valid JSON ({error}); was it cut off while being written?"
        ) from error
    if not isinstance(content, list):
        raise EvaluationError(
            f"{path} must hold a list of detections (COCO's results format), got {_kind(content)}; "
            "a COCO annotation file is not a results file"
        )
    for number, entry in enumerate(content):
        if not isinstance(entry, dict):
            raise _entry(
                path, number, f"must be an object with image_id, category_id, bbox, score, got {_kind(entry)}"
            )
        missing = [k for k in ("image_id", "category_id", "bbox", "score") if k not in entry]
        if missing:
            raise _entry(
                path, number, f"must have image_id, category_id, bbox and score, {', '.join(missing)} missing"
            )
        # a bool is an int in Python, and `true` no image
        if isinstance(entry["image_id"], bool) or not isinstance(entry["image_id"], int | str):
            raise _entry(
                path, number, f"image_id must be an integer or a file name, got {entry['image_id']!r}"
            )
    return content


def _refuse_foreign_categories(path: Path, entries: list[dict[str, Any]], split: Split) -> None:
    """One unknown category id condemns the file: the ids that do fit may mean other classes."""
    known, seen = set(split.category_ids), set()
    first: tuple[int, Any] | None = None
    for number, entry in enumerate(entries):
        category = entry["category_id"]
        if isinstance(category, bool) or not isinstance(category, int):
            raise _entry(path, number, f"category_id must be an integer, got {category!r}")
        seen.add(category)
        if first is None and category not in known:
            first = (number, category)
    if first is None:
        return
    named = [f"{c} {n}" for c, n in zip(split.category_ids, split.classes, strict=True)]
    zero_based = min(seen) == 0 and max(seen) < len(split.classes)
    hint = (
        "the file's ids look like 0-based labels; they are never shifted silently, so write the data's ids"
        if zero_based
        else "the file seems to be written for other data"
    )
    raise _entry(
        path,
        first[0],
        f"category_id must be one of the data's ({_some(named)}), got {first[1]} "
        f"(the file has {_some(sorted(seen))}); {hint}",
    )


def _bbox(path: Path, number: int, entry: dict[str, Any]) -> list[float]:
    box = entry["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(_finite(v) for v in box):
        raise _entry(path, number, f"bbox must be four finite numbers x, y, width, height, got {_short(box)}")
    if box[2] < 0 or box[3] < 0:
        raise _entry(
            path, number, f"bbox's width and height must not be negative, got {box}; is it x1, y1, x2, y2?"
        )
    return box


def _score(path: Path, number: int, entry: dict[str, Any]) -> float:
    if not _finite(entry["score"]):
        raise _entry(path, number, f"score must be a finite number, got {_short(entry['score'])}")
    return float(entry["score"])


def _finite(value: Any) -> bool:
    # isfinite overflows on integers beyond float64; such a number is no coordinate and no score
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300 and math.isfinite(value)


def _all_in_range(name: str, values: np.ndarray, size: int, rule: str) -> None:
    bad = np.flatnonzero((values < 0) | (values >= size))
    if len(bad):
        raise EvaluationError(
            f"every {name} must be in [0, {size}): {rule}, got {values[bad[0]]} at detection {bad[0]}"
        )


def _entry(path: Path, number: int, rule: str) -> EvaluationError:
    return EvaluationError(f"{path}, entry {number}: {rule}")


def _some(values: Iterable[Any]) -> str:
    listed = [str(v) for v in values]
    return ", ".join(listed[:SHOWN]) + (", ..." if len(listed) > SHOWN else "")


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
