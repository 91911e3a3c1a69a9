"""Anchor shapes from boxes alone, without training: k-means with 1 - IoU as distance, and how well shapes fit.

Everything is widths and heights in pixels as the network sees them; boxes and anchors share one centre.
Source: Redmon and Farhadi 2017 (YOLO9000), section 2, "Dimension Clusters".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.optimize import minimize

from detsearch_cli.data.transforms import Rule
from detsearch_cli.data.types import Split
from detsearch_cli.errors import DataError
from detsearch_cli.recipe import Augment

RESTARTS = 10
MOST_ITERATIONS = 30
PART = 65_536
"""Boxes compared with all shapes at a time."""
TINY = 1e-3
"""px; keeps the logarithm of a side finite."""
SEARCHED = 10_000
"""Boxes that the restarts look at, drawn from all; the best of them goes on with every box."""
SAME = 1e-3
"""Sides that differ by a smaller part are one: annotations written as fractions differ in the sixth digit."""
SIZE_EDGES = (0.0, 16.0, 32.0, 64.0, 128.0, 256.0, np.inf)
"""Octaves of sqrt(w h), px, in which the fit is told."""


@dataclass(frozen=True)
class Fit:
    """shapes (K, 2): w, h in px, smallest area first. mean_iou: mean over boxes of the IoU with the best shape.

    runs: mean best IoU of every restart, on the boxes the restarts looked at.
    """

    shapes: np.ndarray
    mean_iou: float
    runs: tuple[float, ...]


@dataclass(frozen=True)
class SizeBin:
    """Boxes with low <= sqrt(w h) < high px. recall: share of them whose best shape reaches the IoU asked for.

    mean_iou and recall are NaN where there is no box.
    """

    low: float
    high: float
    boxes: int
    mean_iou: float
    recall: float


def training_sizes(split: Split, augment: Augment) -> np.ndarray:
    """Width and height of every object of the split, (N, 2) float64 px, after the recipe's resize.

    The same objects as in training (no crowd, no difficult, none without area), at `augment.image_size`: what
    random scales and crops do on top differs from epoch to epoch and is left out.
    """
    rule = Rule(*augment.image_size)
    found = [np.zeros((0, 2))]
    for record in split.records:
        sides = (record.boxes[:, 2:] - record.boxes[:, :2]).astype(np.float64)
        height, width = rule.size(record.height, record.width)
        found.append(sides[record.trainable] * (width / record.width, height / record.height))
    return np.concatenate(found)


def shape_iou(sizes: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """IoU of boxes around one centre. sizes (..., N, 2), shapes (..., K, 2) px -> (..., N, K) in (0, 1]."""
    width = np.minimum(sizes[..., :, None, 0], shapes[..., None, :, 0])
    height = np.minimum(sizes[..., :, None, 1], shapes[..., None, :, 1])
    shared = width * height
    return shared / (sizes.prod(-1)[..., :, None] + shapes.prod(-1)[..., None, :] - shared)


def best_shape(sizes: np.ndarray, shapes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row of the shape of highest IoU (N,), that IoU (N,)). sizes (N, 2), shapes (K, 2) px.

    In parts, so that a million boxes need no N x K matrix.
    """
    owner, best = np.zeros(len(sizes), dtype=np.int64), np.zeros(len(sizes))
    for start in range(0, len(sizes), PART):
        part = slice(start, start + PART)
        overlap = shape_iou(sizes[part], shapes)
        owner[part], best[part] = overlap.argmax(1), overlap.max(1)
    return owner, best


def fit_shapes(
    sizes: np.ndarray,
    count: int,
    *,
    seed: int = 0,
    restarts: int = RESTARTS,
    least: Sequence[float] | np.ndarray | float = 0.0,
) -> Fit:
    """The best of several k-means, each climbed to the top of its hill. sizes (N, 2) px.

    There are always exactly `count` shapes, all different. least: px that no side falls below, one number, or one
    for each shape from the smallest area to the largest (the stride of the level it will serve). Raises DataError
    for boxes of fewer than `count` different sizes (see SAME), or where only `least` is left to most of the shapes.
    """
    different = distinct(sizes, count)
    if different < count:
        raise DataError(
            f"{count} anchor shapes need boxes of at least {count} different sizes, got {different} among "
            f"{len(sizes)} boxes (sides within {SAME:.1%} count as equal); ask for fewer shapes or give more images"
        )
    rng = np.random.default_rng(seed)
    bound = np.broadcast_to(np.asarray(least, dtype=np.float64), (count,))
    searched = _sample(sizes, count, rng)
    found = [_climb(searched, kmeans(searched, count, rng, bound), bound) for _ in range(restarts)]
    shapes, best = max(found, key=lambda run: run[1])
    if len(searched) < len(sizes):
        shapes, best = _climb(sizes, shapes, bound)
    different = len(np.unique(shapes, axis=0))
    if different < count:
        limits = " to ".join(f"{limit:g}" for limit in np.unique(bound[[0, -1]]))
        raise DataError(
            f"with no side below {limits} px only {different} of {count} anchor shapes differ, as most of the "
            f"boxes are smaller; ask for fewer shapes, a lower --min-strides, or larger images"
        )
    return Fit(shapes, best, tuple(value for _, value in found))


def distinct(sizes: np.ndarray, most: int) -> int:
    """How many sizes differ by more than SAME in a side, counted up to `most`. sizes (N, 2) px."""
    left, found = sizes, 0
    # one size and all its likes at a time: rounding to a grid would tell likes apart that lie across a line
    while len(left) and found < most:
        left = left[(np.abs(left - left[0]) > SAME * left[0]).any(1)]
        found += 1
    return found


def fit_levels(
    sizes: np.ndarray,
    strides: Sequence[int],
    count: int,
    *,
    seed: int = 0,
    restarts: int = RESTARTS,
    min_strides: float = 0.0,
) -> tuple[np.ndarray, Fit]:
    """(shapes, fit) with `count` shapes for each level of a pyramid, the smallest areas to the finest level.

    strides: px of each level, finest first. min_strides: no side falls below this many strides of its level.
    shapes (L, count, 2) px. As YOLOv3 does it; its followers' shapes below a stride cost them small objects.
    """
    least = (np.asarray(strides, dtype=np.float64) * min_strides).repeat(count)
    found = fit_shapes(sizes, len(strides) * count, seed=seed, restarts=restarts, least=least)
    return found.shapes.reshape(len(strides), count, 2), found


def kmeans(sizes: np.ndarray, count: int, rng: np.random.Generator, least: np.ndarray) -> np.ndarray:
    """One k-means of YOLOv2: each box goes to the shape of highest IoU, each shape to the mean of its boxes.

    Seeds are those of k-means++ (Arthur and Vassilvitskii 2007) with 1 - IoU as distance. A shape that no box
    goes to takes the box that has most to gain, so none is lost. Means do not minimise 1 - IoU, so that an
    iteration may lose; the best one counts. sizes (N, 2), least (count,) px -> (count, 2) px, smallest area first.
    """
    shapes = bounded(_seeds(sizes, count, rng), least)
    kept, best, before = shapes, (0, -1.0), np.full(len(sizes), -1)
    for _ in range(MOST_ITERATIONS):
        owner, overlap = best_shape(sizes, shapes)
        members = np.bincount(owner, minlength=count)
        worth = (int((members > 0).sum()), float(overlap.mean()))
        if worth > best:
            kept, best = shapes, worth
        if (owner == before).all():
            break
        before = owner
        sums = np.stack([np.bincount(owner, sizes[:, side], count) for side in (0, 1)], 1)
        moved = np.where(members[:, None] > 0, sums / np.maximum(members, 1)[:, None], shapes)
        for empty in np.flatnonzero(members == 0):
            moved[empty], overlap = _reseeded(sizes, overlap, moved[empty], least[empty])
        shapes = bounded(moved, least)
    return kept


def _climb(sizes: np.ndarray, shapes: np.ndarray, least: np.ndarray) -> tuple[np.ndarray, float]:
    """(shapes, mean best IoU): uphill on the mean best IoU itself, which k-means with means leaves short.

    YOLOv2 stops at the means (VOC2007, five shapes: 61.1; so 62.3). A climb that leaves a shape without a box
    is undone. sizes (N, 2), shapes (K, 2), least (K,) px.
    """
    before = float(best_shape(sizes, shapes)[1].mean())
    floor = np.log(np.maximum(least, TINY)).repeat(2)
    limits = [(low, None) for low in floor]
    start = np.maximum(np.log(np.maximum(shapes, TINY)).reshape(-1), floor)
    top = minimize(
        _slope, start, args=(sizes,), jac=True, method="L-BFGS-B", bounds=limits, options={"maxiter": 100}
    )
    climbed = bounded(np.exp(top.x.reshape(-1, 2)), least)
    value = float(best_shape(sizes, climbed)[1].mean())
    lost = (served(sizes, climbed) > 0).sum() < (served(sizes, shapes) > 0).sum()
    if value <= before or lost:
        return shapes, before
    return climbed, value


def _slope(logs: np.ndarray, sizes: np.ndarray) -> tuple[float, np.ndarray]:
    """Minus the mean best IoU, and its derivative by the log sides. logs (2K,): log w, log h of each shape.

    With I the overlap, a the shape's area and U the union: dI/dlog w = I where the shape is narrower than the
    box, else 0; da/dlog w = a; dIoU = (dI (U + I) - I da) / U^2.
    """
    shapes = np.exp(logs.reshape(-1, 2))
    owner, best = best_shape(sizes, shapes)
    own = shapes[owner]
    shared, area = np.minimum(sizes, own).prod(1), own.prod(1)
    union = shared / best
    inner = np.where(own < sizes, shared[:, None], 0.0)
    rise = (inner * (union + shared)[:, None] - (shared * area)[:, None]) / union[:, None] ** 2
    slope = np.stack([np.bincount(owner, rise[:, side], len(shapes)) for side in (0, 1)], 1)
    return -float(best.mean()), -slope.reshape(-1) / len(sizes)


def _sample(sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """At most SEARCHED boxes, among them still `count` different ones."""
    if len(sizes) <= SEARCHED:
        return sizes
    drawn = sizes[rng.choice(len(sizes), SEARCHED, replace=False)]
    return drawn if distinct(drawn, count) >= count else sizes


def _seeds(sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 2): different boxes, each drawn with a chance of its squared distance to those before."""
    chosen = [int(rng.integers(len(sizes)))]
    nearest = np.full(len(sizes), np.inf)
    while len(chosen) < count:
        nearest = np.minimum(nearest, 1 - shape_iou(sizes, sizes[chosen[-1:]])[:, 0])
        # a box that is the same but for rounding must not be chosen again; a quarter, so that no two different
        # sizes are both the same as a third
        chance = np.where(nearest > SAME / 4, nearest**2, 0.0)
        chosen.append(int(rng.choice(len(sizes), p=chance / chance.sum())))
    return sizes[chosen]


def _reseeded(
    sizes: np.ndarray, overlap: np.ndarray, shape: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """(an empty cluster's new shape, IoU of every box with its best shape then).

    The new shape is the box that gains most, its sides raised to `least`; the old one where none gains.
    sizes (N, 2), overlap (N,): IoU with the best shape so far, shape (2,).
    """
    reached = np.maximum(sizes, least)
    gain = sizes.prod(1) / reached.prod(1) - overlap
    if gain.max() <= 0:
        return shape, overlap
    chosen = reached[gain.argmax()]
    return chosen, np.maximum(overlap, best_shape(sizes, chosen[None])[1])


def bounded(shapes: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Smallest area first, no side below its bound. shapes (K, 2), least (K,) px."""
    return np.maximum(shapes[np.argsort(shapes.prod(1), kind="stable")], least[:, None])


def quality(
    sizes: np.ndarray, shapes: np.ndarray, *, iou: float = 0.5, edges: Sequence[float] = SIZE_EDGES
) -> list[SizeBin]:
    """How well shapes fit boxes, by size, all boxes last. sizes (N, 2), shapes (K, 2) px."""
    _, best = best_shape(sizes, shapes)
    side = np.sqrt(sizes.prod(1))
    return [
        SizeBin(low, high, int(inside.sum()), _mean(best[inside]), _mean(best[inside] >= iou))
        for low, high, inside in _bins(side, [*pairwise(edges), (edges[0], edges[-1])])
    ]


def _bins(
    side: np.ndarray, ranges: Iterable[tuple[float, float]]
) -> Iterable[tuple[float, float, np.ndarray]]:
    return ((low, high, (side >= low) & (side < high)) for low, high in ranges)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def served(sizes: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Share of the boxes that each shape overlaps most, (K,), sums to 1; zeros without boxes.

    Of equal shapes the first serves them all.
    """
    if not len(sizes):
        return np.zeros(len(shapes))
    owner, _ = best_shape(sizes, shapes)
    return np.bincount(owner, minlength=len(shapes)) / len(sizes)
