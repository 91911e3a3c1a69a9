"""Anchor shapes as tables for a person and as plain data for a program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from detsearch_cli.methods.anchors.fit import SizeBin, served
from detsearch_cli.methods.anchors.inspect import ShapeFit, ShapeHistory, spread
from detsearch_cli.report.page import Table

if TYPE_CHECKING:
    from detsearch_cli.recipe import Recipe

LISTED = 12
"""Shapes in one line of a table."""
Rows = tuple[Sequence[SizeBin], Sequence[SizeBin]]
"""The fit by size, before and after."""


def sides(recipe: Recipe) -> str:
    """The image size as `--image-size` takes it: `416` or `800,1333`."""
    short, long = recipe.augment.image_size
    return f"{short}" if short == long else f"{short},{long}"


def points(fraction: float) -> str:
    """A fraction as the field prints it: 100 x, one decimal; a dash where undefined."""
    return "-" if np.isnan(fraction) else f"{100 * fraction:.1f}"


def fitted(recipe: Recipe, shapes: np.ndarray, strides: Sequence[int], sizes: np.ndarray) -> Table:
    """The shapes that were fitted, and the part of the boxes that each serves. shapes (L, K, 2), sizes (N, 2) px."""
    share = served(sizes, shapes.reshape(-1, 2)).reshape(shapes.shape[:2])
    rows = [
        [str(stride), f"{w:.1f}", f"{h:.1f}", f"{100 * part:.1f}"]
        for stride, level, parts in zip(strides, shapes, share, strict=True)
        for (w, h), part in zip(level, parts, strict=True)
    ]
    title = f"{len(rows)} shapes for {len(sizes)} boxes at image size {sides(recipe)}"
    return Table(title, "", ["stride", "width px", "height px", "serves %"], rows, heat=False)


def by_size(rows: Rows) -> Table:
    """Mean best IoU and best possible recall by size of the boxes, before and after."""
    cells = [
        [_range(now), str(now.boxes), *map(points, (old.mean_iou, now.mean_iou, old.recall, now.recall))]
        for old, now in zip(*rows, strict=True)
        if now.boxes
    ]
    title = "mean best IoU, and best possible recall at IoU .5, by size sqrt(w h)"
    columns = ["px", "boxes", "IoU before", "IoU now", "recall before", "recall now"]
    return Table(title, "", columns, cells, heat=False)


def below_a_stride(shapes: np.ndarray, strides: Sequence[int]) -> list[str]:
    """A note where a side is below the stride of its level; none otherwise. shapes (L, K, 2) px."""
    below = [stride for stride, level in zip(strides, shapes, strict=True) if level.min() < stride]
    if not below:
        return []
    levels = ", ".join(map(str, below))
    return [
        f"the least side, {shapes.min():.1f} px, is below the stride of its level ({levels} px): objects that small "
        "may share a cell; larger images or a finer level help, --min-strides 1 forbids such shapes"
    ]


def _range(row: SizeBin) -> str:
    if row.low == 0 and np.isinf(row.high):
        return "all"
    return f"{row.low:.0f} and more" if np.isinf(row.high) else f"{row.low:.0f} to {row.high:.0f}"


def fit_content(
    shapes: np.ndarray, strides: Sequence[int], rows: Rows, restarts: Sequence[float] | None
) -> dict[str, Any]:
    """A fit as plain data. restarts: mean best IoU of every restart, None without them."""
    *parts, whole = [
        {
            "low": now.low,
            "high": None if np.isinf(now.high) else now.high,
            "boxes": now.boxes,
            **{
                name: {"mean_iou": row.mean_iou, "recall": row.recall}
                for name, row in (("before", before), ("now", now))
            },
        }
        for before, now in zip(*rows, strict=True)
    ]
    return {
        "strides": list(strides),
        "shapes": shapes.tolist(),
        "mean_iou": rows[1][-1].mean_iou,
        "restarts": None if restarts is None else list(restarts),
        "all": whole,
        "by_size": parts,
    }


def learned(histories: Sequence[ShapeHistory], first_level: int) -> Table:
    """Initial shapes, and those that every training learned, level by level."""
    several = histories[0].learned.shape[0] > 1
    rows = []
    for name, shapes in [("initial", histories[0].initial), *((h.name, h.learned) for h in histories)]:
        for number, level in enumerate(shapes):
            rows.append([name, *([f"P{first_level + number}"] if several else []), listed(level)])
    columns = ["", *(["level"] if several else []), "by area"]
    return Table("shapes, w x h px", "", columns, rows, heat=False)


def listed(shapes: np.ndarray) -> str:
    """Shapes (K, 2) px in one line, smallest area first."""
    by_area = shapes[np.argsort(shapes.prod(1), kind="stable")]
    told = "  ".join(f"{w:.1f} x {h:.1f}" for w, h in by_area[:LISTED])
    return told + (f"  and {len(by_area) - LISTED} more" if len(by_area) > LISTED else "")


def learned_content(histories: Sequence[ShapeHistory]) -> dict[str, Any]:
    """Learned shapes of every training, and how far apart the trainings ended; None for a single one."""
    several = len(histories) > 1
    return {
        "learned": {h.name: h.learned.tolist() for h in histories},
        "spread": spread([h.learned for h in histories]) if several else None,
    }


def fits(sets: Sequence[ShapeFit], boxes: int, split: str) -> Table:
    """Sets of shapes against the boxes of a split, one line a set."""
    rows = [
        [
            fit.name,
            points(fit.mean_iou),
            points(fit.recall),
            str(fit.idle),
            " ".join(f"{100 * share:.0f}" for share in fit.shares.reshape(-1)),
        ]
        for fit in sets
    ]
    columns = ["", "mean best IoU", "recall at .5", "idle (< 1%)", "% of the boxes that each serves"]
    return Table(f"shapes against {boxes} boxes of {split}", "", columns, rows, heat=False)


def fits_content(sets: Sequence[ShapeFit]) -> dict[str, Any]:
    """Every set of shapes as plain data."""
    return {
        "sets": [
            {
                "name": fit.name,
                "shapes": fit.shapes.tolist(),
                "shares": fit.shares.tolist(),
                "mean_iou": fit.mean_iou,
                "recall": fit.recall,
                "idle": fit.idle,
            }
            for fit in sets
        ]
    }
