"""Trains every surviving formula at once without an image: a classifier with few positives, boxes that move.

Source: Liu et al. 2021, Section 3.2.3 asks for the quality of optimisation and measures it with trainings; this stands
before those. Easy points separate under nearly every monotone loss, so the points are hard: one positive in a thousand,
few steps. Scores rank formulas of one language; what they are worth is their agreement with trainings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detsearch_cli.formulas.formula import Formula
from detsearch_cli.formulas.graph import Graph
from detsearch_cli.formulas.grids import Grid, areas, grid
from detsearch_cli.formulas.language import Language
from detsearch_cli.formulas.operators import Array

STEPS = 15
RATE = 0.2
"""Of Adam. More steps, and every monotone loss arrives at the same classifier."""
REPEATS = 8
"""Trainings of which the mean counts: two positives a step make a single one a matter of luck."""
FEATURES = 8
APART = 3.5
"""Standard deviations between positives and the others: an AP around a half, where losses differ most."""
POSITIVES, NEGATIVES = 2, 1_998
"""Points of a step."""
TESTED = (60, 6_000)
"""Positives and negatives of the test; each negative counts tenfold, so that one in a thousand is positive there too."""
BACKGROUND_BIAS = -4.6
"""Score .01 at the start, as focal loss begins (Lin et al. 2017); two stages begin at 0."""
PER_UNIT = 8
"""Entries of a gradient table for one unit of a logit."""
BOXES, BOX_STEPS = 24, 40
STRIDE = 0.06
"""Root mean square of a step, in sides of the predicted box; falls to 0."""


def simulate(formulas: Sequence[Formula], language: Language, seed: int = 0) -> Array:
    """A score of each formula, (F,) in [0, 1]: average precision, or for regression the mean IoU of the moved boxes.

    All formulas see the same points; the same seed gives the same scores. A formula that is no number somewhere gets 0.
    """
    if not formulas:
        return np.zeros(0)
    rng = np.random.default_rng(seed)
    scores = (
        _boxes(formulas, language, rng) if language.branch == "reg" else _classifier(formulas, language, rng)
    )
    return np.nan_to_num(scores, nan=0.0)


def _classifier(formulas: Sequence[Formula], language: Language, rng: np.random.Generator) -> Array:
    """Average precision of linear classifiers, one a formula, with gradients from the grid."""
    places = grid(language)
    _, slopes = Graph(formulas, language).evaluate(places.inputs, places.directions)
    assert slopes is not None
    positive = [_table(places, name, slopes) for name in places.positive]
    negative = _table(places, places.negative, slopes)
    bias = 0.0 if language.columns else BACKGROUND_BIAS
    return np.mean([_trained(positive, negative, bias, rng) for _ in range(REPEATS)], 0)


def _trained(positive: list[Array], negative: Array, bias: float, rng: np.random.Generator) -> Array:
    """Trains (d + 1) weights a formula with Adam on fresh points each step; average precision on others, (F,)."""
    towards = rng.normal(size=FEATURES)
    towards *= APART / np.linalg.norm(towards)
    weights = np.zeros((len(negative), FEATURES + 1))
    weights[:, -1] = bias
    mean, square = np.zeros_like(weights), np.zeros_like(weights)
    for step in range(1, STEPS + 1):
        others, ones = _points(rng, NEGATIVES), _points(rng, POSITIVES, towards)
        gradient = _look_up(negative, weights @ others) @ others.T
        for point in ones.T:
            # the w of a positive is one of those that the grid has
            logits = weights @ point[:, None]
            gradient += _look_up(positive[rng.integers(len(positive))], logits) * point
        mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
        unbiased = mean / (1 - 0.9**step), square / (1 - 0.99**step)
        weights -= RATE * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-12)
    return _average_precision(weights @ _points(rng, TESTED[0], towards), weights @ _points(rng, TESTED[1]))


def _points(rng: np.random.Generator, count: int, centre: Array | float = 0.0) -> Array:
    """Features of points around a centre, and a 1 for the bias, (d + 1, count)."""
    drawn = rng.normal(size=(count, FEATURES)) + centre
    return np.concatenate([drawn.T, np.ones((1, count))])


def _table(places: Grid, name: str, slopes: Array) -> Array:
    """A sweep's derivatives at evenly spaced logits, (F, T)."""
    sweep = places.sweep(name)
    even = np.linspace(-20, 20, 40 * PER_UNIT + 1)
    right = np.clip(np.searchsorted(sweep.along, even), 1, len(sweep.along) - 1)
    part = (even - sweep.along[right - 1]) / (sweep.along[right] - sweep.along[right - 1])
    known = slopes[:, sweep.rows]
    return known[:, right - 1] * (1 - part) + known[:, right] * part


def _look_up(table: Array, logits: Array) -> Array:
    """Derivatives at logits (F, N), each from its formula's row of the table."""
    at = np.clip(np.rint((logits + 20) * PER_UNIT), 0, table.shape[1] - 1).astype(np.intp)
    at += np.arange(len(table))[:, None] * table.shape[1]
    return table.take(at)


def _average_precision(positive: Array, negative: Array) -> Array:
    """Of scores (F, P) and (F, N), where each negative counts tenfold; ties are errors."""
    ordered = np.sort(positive, 1)[:, ::-1]
    negative = np.sort(negative, 1)
    above = np.stack(
        [len(row) - np.searchsorted(row, own, "left") for row, own in zip(negative, ordered, strict=True)]
    )
    found = np.arange(1, ordered.shape[1] + 1)
    return (found / (found + 10 * above)).mean(1)


def _boxes(formulas: Sequence[Formula], language: Language, rng: np.random.Generator) -> Array:
    """Boxes go downhill from beside their targets; what moves is centre and log size, as in detectors."""
    sides = np.exp(rng.uniform(np.log(16), np.log(256), (BOXES, 2)))
    target = np.concatenate([-sides / 2, sides / 2], 1)
    begun = sides * np.exp(rng.normal(0, 0.4, (BOXES, 2)))
    centre = sides * rng.uniform(-1.1, 1.1, (BOXES, 2))
    moved = np.zeros((len(formulas), BOXES, 4))  # centre in begun sides, log of the sides
    graph = Graph(formulas, language, own_inputs=True)
    for step in range(BOX_STEPS):
        inputs, directions = _moving(target, centre, begun, moved)
        slopes = graph.evaluate(inputs, directions)[1]
        assert slopes is not None
        gradient = slopes.reshape(moved.shape)
        # the length of a step is no formula's merit; how it divides among the boxes is
        size = np.sqrt((gradient**2).mean((1, 2), keepdims=True))
        moved -= STRIDE * (1 - step / BOX_STEPS) * gradient / np.maximum(size, 1e-12)
    found = areas(target, _corners(centre, begun, moved))
    return (found["i"] / found["u"]).mean(1)


def _corners(centre: Array, begun: Array, moved: Array) -> Array:
    """Boxes (F, B, 4) xyxy."""
    middle, half = centre + moved[..., :2] * begun, begun * np.exp(moved[..., 2:]) / 2
    return np.concatenate([middle - half, middle + half], -1)


def _moving(
    target: Array, centre: Array, begun: Array, moved: Array
) -> tuple[dict[str, Array], dict[str, Array]]:
    """i, u, e of the boxes and their derivatives by the four numbers that move, all (F, B * 4), number by number."""
    boxes = _corners(centre, begun, moved)
    low, high = boxes[..., :2], boxes[..., 2:]
    inner = np.maximum(np.minimum(high, target[:, 2:]) - np.maximum(low, target[:, :2]), 0)
    outer = np.maximum(high, target[:, 2:]) - np.minimum(low, target[:, :2])
    side = high - low
    meets = (inner > 0).all(-1, keepdims=True)
    # by the low and the high edge of each axis: what one edge adds to a length, times the other axis' length
    grows = {
        "i": (-1.0 * (low > target[:, :2]) * meets, 1.0 * (high < target[:, 2:]) * meets, inner),
        "a": (-np.ones_like(low), np.ones_like(high), side),
        "e": (-1.0 * (low < target[:, :2]), 1.0 * (high > target[:, 2:]), outer),
    }
    slopes = {}
    for name, (by_low, by_high, length) in grows.items():
        across = length[..., ::-1]
        # a shift moves both edges by a begun side, a growth moves them half a side apart
        slopes[name] = np.concatenate([(by_low + by_high) * begun, (by_high - by_low) * side / 2], -1)
        slopes[name] *= np.concatenate([across, across], -1)
    slopes["u"] = slopes.pop("a") - slopes["i"]
    values = areas(target, boxes)
    return (
        {name: np.repeat(value, 4, -1) for name, value in values.items()},
        {name: slope.reshape(len(moved), -1) for name, slope in slopes.items()},
    )
