"""How many objects a first stage proposes: recall of its best 50, 100 and 1000 boxes an image.

By COCO's rules without classes: the best proposal first, each takes the object it overlaps most of those that
are left, an object is taken once; crowd regions and difficult objects are no objects here. Counted image by
image, so that the proposals themselves need not be kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from detsearch_cli.data.types import Record
from detsearch_cli.engine.truth import boxes_as_written

COUNTS = (50, 100, 1000)
THRESHOLDS = np.linspace(0.5, 0.95, 10)


@dataclass(frozen=True)
class ProposalRecall:
    """found (3, 10) int64: objects found by the best COUNTS proposals at THRESHOLDS; objects: of how many."""

    found: np.ndarray
    objects: int

    @staticmethod
    def of(record: Record, proposals: np.ndarray) -> ProposalRecall:
        """One image. proposals (P, 4) float64 xyxy px in the original image, best first."""
        gt = boxes_as_written(record)[record.counted]
        rank = _taken_by(_pairwise_iou(proposals[: max(COUNTS)], gt))
        return ProposalRecall(np.stack([(rank < count).sum(1) for count in COUNTS]), len(gt))

    @staticmethod
    def total(parts: Iterable[ProposalRecall]) -> ProposalRecall | None:
        """All parts together; None where there is none."""
        listed = list(parts)
        if not listed:
            return None
        return ProposalRecall(sum(p.found for p in listed), sum(p.objects for p in listed))  # type: ignore[arg-type]

    def to_json(self) -> dict[str, Any]:
        """Fractions: AR50, AR100, AR1000 are means over IoU .5:.95, recall50 and so on are at IoU .5."""
        recall = self.found / self.objects if self.objects else np.full(self.found.shape, np.nan)
        means = {f"AR{count}": float(row.mean()) for count, row in zip(COUNTS, recall, strict=True)}
        return means | {f"recall{count}": float(row[0]) for count, row in zip(COUNTS, recall, strict=True)}


def _taken_by(overlap: np.ndarray) -> np.ndarray:
    """Rank of the proposal that takes each object at each threshold. overlap (P, G) -> (10, G); max(COUNTS): none."""
    num_gt, nobody = overlap.shape[1], max(COUNTS)
    rank = np.full((len(THRESHOLDS), num_gt), nobody)
    if not num_gt:
        return rank
    thresholds, rows = THRESHOLDS[:, None], np.arange(len(THRESHOLDS))
    for proposal in np.flatnonzero((overlap >= THRESHOLDS[0]).any(1)).tolist():
        left = (rank == nobody) & (overlap[proposal] >= thresholds)
        wanted = np.where(left, overlap[proposal], -1.0)
        best = num_gt - 1 - wanted[:, ::-1].argmax(1)  # of equal overlaps the last, as pycocotools
        takes = left[rows, best]
        rank[rows[takes], best[takes]] = proposal
    return rank


def _pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(P, 4), (G, 4) -> (P, G)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clip(min=0).prod(2)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).clip(min=0).prod(1) for x in (a, b))
    union = area_a[:, None] + area_b[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
