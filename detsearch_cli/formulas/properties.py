"""What makes a formula a loss: finite values, the right direction, rest at the right end, consistency with distance.

Source: Liu et al. 2021, Section 3.2.2; monotonicity and convergence hold at w = 1 only, because CSE-Autoloss-B turns
upward beyond score w where w < 1. Each property is looked at for all formulas at once, on values (F, R) and
derivatives (F, R) over the rows of a grid. Derivatives are exact (forward mode): differences of values on the grid
would miss a gradient that is no number. The values are compared too, because a pole between two rows has the right
slope on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detsearch_cli.formulas.grids import Grid, Sweep
from detsearch_cli.formulas.operators import Array

LARGEST_VALUE = 1e6
LARGEST_SLOPE = 1e4
"""A positive exp(-x) has e^20 at logit -20: one such score would outweigh all others of a batch."""
FLAT = 0.01
"""Of the steepest slope of a sweep: at least this much on the wrong side, at most this much at rest."""
CONSTANT = 1e-9
NOISE = 1e-8
"""Relative: 1 - sigmoid(20) has so many digits in double precision."""
SAME = 1e-13
"""Relative: values of a regression closer than this are equal."""
NOTHING = 1e-13
"""Absolute: what cancels leaves rounding errors, which are no rise and no fall."""


class Stage(StrEnum):
    """Filters in the order in which they run."""

    VALIDITY = "validity"
    MONOTONICITY = "monotonicity and convergence"
    DISTANCE = "distance consistency"
    DUPLICATE = "duplicates"
    SIMULATION = "simulation"


class Reason(StrEnum):
    """Why a formula is no loss; each completes a sentence that begins with the formula."""

    NOT_FINITE = "is not a finite number"
    GRADIENT_NOT_FINITE = "has a gradient that is not a finite number"
    EXPLODES = "explodes"
    CONSTANT = "is constant"
    WRONG_SIGN = "has the wrong sign"
    TURNS = "turns around"
    TURNS_EARLY = "turns upward before score w"
    JUMPS = "jumps the wrong way"
    FLAT = "is flat where it must learn"
    NO_REST = "does not come to rest"
    FALLS = "falls while the box departs"
    DUPLICATE = "is a function that is there already"
    DOES_NOT_LEARN = "does not learn in the simulation"


@dataclass(frozen=True)
class Finding:
    """One property of all formulas. failed (F,); row (F,) of the grid where it fails, `rows` of them in a line."""

    stage: Stage
    reason: Reason
    where: str
    failed: Any  # (F,) bool; numpy's stubs take a reduction over axes for a scalar
    row: NDArray[np.intp]
    rows: int = 1


def validity(values: Array, slopes: Array | None) -> Iterator[Finding]:
    """Finite and of moderate size in every row."""
    for array, limit, no_number in (
        (values, LARGEST_VALUE, Reason.NOT_FINITE),
        (slopes, LARGEST_SLOPE, Reason.GRADIENT_NOT_FINITE),
    ):
        if array is None:
            continue
        # a comparison with NaN is false, so NaN is large
        large = ~(np.maximum(array.max(1), -array.min(1)) <= limit)
        failed = np.flatnonzero(large)
        row, finite = np.zeros(len(array), np.intp), np.ones(len(array), bool)
        row[failed] = (~(np.abs(array[failed]) <= limit)).argmax(1)
        finite[failed] = np.isfinite(array[failed]).all(1)
        # where it is infinite says more than where it began to be large
        lost = np.flatnonzero(~finite)
        row[lost] = (~np.isfinite(array[lost])).argmax(1)
        yield Finding(Stage.VALIDITY, no_number, "", large & ~finite, row)
        yield Finding(Stage.VALIDITY, Reason.EXPLODES, "", large & finite, row)


def gradient(slopes: Array) -> Finding:
    """What is left of validity for regression: sqrt(i) has a finite value and no gradient where boxes are apart."""
    lost = ~np.isfinite(slopes)
    return Finding(Stage.VALIDITY, Reason.GRADIENT_NOT_FINITE, "", lost.any(1), lost.argmax(1))


def shape(grid: Grid, values: Array, slopes: Array | None) -> Iterator[Finding]:
    """Stages 2 and 3 for formulas that are valid: monotonicity and convergence, or distance consistency."""
    if slopes is None:
        yield from _departures(grid, values)
        return
    for sweep in grid.sweeps:
        yield from _sweep(sweep, values[:, sweep.rows], slopes[:, sweep.rows])


def _sweep(sweep: Sweep, values: Array, slopes: Array) -> Iterator[Finding]:
    """One sweep of a logit, values and slopes (F, K). Earlier findings explain later ones."""
    stage, name, start = Stage.MONOTONICITY, sweep.name, sweep.start
    upward = slopes if sweep.rises else -slopes
    steepest = np.abs(slopes).max(1, keepdims=True)
    if sweep.rests is not None:
        none = np.zeros(len(values), np.intp)
        yield Finding(stage, Reason.CONSTANT, name, steepest[:, 0] <= CONSTANT, none + start)
    wrong = (upward < -NOISE * steepest) & sweep.ruled
    failed, row = wrong.any(1), wrong.argmax(1)
    if sweep.rests is not None:
        never = ~(upward > NOISE * steepest).any(1)
        yield Finding(stage, Reason.WRONG_SIGN, name, never, np.abs(slopes).argmax(1) + start)
    yield Finding(
        stage, Reason.TURNS if sweep.rests is not None else Reason.TURNS_EARLY, name, failed, row + start
    )
    steps = np.diff(values) if sweep.rises else -np.diff(values)
    back = (steps < -NOISE * np.abs(values).max(1, keepdims=True)) & (sweep.ruled[1:] & sweep.ruled[:-1])
    yield Finding(stage, Reason.JUMPS, name, back.any(1), back.argmax(1) + start, 2)
    if sweep.rests is not None:
        flat = (upward < FLAT * steepest) & sweep.learns
        yield Finding(stage, Reason.FLAT, name, flat.any(1), flat.argmax(1) + start)
        moving = upward[:, sweep.rests] > FLAT * steepest[:, 0]
        yield Finding(stage, Reason.NO_REST, name, moving, np.full(len(values), start + sweep.rests))


def _departures(grid: Grid, values: Array) -> Iterator[Finding]:
    """Boxes that leave their targets: the value never falls, and rises while they meet."""
    count, length = len(grid.sweeps), len(grid.sweeps[0].along)
    along = values[:, : count * length].reshape(len(values), count, length)
    steps = np.diff(along)
    # scaled by what is compared: one value near a pole must not hide that the others fall
    size = SAME * np.maximum(np.abs(along[..., 1:]), np.abs(along[..., :-1])) + NOTHING
    meets = np.stack([sweep.learns[:-1] for sweep in grid.sweeps])
    falls, rises = steps < -size, steps > size
    never = ~rises.any((1, 2))
    start = np.zeros(len(values), np.intp)
    yield Finding(Stage.DISTANCE, Reason.CONSTANT, "", never & ~falls.any((1, 2)), start, 2)
    yield Finding(Stage.DISTANCE, Reason.WRONG_SIGN, "", never, start, 2)
    for reason, wrong in ((Reason.FALLS, falls), (Reason.FLAT, ~rises & meets)):
        flat = wrong.reshape(len(values), count * (length - 1))
        first = flat.argmax(1)
        row = first // (length - 1) * length + first % (length - 1)
        yield Finding(Stage.DISTANCE, reason, "", flat.any(1), row, 2)
