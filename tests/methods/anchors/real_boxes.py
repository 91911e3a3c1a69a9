"""Widths and heights of real boxes, at the size a detector would train at."""

from __future__ import annotations

from pathlib import Path

import numpy as np

COCO_LONG, VOC_LONG = 640, 500
"""px. The long side of nearly every image of the two sets; the lists do not tell the size of each."""


def coco_val(shared: Path, side: int = 544) -> np.ndarray:
    """(36780, 2) px of COCO val2017, the long side of an image `side` px."""
    rows = (shared / "boxes-only" / "coco_val2017.txt").read_text().splitlines()
    boxes = [box.split(",")[:4] for row in rows for box in row.split()[1:]]
    return _sides(np.array(boxes, dtype=np.float64)) * side / COCO_LONG


def voc07(shared: Path, side: int = 416) -> np.ndarray:
    """(12608, 2) px of VOC2007 trainval, the long side of an image `side` px."""
    rows = (shared / "boxes-only" / "voc2007.txt").read_text().splitlines()
    boxes = [np.array(row.split()[1:], dtype=np.float64).reshape(-1, 5)[:, :4] for row in rows]
    return _sides(np.concatenate(boxes)) * side / VOC_LONG


def _sides(boxes: np.ndarray) -> np.ndarray:
    sides = boxes[:, 2:] - boxes[:, :2]
    return sides[(sides > 0).all(1)]
