"""The confusion matrix of a detector: which class is taken for which, what is missed, what is invented."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from detsearch_cli.data.types import Record, Split
from detsearch_cli.engine.detections import DetectionTable
from detsearch_cli.engine.truth import boxes_as_written
from detsearch_cli.errors import EvaluationError


def confusion_matrix(
    split: Split, table: DetectionTable, *, min_iou: float = 0.5, min_score: float = 0.25
) -> np.ndarray:
    """Counts (C+1, C+1) int64: row = true class, column = predicted class, the last of both = background.

    In every image, objects and detections of at least `min_score` are paired one to one whatever their
    class, the largest IoU first (the surer detection first among equals), down to `min_iou`. A pair counts
    at [true class, predicted class], an unpaired object at [class, background], an unpaired detection at
    [background, class]. Difficult objects and crowds count for nothing, and neither does an unpaired
    detection of any class that lies on one (IoU with a difficult object, share of the detection inside a
    crowd, at least `min_iou`). Raises EvaluationError for an IoU outside of (0, 1] and for detections that
    do not fit the split.
    """
    if not 0 < min_iou <= 1:
        raise EvaluationError(f"the IoU of a confusion matrix must be in (0, 1], got {min_iou}")
    table.check(split)
    background = len(split.classes)
    counts = np.zeros((background + 1, background + 1), np.int64)
    for record, found in _by_image(split, table.select(table.scores >= min_score)):
        truth, predicted = _pair(record, found, min_iou, background)
        # not counts[...] += 1, which counts a pair that occurs twice once
        np.add.at(counts, (truth, predicted), 1)
    return counts


def _by_image(split: Split, table: DetectionTable) -> Iterator[tuple[Record, DetectionTable]]:
    """Every image with its detections, best first."""
    order = np.lexsort((-table.scores, table.image))
    bounds = np.searchsorted(table.image[order], np.arange(len(split) + 1))
    for row, record in enumerate(split.records):
        yield record, table.select(order[bounds[row] : bounds[row + 1]])


def _pair(
    record: Record, found: DetectionTable, min_iou: float, background: int
) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted class of everything that counts in one image: two (P,) int64."""
    ignored = ~record.counted
    objects = boxes_as_written(record)
    iou = _overlaps(found.boxes, objects, np.zeros(len(record.labels), bool))
    open_pairs = np.argwhere((iou >= min_iou) & ~ignored)
    partner = np.full(len(found), -1)
    taken = np.zeros(len(record.labels), bool)
    # stable: of equal overlaps the surer detection comes first, because `found` is sorted
    for detection, gt in open_pairs[np.argsort(-iou[tuple(open_pairs.T)], kind="stable")]:
        if partner[detection] < 0 and not taken[gt]:
            partner[detection], taken[gt] = gt, True
    excused = _overlaps(found.boxes, objects[ignored], record.crowd[ignored])
    # a detection that found an object counts even where it also lies on an ignored one
    counts = (partner >= 0) | ~(excused >= min_iou).any(axis=1)
    missed = record.labels[~ignored & ~taken]
    truth = np.append(record.labels, background)[partner[counts]]  # partner -1 reads the appended background
    predicted = found.labels[counts]
    return np.concatenate([truth, missed]), np.concatenate([predicted, np.full(len(missed), background)])


def _overlaps(boxes: np.ndarray, objects: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU of every pair, and intersection over detection for crowds. (D, 4), (G, 4), (G,) -> (D, G)."""
    corner_min = np.maximum(boxes[:, None, :2], objects[None, :, :2])
    corner_max = np.minimum(boxes[:, None, 2:], objects[None, :, 2:])
    inter = np.prod(np.maximum(corner_max - corner_min, 0), axis=2)
    areas, object_areas = (np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (boxes, objects))
    whole = np.where(crowd[None], areas[:, None], areas[:, None] + object_areas[None] - inter)
    return np.divide(inter, whole, out=np.zeros_like(inter), where=whole > 0)
