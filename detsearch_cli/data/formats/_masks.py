"""Bounding boxes of COCO's segmentations: polygons, and run lengths (RLE) as lists or as text."""

from __future__ import annotations

import re
from typing import Any

from detsearch_cli import reading

_COUNTS = re.compile(r"(?:[P-o]{0,5}[0-O])+")
"""Whole numbers in COCO's text form: characters P to o are continued, 0 to O end a number.

Six characters are 30 bits; pycocotools shifts longer ones out of a C int."""
_LONGEST_SIDE = 2**15
"""Of a mask, in px: area and run lengths are 32-bit numbers in pycocotools."""


def bounds(segmentation: Any) -> tuple[float, float, float, float] | None:
    """xyxy px of a segmentation; None where it is empty or none that COCO knows."""
    if isinstance(segmentation, dict):
        return _of_runs(segmentation)
    if isinstance(segmentation, list):
        return _of_polygons(segmentation)
    return None


def _of_polygons(polygons: list[Any]) -> tuple[float, float, float, float] | None:
    """Of one or several lists x1 y1 x2 y2 ...; a flat list is one polygon."""
    xs: list[float] = []
    ys: list[float] = []
    for polygon in polygons if any(isinstance(p, list) for p in polygons) else [polygons]:
        numbers = [reading.number(v) for v in polygon] if isinstance(polygon, list) else []
        points = [v for v in numbers if v is not None]
        if len(points) < 6 or len(points) % 2 or len(points) < len(numbers):
            return None
        xs += points[0::2]
        ys += points[1::2]
    return (min(xs), min(ys), max(xs), max(ys)) if xs else None


def _of_runs(runs: dict[Any, Any]) -> tuple[float, float, float, float] | None:
    from pycocotools import mask

    size, counts = runs.get("size"), runs.get("counts")
    if not isinstance(size, list) or len(size) != 2:
        return None
    height, width = (reading.whole(v) or 0 for v in size)
    if not (0 < height < _LONGEST_SIDE and 0 < width < _LONGEST_SIDE):
        return None
    # pycocotools is C that trusts its input: text that ends inside a number is read past its end
    if isinstance(counts, str) and _COUNTS.fullmatch(counts):
        encoded = {"size": [height, width], "counts": counts.encode()}
    elif isinstance(counts, list) and all(type(c) is int and c >= 0 for c in counts):
        if sum(counts) != height * width:
            return None
        encoded = mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    else:
        return None
    x, y, w, h = mask.toBbox(encoded).tolist()
    inside = x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= width and y + h <= height
    return (x, y, x + w, y + h) if inside else None
