"""Counts what is in a split: classes, box sizes, aspects, boxes an image, and every defect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from detsearch_cli.data import checks, leaks
from detsearch_cli.data.types import Defect, Split

# COCO's limits between small, medium and large objects, in px^2.
SMALL, LARGE = 32.0**2, 96.0**2


@dataclass(frozen=True)
class Bin:
    """`count` values v with low <= v < high."""

    low: float
    high: float
    count: int


@dataclass(frozen=True)
class ClassCount:
    """One class: images that show it, its boxes, their median size sqrt(w h) in px (None without boxes)."""

    name: str
    images: int
    boxes: int
    median_size: float | None


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found. Crowd regions are in `crowd` and in no other number; difficult boxes are boxes.

    sizes: octaves of sqrt(w h) in px. coco_sizes: small, medium, large by `Record.area`. aspects: octaves of
    w / h, centred on 1. boxes_per_image: bins that double. widths, heights: (least, median, most) px.
    """

    split: str
    images: int
    empty_images: int
    boxes: int
    crowd: int
    difficult: int
    widths: tuple[int, int, int]
    heights: tuple[int, int, int]
    classes: tuple[ClassCount, ...]
    sizes: tuple[Bin, ...]
    coco_sizes: dict[str, int]
    aspects: tuple[Bin, ...]
    boxes_per_image: tuple[Bin, ...]
    defect_counts: dict[str, int]
    defects: tuple[Defect, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain data that json.dumps takes."""
        return asdict(self)


def inspect(split: Split, decode: bool = True, before: Sequence[Split] = ()) -> Inspection:
    """Count everything in `split`. decode: decode every image too, which finds truncated files (slow).

    before: other splits of the set; images that are in one of them as well are reported.
    Never raises for defective data: that is what it reports.
    """
    records = split.records
    boxes = _joined([r.boxes for r in records]).reshape(-1, 4).astype(np.float64)
    labels = _joined([r.labels for r in records]).astype(np.int64)
    crowd = _joined([r.crowd for r in records]).astype(bool)
    difficult = _joined([r.difficult for r in records]).astype(bool)
    area = _joined([r.area for r in records]).astype(np.float64)
    owner = np.repeat(np.arange(len(records)), [len(r.boxes) for r in records])
    real = ~crowd
    boxes, labels, owner, area = boxes[real], labels[real], owner[real], area[real]
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    size = np.sqrt(width * height)
    per_image = np.bincount(owner, minlength=len(records))
    defects = split.defects + (tuple(checks.decode_all(split)) if decode else ())
    defects += tuple(leaks.found_twice(split, before))
    return Inspection(
        split=split.name,
        images=len(records),
        empty_images=int((per_image == 0).sum()),
        boxes=len(boxes),
        crowd=int(crowd.sum()),
        difficult=int((difficult & real).sum()),
        widths=_range([r.width for r in records]),
        heights=_range([r.height for r in records]),
        classes=_classes(split.classes, labels, owner, size),
        sizes=_octaves(size, 0.0),
        coco_sizes={
            "small": int((area < SMALL).sum()),
            "medium": int(((area >= SMALL) & (area < LARGE)).sum()),
            "large": int((area >= LARGE).sum()),
        },
        aspects=_octaves(width / height, 0.5),
        boxes_per_image=_doubling(per_image),
        defect_counts=dict(Counter(d.kind for d in defects).most_common()),
        defects=defects,
    )


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0)


def _range(values: list[int]) -> tuple[int, int, int]:
    return (min(values), int(np.median(values)), max(values)) if values else (0, 0, 0)


def _classes(
    names: tuple[str, ...], labels: np.ndarray, owner: np.ndarray, size: np.ndarray
) -> tuple[ClassCount, ...]:
    rows = []
    for label, name in enumerate(names):
        of_class = labels == label
        boxes = int(of_class.sum())
        median = float(np.median(size[of_class])) if boxes else None
        rows.append(ClassCount(name, len(np.unique(owner[of_class])), boxes, median))
    return tuple(rows)


def _octaves(values: np.ndarray, shift: float) -> tuple[Bin, ...]:
    """Histogram with edges 2^(k - shift), from the least to the largest value."""
    if len(values) == 0:
        return ()
    octave = np.floor(np.log2(values) + shift).astype(int)
    counts = Counter(octave.tolist())
    return tuple(
        Bin(float(2.0 ** (k - shift)), float(2.0 ** (k + 1 - shift)), counts[k])
        for k in range(min(counts), max(counts) + 1)
    )


def _doubling(counts: np.ndarray) -> tuple[Bin, ...]:
    """Histogram of counts with bins 0, 1, 2, 3-4, 5-8, 9-16, ..."""
    if len(counts) == 0:
        return ()
    edges = [0, 1, 2]
    while edges[-1] <= counts.max():
        edges.append(2 ** (len(edges) - 2) + 1)
    return tuple(
        Bin(float(low), float(high), int(((counts >= low) & (counts < high)).sum()))
        for low, high in pairwise(edges)
    )
