"""Detections of a split as flat arrays."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detsearch_cli.data.types import Split
from detsearch_cli.engine.proposals import ProposalRecall
from detsearch_cli.engine.results import Columns, ImageIds, read_results
from detsearch_cli.errors import EvaluationError
from detsearch_cli.files import write_text


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
    def of_columns(columns: Columns) -> DetectionTable:
        """What a results file holds."""
        low, sides = columns.boxes[:, :2], columns.boxes[:, 2:]
        boxes = np.concatenate([low, low + sides], axis=1)
        return DetectionTable(columns.image, boxes, columns.scores, columns.labels)

    @staticmethod
    def load(path: Path, split: Split) -> DetectionTable:
        """Read the detections that `save` has written of this split. Raises EvaluationError naming file and entry.

        Those of other programs: `results.read_results`, which finds out what their ids mean.
        """
        return DetectionTable.of_columns(read_results(path, split, own=True))

    def to_coco(self, split: Split) -> list[dict[str, Any]]:
        """COCO's results with the ids of `split`: image_id, category_id, bbox (xywh px), score."""
        return self._entries(split, [int(record.image_id) for record in split.records])

    def _entries(self, split: Split, image_ids: Sequence[int | str]) -> list[dict[str, Any]]:
        self.check(split)
        ids = [image_ids[i] for i in self.image.tolist()]
        categories = [int(split.category_ids[i]) for i in self.labels.tolist()]
        xywh = np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1).tolist()
        columns = zip(ids, categories, xywh, self.scores.tolist(), strict=True)
        return [{"image_id": i, "category_id": c, "bbox": b, "score": s} for i, c, b, s in columns]

    def save(self, path: Path, split: Split) -> None:
        """Write COCO's results file, atomically; EvaluationError or StorageError.

        With the ids of `split`, or with the names of its files where these are other numbers than the ids.
        """
        ids: list[int | str] = [int(record.image_id) for record in split.records]
        if ImageIds(split).ambiguous:
            ids = [
                record.file.name if record.file else i for i, record in zip(ids, split.records, strict=True)
            ]
        # replaces what callers name: a run folder's own detections, or a file that they have claimed
        write_text(path, "[" + ",\n".join(map(json.dumps, self._entries(split, ids))) + "]\n")


def _all_in_range(name: str, values: np.ndarray, size: int, rule: str) -> None:
    bad = np.flatnonzero((values < 0) | (values >= size))
    if len(bad):
        raise EvaluationError(
            f"every {name} must be in [0, {size}): {rule}, got {values[bad[0]]} at detection {bad[0]}"
        )
