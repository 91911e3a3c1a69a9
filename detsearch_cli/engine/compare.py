"""Is one detector better than another? Intervals over images (paired bootstrap) and over seeds (t).

Bootstrap. A resample draws as many images as the split has, with replacement, and scores both detectors on
the same draw, an image drawn twice counting twice. Which detection matches which object depends on nothing
but its own image, so matching is done once, by pycocotools; a resample only weighs images by how often they
were drawn and rebuilds the precision-recall curves. The result is COCO's AP of the drawn multiset, not an
approximation. Detections of equal score keep pycocotools' order (image id, then rank in the image), and the
copies of one detection stand next to each other.

Sources: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13 (percentile interval);
Welch 1947 for groups of unequal size or variance.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detsearch_cli.data.types import Split
from detsearch_cli.engine import coco
from detsearch_cli.engine.detections import DetectionTable
from detsearch_cli.errors import EvaluationError
from detsearch_cli.verdicts import Verdict, verdict

IOU_THRESHOLDS = {"AP": slice(0, 10), "AP50": slice(0, 1), "AP75": slice(5, 6)}
RECALLS = np.linspace(0.0, 1.0, 101)
CELLS_AT_ONCE = 200_000  # detections x resamples in flight; keeps the working set in the processor's cache


@dataclass(frozen=True)
class Comparison:
    """Score of `a` (the baseline), of `b`, and `difference` = b - a with its 95% interval [low, high].

    resamples: how many bootstrap draws, 0 for an interval over seeds. not_better: share of the draws in
    which the difference is at most 0, NaN over seeds. p_value: two-sided, of the hypothesis that there is
    no difference.
    """

    metric: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    resamples: int
    not_better: float
    p_value: float

    @property
    def verdict(self) -> Verdict:
        """What the interval allows to say of `b`: better or worse than `a`, or within noise."""
        return verdict(self.low, self.high)


def paired_bootstrap(
    split: Split,
    a: DetectionTable,
    b: DetectionTable,
    *,
    metric: str = "AP",
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """95% interval of metric(b) - metric(a) over the images of `split`; metric is AP, AP50 or AP75.

    A draw without any object has no AP and is left out. The p-value is twice the smaller share of draws on
    one side of 0, and no less than 1 / resamples. Raises EvaluationError for an unknown metric, for fewer
    than 100 resamples or 2 images, without objects, and for detections that do not fit the split.
    """
    if metric not in IOU_THRESHOLDS:
        raise EvaluationError(
            f"the metric to compare must be one of {', '.join(IOU_THRESHOLDS)}, got {metric!r}"
        )
    if resamples < 100:
        raise EvaluationError(f"an interval needs at least 100 resamples, got {resamples}")
    n = len(split)
    if n < 2:
        raise EvaluationError(f"an interval over images needs at least 2, split {split.name!r} has {n}")
    # how often each image is drawn, not which are: an image is then matched once, however often it is drawn
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    # the first row is the split itself; both detectors are scored on the same draws
    weights = np.concatenate([np.ones((1, n), np.int64), draws])
    scores = [resampled(split, table, weights, metric=metric) for table in (a, b)]
    if math.isnan(scores[0][0]):
        raise EvaluationError(f"split {split.name!r} has no objects to compare on; choose another split")
    return _percentiles(metric, *scores)


def _percentiles(metric: str, a: np.ndarray, b: np.ndarray) -> Comparison:
    """Percentile interval of b - a. Both (1 + B,): the score of the split itself, then of the draws."""
    difference = (b - a)[1:]
    difference = difference[~np.isnan(difference)]
    low, high = np.quantile(difference, [0.025, 0.975])
    not_better, not_worse = float((difference <= 0).mean()), float((difference >= 0).mean())
    return Comparison(
        metric,
        a=float(a[0]),
        b=float(b[0]),
        difference=float(b[0] - a[0]),
        low=float(low),
        high=float(high),
        resamples=len(difference),
        not_better=not_better,
        p_value=max(min(1.0, 2 * min(not_better, not_worse)), 1 / len(difference)),
    )


def image_variance(split: Split, tables: Sequence[DetectionTable], resamples: int = 100) -> float:
    """Variance of one detector's AP beside the others', due to the choice of images: half of what differences have.

    tables: of detectors that differ by their seed, at least two. Bootstrap, the same draws for all; the mean over pairs.
    Raises EvaluationError for detections that do not fit the split.
    """
    rng, images = np.random.default_rng(0), len(split)
    weights = rng.multinomial(images, np.full(images, 1 / images), resamples)
    scores = np.stack([resampled(split, table, weights) for table in tables])
    # half the mean square of the differences of all pairs is the variance among the detectors of what they do in a draw
    varying = scores - np.nanmean(scores, axis=1, keepdims=True)
    return float(np.nanmean(np.var(varying, axis=0, ddof=1)))


def resampled(split: Split, table: DetectionTable, weights: np.ndarray, *, metric: str = "AP") -> np.ndarray:
    """COCO's `metric` with image i counted weights[b, i] times. weights (B, N) integers -> (B,) float64.

    Weights of 1 give `evaluate`'s number. NaN where no drawn image has an object; a class without objects
    in a draw is left out of its mean, as COCO does. Raises EvaluationError for detections that do not fit
    the split.
    """
    table.check(split)
    weights = np.asarray(weights, np.int32)
    total, defined = np.zeros(len(weights)), np.zeros(len(weights))
    for matches in match(split, table, IOU_THRESHOLDS[metric]):
        ap = matches.average_precision(weights)
        defined += ~np.isnan(ap)
        total += np.nan_to_num(ap)
    return np.divide(total, defined, out=np.full(len(weights), np.nan), where=defined > 0)


@dataclass(frozen=True)
class ClassMatches:
    """Matches of one class's detections, best first, at T IoU thresholds.

    image (D,): row in the split. correct, counted (T, D) bool: matched to an object; not ignored.
    objects (N,): objects of the class in each image that count.
    """

    image: np.ndarray
    correct: np.ndarray
    counted: np.ndarray
    objects: np.ndarray

    def average_precision(self, weights: np.ndarray) -> np.ndarray:
        """Mean over thresholds of the 101-point AP. Image weights (B, N) -> (B,), NaN without objects."""
        num_objects = weights @ self.objects
        # in pieces: a thousand draws of a large split would need gigabytes at once
        step = max(1, CELLS_AT_ONCE // max(1, len(self.image)))
        parts = [slice(start, start + step) for start in range(0, len(weights), step)]
        ap = np.concatenate([self._chunk(weights[part], num_objects[part]) for part in parts])
        return np.where(num_objects > 0, ap, np.nan)

    def _chunk(self, weights: np.ndarray, num_objects: np.ndarray) -> np.ndarray:
        """The same for a few rows of weights."""
        copies = weights.take(self.image, axis=1)
        seen_of_all = _running(copies)
        per_threshold = []
        for correct, counted in zip(self.correct, self.counted, strict=True):
            at = np.flatnonzero(correct)  # precision can only peak where a detection is correct
            seen = seen_of_all if counted.all() else _running(copies * counted)
            per_threshold.append(_area(_running(copies.take(at, axis=1)), seen.take(at, axis=1), num_objects))
        return np.mean(per_threshold, axis=0)


def _running(counts: np.ndarray) -> np.ndarray:
    """Cumulated counts along each row; in integers, which numpy adds up several times faster than floats."""
    return np.cumsum(counts, axis=1, dtype=counts.dtype)


def _area(correct: np.ndarray, seen: np.ndarray, num_objects: np.ndarray) -> np.ndarray:
    """101-point AP from cumulated counts at the P correct detections. (B, P), (B, P), (B,) -> (B,).

    Each of the 101 recalls takes the envelope where the curve first reaches it; so the envelope at a
    detection counts as often as there are recalls that this detection is the first to reach.
    """
    precision = correct / (seen + np.spacing(1))  # COCO's own guard, so that the last bit agrees
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = correct / np.maximum(num_objects, 1)[:, None]
    reached = (recall * 100 + 1e-6).astype(np.int64)
    # COCO compares floats: an exact j/100 misses the recall level j where linspace rounded that upwards
    reached += recall >= RECALLS[reached]
    return np.einsum("bp,bp->b", envelope, np.diff(reached, axis=1, prepend=0)) / len(RECALLS)


def match(split: Split, table: DetectionTable, thresholds: slice = slice(0, 10)) -> list[ClassMatches]:
    """COCO's matches (all areas, 100 detections an image and class) of every class that has an object."""
    run = coco.reference(*coco.datasets(split, table))
    # AP alone: COCO's other areas and numbers of detections would take several times as long
    run.params.areaRng, run.params.areaRngLbl, run.params.maxDets = [[0, 1e10]], ["all"], [100]
    run.params.iouThrs = run.params.iouThrs[thresholds]
    with contextlib.redirect_stdout(io.StringIO()):
        run.evaluate()
    rows = np.argsort([r.image_id for r in split.records], kind="stable")  # rank of the image id -> row
    found = []
    for label in range(len(split.classes)):
        images = run.evalImgs[label * len(split) : (label + 1) * len(split)]
        objects = np.zeros(len(split), np.int32)
        for row, image in zip(rows, images, strict=True):
            objects[row] = 0 if image is None else np.count_nonzero(np.asarray(image["gtIgnore"]) == 0)
        if objects.any():
            found.append(_collect(rows, images, objects, len(run.params.iouThrs)))
    return found


def _collect(
    rows: np.ndarray, images: list[dict[str, Any] | None], objects: np.ndarray, num_thresholds: int
) -> ClassMatches:
    """Join pycocotools' per-image results of one class and sort them, best first."""
    present = [(row, image) for row, image in zip(rows, images, strict=True) if image is not None]
    none = np.zeros((num_thresholds, 0), bool)
    scores = np.concatenate([image["dtScores"] for _, image in present])
    order = np.argsort(-scores, kind="mergesort")  # stable, as in pycocotools: equal scores keep their order
    counted = ~np.concatenate([none, *(np.asarray(i["dtIgnore"], bool) for _, i in present)], axis=1)[
        :, order
    ]
    matched = np.concatenate([none, *(np.asarray(i["dtMatches"]) > 0 for _, i in present)], axis=1)[:, order]
    image_of = np.repeat([row for row, _ in present], [len(i["dtScores"]) for _, i in present])[order]
    return ClassMatches(image_of.astype(np.int64), matched & counted, counted, objects)


def seed_interval(baseline: Sequence[float], other: Sequence[float], metric: str = "AP") -> Comparison:
    """95% interval of mean(other) - mean(baseline) over training runs with several seeds.

    Equally many runs are taken as paired, run i of both having the same seed: Student's t of the
    differences. Different numbers of runs are independent groups: Welch's t. Identical differences give an
    interval of width 0. Raises EvaluationError for fewer than 2 runs of either, and for scores that are not
    finite.
    """
    from scipy import stats

    a, b = np.asarray(baseline, np.float64), np.asarray(other, np.float64)
    if min(len(a), len(b)) < 2:
        raise EvaluationError(
            f"an interval over seeds needs at least 2 runs of each, got {len(a)} and {len(b)}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise EvaluationError(
            "every run needs a finite score for an interval over seeds; leave failed runs out"
        )
    difference = float(b.mean() - a.mean())
    if len(a) == len(b):
        # paired: both runs of a seed share the order of images, and what they share cancels
        error, freedom = float(np.std(b - a, ddof=1)) / math.sqrt(len(a)), float(len(a) - 1)
    else:
        error, freedom = _welch(a, b)
    if error == 0:  # t would be 0 / 0
        low, high, p_value = difference, difference, float(difference == 0)
    else:
        reach = float(stats.t.ppf(0.975, freedom)) * error
        low, high = difference - reach, difference + reach
        p_value = float(2 * stats.t.sf(abs(difference) / error, freedom))
    return Comparison(metric, float(a.mean()), float(b.mean()), difference, low, high, 0, math.nan, p_value)


def _welch(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Standard error of the difference of means, and Welch-Satterthwaite's degrees of freedom."""
    variances = [float(np.var(x, ddof=1)) / len(x) for x in (a, b)]
    total = sum(variances)
    if total == 0:
        return 0.0, math.inf
    freedom = total**2 / sum(v**2 / (len(x) - 1) for v, x in zip(variances, (a, b), strict=True))
    return math.sqrt(total), freedom
