"""Where the properties of a loss are looked at: sweeps of a logit from -20 to 20, boxes that leave their target.

A grid is a list of rows, each one set of inputs. Most rows belong to a sweep, along which one thing changes; the rest
is looked at for finite values only. The inputs are those of `language`: w is 1 except for a positive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from detsearch_cli.formulas.language import LEAST_IOU, ONE_STAGE, REGRESSION, TWO_STAGE, Language
from detsearch_cli.formulas.operators import Array

Mask = NDArray[np.bool_]
_HALF = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 13.0, 16.0, 20.0)
FINE = np.array([-z for z in reversed(_HALF)] + [0.0, *_HALF])
"""29 logits; a score is within 1e-8 of 0 and 1 at the ends."""
_COARSE_HALF = (1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0)
COARSE = np.array([-z for z in reversed(_COARSE_HALF)] + [0.0, *_COARSE_HALF])
"""15 logits, for the grid whose rows have four columns."""
IOUS = (0.7, 0.3)
"""Of positives beside w = 1."""


@dataclass(frozen=True)
class Sweep:
    """Rows start to stop, K of them, along which one logit or one box changes.

    rises: the loss must not fall along the sweep; else it must not rise. ruled (K,): where that holds. learns (K,):
    where the loss must not be flat, the wrong side of the sweep, its first row the furthest end. rests: the row in
    which the gradient must have gone to zero, None where there is none. along (K,): what changes, for pictures.
    """

    name: str
    start: int
    stop: int
    rises: bool
    ruled: Mask
    learns: Mask
    rests: int | None
    along: Array

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class Grid:
    """inputs: name to values (R,), or (R, C + 1). directions: by how much x moves in each row; for
    regression i, u and e, when the right edge of the box moves by one.

    positive, negative: names of the sweeps in which a simulation looks gradients up, one for each w.
    """

    language: Language
    inputs: Mapping[str, Array]
    directions: Mapping[str, Array]
    sweeps: tuple[Sweep, ...]
    positive: tuple[str, ...] = ()
    negative: str = ""

    @property
    def rows(self) -> int:
        return next(iter(self.inputs.values())).shape[0]

    def sweep(self, name: str) -> Sweep:
        return next(sweep for sweep in self.sweeps if sweep.name == name)

    def row(self, index: int) -> dict[str, float | list[float]]:
        """The inputs of one row."""
        return {name: values[index].tolist() for name, values in self.inputs.items()}


@cache
def grid(language: Language) -> Grid:
    """The grid of a language; made once."""
    return {ONE_STAGE.name: one_stage, TWO_STAGE.name: two_stage, REGRESSION.name: regression}[
        language.name
    ]()


def one_stage() -> Grid:
    """126 rows: positives of w = 1, .7 and .3, a negative, and the ends once more at the smallest w."""
    sweeps: list[Sweep] = []
    x: list[Array] = []
    y: list[Array] = []
    w: list[Array] = []
    ends = np.array([-20.0, -8.0, -3.0, -1.0, 0.0, 1.0, 3.0, 8.0, 16.0, 20.0])
    parts = [(1.0, 1.0), (1.0, IOUS[0]), (1.0, IOUS[1]), (0.0, 1.0)]
    names = ["positive", *(f"positive of w = {iou}" for iou in IOUS), "negative"]
    for name, (target, iou) in zip(names, parts, strict=True):
        sweeps.append(
            _logits(name, len(FINE) * len(sweeps), FINE, bool(target), iou, 1 / (1 + np.exp(-FINE)), 0.0)
        )
        x, y, w = [*x, FINE], [*y, np.full(len(FINE), target)], [*w, np.full(len(FINE), iou)]
    inputs = {
        "x": np.concatenate([*x, ends]),
        "y": np.concatenate([*y, np.ones(len(ends))]),
        "w": np.concatenate([*w, np.full(len(ends), LEAST_IOU)]),
    }
    return Grid(
        ONE_STAGE, inputs, {"x": np.ones(len(inputs["x"]))}, tuple(sweeps), tuple(names[:-1]), "negative"
    )


def _logits(name: str, start: int, logits: Array, own: bool, iou: float, score: Array, rival: float) -> Sweep:
    """A sweep of one logit. own: of the box's own class, whose loss falls. rival: the logit where both are as likely.

    For w < 1 the loss may turn upward beyond score w (CSE-Autoloss-B does), and need not go to rest.
    """
    ruled = score < iou if iou < 1 else np.ones(len(logits), bool)
    learns = (logits < rival if own else logits > rival) if iou == 1 else np.zeros(len(logits), bool)
    rests = None if iou < 1 else len(logits) - 1 if own else 0
    return Sweep(name, start, start + len(logits), not own, ruled, learns, rests, logits)


def two_stage() -> Grid:
    """103 rows of three classes and background, the last column.

    A box of the first class and one of background; the score of its own class changes, or of another, or background's.
    The other logits differ from each other, so that no formula passes by their symmetry.
    """
    still = np.array([0.5, -1.0, 1.5, 0.0])
    # name, target's column, moving column, w of a positive
    wanted = [
        ("own class of a positive box", 0, 0, 1.0),
        (f"own class of a positive box of w = {IOUS[1]}", 0, 0, IOUS[1]),
        ("another class of a positive box", 0, 1, 1.0),
        ("background of a positive box", 0, 3, 1.0),
        ("background of a background box", 3, 3, 1.0),
        ("a class of a background box", 3, 0, 1.0),
    ]
    count = len(COARSE)
    sweeps: list[Sweep] = []
    xs: list[Array] = []
    ys: list[Array] = []
    ws: list[Array] = []
    directions: list[Array] = []
    for name, target, moving, iou in wanted:
        x = np.tile(still, (count, 1))
        x[:, moving] = COARSE
        y, w, direction = np.zeros_like(x), np.ones_like(x), np.zeros_like(x)
        y[:, target], direction[:, moving] = 1, 1
        if target != 3:
            w[:, target] = iou
        score = np.exp(x[:, target]) / np.exp(x).sum(1)
        own = target == moving
        rival = np.delete(still, target).max() if own else float(still[target])
        sweeps.append(_logits(name, count * len(sweeps), COARSE, own, iou, score, rival))
        xs, ys, ws, directions = [*xs, x], [*ys, y], [*ws, w], [*directions, direction]
    extreme = np.array(
        [[20, -20, -20, -20], [-20, 20, 20, 20], [20, 20, 20, 20], [-20, -20, -20, -20]] * 2 + [still] * 5
    )
    targets = np.array([0] * 4 + [3] * 4 + [0, 0, 3, 3, 1])
    xs.append(extreme.astype(float))
    ys.append(np.eye(4)[targets])
    least = np.ones((len(targets), 4))
    least[targets != 3, targets[targets != 3]] = LEAST_IOU
    ws.append(least)
    directions.append(np.eye(4)[[0, 0, 0, 0, 3, 3, 3, 3, 0, 1, 0, 3, 1]])
    inputs = {"x": np.concatenate(xs), "y": np.concatenate(ys), "w": np.concatenate(ws)}
    names = [sweep.name for sweep in sweeps]
    return Grid(
        TWO_STAGE, inputs, {"x": np.concatenate(directions)}, tuple(sweeps), tuple(names[:2]), names[5]
    )


SHAPES = (
    *((side, side) for side in (0.5, 1.0, 4.0, 16.0, 64.0, 200.0, 512.0)),
    *((1.0, 16.0), (8.0, 128.0), (32.0, 512.0), (512.0, 100.0)),
)
"""Targets, width and height: px from 1 to 512, and small ones that are meant as strides."""
_SHIFTS = np.array([0, 1, 2, 3, 5, 7, 9, 11, 13, 15, 16]) / 16
_GAPS = np.array([0.25, 0.5, 1.0])
_LARGER = np.array([16, 17, 18, 20, 22, 24, 28, 32, 40, 48, 64, 80, 104, 128]) / 16
_SMALLER = np.array([64, 60, 56, 52, 48, 44, 40, 36, 32, 26, 20, 16, 12, 8]) / 64
_NUDGE = 2.0**-10
"""All of these are sums of powers of 2, so that areas are exact and what is equal differs by nothing."""


def regression() -> Grid:
    """932 pairs: each of eleven targets left in six ways by a box that begins on it, and strangers of every size."""
    sweeps: list[Sweep] = []
    targets: list[Array] = []
    predictions: list[Array] = []
    for width, height in SHAPES:
        for name, boxes in _ways(width, height):
            start = len(_LARGER) * len(sweeps)
            targets.append(np.tile([0.0, 0.0, width, height], (len(boxes), 1)))
            predictions.append(boxes)
            meets = areas(targets[-1], boxes)["i"] > 0
            ruled = np.ones(len(boxes), bool)
            title = f"a box on a target of {width:g} x {height:g} {name}"
            along = np.arange(float(len(boxes)))
            sweeps.append(Sweep(title, start, start + len(boxes), True, ruled, meets, None, along))
    sides = (1.0, 16.0, 512.0, 4096.0)
    far = [(a, b, gap) for a in sides[:3] for b in sides[:3] for gap in (0.0, sides[2] - a)][:8]
    targets.append(np.array([[0.0, 0.0, a, a] for a, _, _ in far]))
    predictions.append(np.array([[gap, gap, gap + b, gap + b] for _, b, gap in far]))
    target, predicted = np.concatenate(targets), np.concatenate(predictions)
    inputs = areas(target, predicted)
    nudged = areas(target, predicted + np.array([0, 0, _NUDGE, 0]))
    directions = {name: (nudged[name] - values) / _NUDGE for name, values in inputs.items()}
    return Grid(REGRESSION, inputs, directions, tuple(sweeps))


def _ways(width: float, height: float) -> list[tuple[str, Array]]:
    """How a box leaves a target at the origin: boxes (14, 4) xyxy, the first on the target itself."""
    start = np.array([0.0, 0.0, width, height])
    side = np.concatenate([_SHIFTS, 1 + 2 * _GAPS]) * width
    # corner to corner: apart once it has gone the shorter side, then on until both are three long sides apart
    short, long = min(width, height), max(width, height)
    corner = np.concatenate([_SHIFTS * short, short + _GAPS * (3 * long - short)])
    zero, one = np.zeros(len(_LARGER)), np.ones(len(_LARGER))
    sidewards = start + np.stack([side, zero, side, zero], 1)
    diagonal = start + corner[:, None]
    return [
        ("moves sideways", sidewards),
        ("moves diagonally", diagonal),
        ("grows", _scaled(start, _LARGER, _LARGER)),
        ("shrinks", _scaled(start, _SMALLER, _SMALLER)),
        ("widens", _scaled(start, _LARGER, one)),
        ("narrows", _scaled(start, _SMALLER, one)),
    ]


def _scaled(box: Array, across: Array, down: Array) -> Array:
    """A box at the origin with its sides multiplied about its centre, (K, 4)."""
    half = box[2:] / 2
    reach = half * np.stack([across, down], 1)
    return np.concatenate([half - reach, half + reach], 1)


def areas(target: Array, predicted: Array) -> dict[str, Array]:
    """Intersection i, union u and enclosing area e of pairs of boxes (..., 4) xyxy, each (...), in squared units."""
    low, high = (
        np.maximum(target[..., :2], predicted[..., :2]),
        np.minimum(target[..., 2:], predicted[..., 2:]),
    )
    inner = np.maximum(high - low, 0).prod(-1)
    outer = np.maximum(target[..., 2:], predicted[..., 2:]) - np.minimum(target[..., :2], predicted[..., :2])
    own = [(box[..., 2:] - box[..., :2]).prod(-1) for box in (target, predicted)]
    return {"i": inner, "u": own[0] + own[1] - inner, "e": outer.prod(-1)}
