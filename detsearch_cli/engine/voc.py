"""Average precision by Pascal VOC's rules, VOC2007's 11 points and the area under the curve since 2010; and the score
from which on a detector is best used.

Each detection claims the object of its class that it overlaps most. It is correct if that overlap reaches
`min_iou` and no surer detection claimed the object before; a claim on a `difficult` object (or a crowd)
counts for nothing; everything else is wrong. Unlike COCO's rule, a detection never falls back to its second
best object. Source: Everingham et al. 2010, "The Pascal VOC Challenge", section 4.2, and the development kit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detsearch_cli.data.types import Split
from detsearch_cli.engine.detections import DetectionTable
from detsearch_cli.engine.truth import boxes_as_written

PAIRS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Objects:
    """Ground truths of a split. image (G,) rows, boxes (G, 4) float64 xyxy px, labels and ignored (G,)."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray

    @staticmethod
    def of(split: Split) -> Objects:
        """All objects; difficult ones and crowds are those to be ignored."""
        records = split.records
        counts = [len(r.labels) for r in records]
        none = np.zeros(0)
        return Objects(
            np.repeat(np.arange(len(records)), counts),
            np.concatenate([np.zeros((0, 4)), *(boxes_as_written(r) for r in records)]),
            np.concatenate([none, *(r.labels for r in records)]).astype(np.int64),
            np.concatenate([none, *(~r.counted for r in records)]).astype(bool),
        )


def average_precisions(
    split: Split, table: DetectionTable, *, min_iou: float = 0.5, inclusive: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """VOC2007 11-point and all-point AP of every class: two (C,) float64, NaN for a class without objects.

    `inclusive` counts both end pixels (width x2 - x1 + 1), for boxes that are pixel indices, as the
    development kit does. The default is for coordinates between pixels, which is what Record.boxes are.
    Detections of equal score keep the table's order.
    """
    return Claims.of(split, table, min_iou=min_iou, inclusive=inclusive).average_precisions()


@dataclass(frozen=True)
class OperatingPoint:
    """The score from which on detections have the highest F1, and that F1; NaN without an object, or a correct detection."""

    F1: float
    score: float


@dataclass(frozen=True)
class Claims:
    """What each detection, best first, is worth. scores, labels (D,); correct, wrong (D,) bool, neither: ignored; objects
    (C,): of each class."""

    scores: np.ndarray
    labels: np.ndarray
    correct: np.ndarray
    wrong: np.ndarray
    objects: np.ndarray

    @staticmethod
    def of(split: Split, table: DetectionTable, *, min_iou: float = 0.5, inclusive: bool = False) -> Claims:
        """See `average_precisions`."""
        objects = Objects.of(split)
        # stable, so that equal scores keep the table's order
        table = table.select(np.argsort(-table.scores, kind="stable"))
        correct, wrong = outcomes(objects, table, min_iou=min_iou, inclusive=inclusive)
        num_objects = np.bincount(objects.labels[~objects.ignored], minlength=len(split.classes))
        return Claims(table.scores, table.labels, correct, wrong, num_objects)

    def average_precisions(self) -> tuple[np.ndarray, np.ndarray]:
        """VOC2007 11-point and all-point AP: two (C,), NaN for a class without objects."""
        eleven, area = np.full(len(self.objects), np.nan), np.full(len(self.objects), np.nan)
        for label in np.flatnonzero(self.objects):
            rows = self.labels == label
            true_positives = np.cumsum(self.correct[rows])
            recall = true_positives / self.objects[label]
            precision = true_positives / np.maximum(true_positives + np.cumsum(self.wrong[rows]), 1)
            eleven[label] = eleven_point(recall, precision)
            area[label] = all_point(recall, precision)
        return eleven, area

    def operating_point(self, label: int | None = None) -> OperatingPoint:
        """Of one class, or of all with one score. Of equal F1 the highest score."""
        rows = np.ones(len(self.labels), bool) if label is None else self.labels == label
        objects = int(self.objects.sum() if label is None else self.objects[label])
        scores = self.scores[rows]
        right, wrong = np.cumsum(self.correct[rows]), np.cumsum(self.wrong[rows])
        if objects == 0 or len(scores) == 0 or right[-1] == 0:
            return OperatingPoint(np.nan, np.nan)
        # a threshold takes all of one score or none
        ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
        f1 = 2 * right[ends] / (objects + right[ends] + wrong[ends])
        best = int(f1.argmax())
        return OperatingPoint(float(f1[best]), float(scores[ends][best]))


def outcomes(
    objects: Objects, table: DetectionTable, *, min_iou: float, inclusive: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Which detections, best first, are correct and which are wrong: two (D,) bool; neither = ignored."""
    claimed, overlap = best_objects(objects, table, inclusive=inclusive)
    hit = (claimed >= 0) & (overlap >= min_iou)
    ignored = np.zeros(len(table), bool)
    ignored[hit] = objects.ignored[claimed[hit]]
    candidates = np.flatnonzero(hit & ~ignored)
    # np.unique returns the first occurrence: the surest claim on each object
    first = candidates[np.unique(claimed[candidates], return_index=True)[1]]
    correct = np.zeros(len(table), bool)
    correct[first] = True
    return correct, ~correct & ~ignored


def best_objects(
    objects: Objects, table: DetectionTable, *, inclusive: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The object of its image and class that each detection overlaps most: row (D,), -1 if none; IoU (D,)."""
    best, overlap = np.full(len(table), -1, np.int64), np.zeros(len(table))
    if len(objects.labels) == 0 or len(table) == 0:
        return best, overlap
    classes = 1 + max(objects.labels.max(), table.labels.max())
    key = objects.image * classes + objects.labels
    by_key = np.argsort(key, kind="stable")
    wanted = table.image * classes + table.labels
    start, stop = (np.searchsorted(key[by_key], wanted, side) for side in ("left", "right"))
    with_objects = np.flatnonzero(stop > start)
    pairs_before = np.cumsum((stop - start)[with_objects])
    # in pieces: all pairs of a crowded split at once would need gigabytes
    for chunk in np.split(with_objects, _cuts(pairs_before)):
        counts = (stop - start)[chunk]
        first = np.cumsum(counts) - counts
        detection = np.repeat(chunk, counts)
        gt = by_key[np.arange(counts.sum()) - np.repeat(first - start[chunk], counts)]
        iou = _iou(table.boxes[detection], objects.boxes[gt], 1.0 if inclusive else 0.0)
        overlap[chunk] = np.maximum.reduceat(iou, first)
        at_best = np.flatnonzero(iou == overlap[detection])[
            ::-1
        ]  # reversed: the first of equals is written last
        best[detection[at_best]] = gt[at_best]
    return best, overlap


def _cuts(pairs_before: np.ndarray) -> np.ndarray:
    """Indices for `np.split`, such that a piece has about PAIRS_AT_ONCE pairs."""
    if len(pairs_before) == 0:
        return np.zeros(0, np.int64)
    piece = pairs_before // PAIRS_AT_ONCE
    return np.flatnonzero(np.diff(piece)) + 1


def _iou(a: np.ndarray, b: np.ndarray, end_pixel: float) -> np.ndarray:
    """IoU row by row. a, b (P, 4) xyxy px -> (P,) in [0, 1]; 0 for empty boxes."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + end_pixel
    inter = np.prod(np.maximum(sides, 0), axis=1)
    areas = [np.prod(np.maximum(x[:, 2:] - x[:, :2] + end_pixel, 0), axis=1) for x in (a, b)]
    union = areas[0] + areas[1] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def eleven_point(recall: np.ndarray, precision: np.ndarray) -> float:
    """VOC2007: mean over recalls 0, .1, ..., 1 of the best precision at that recall or more. Both (D,)."""
    levels = np.arange(11) / 10
    # 3 of 10 objects must reach the level .3 whatever the last bit of the division says
    reached = recall[None, :] >= levels[:, None] - 1e-12
    return float(np.where(reached, precision[None, :], 0.0).max(axis=1, initial=0.0).mean())


def all_point(recall: np.ndarray, precision: np.ndarray) -> float:
    """VOC2010 and later: area under the precision-recall curve made non-increasing. Both (D,)."""
    if len(recall) == 0:
        return 0.0
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))
