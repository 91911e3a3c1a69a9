"""Parameterized AP loss, exactly, without the positives x predictions matrix and without sorting the scores.

Source: Tao et al. 2021, Eq. 6. Written for N predictions of which P are positive:

    L = -1/P sum_i [ f(u_i; 1) - f(u_i; 5) * sum_j f(s_j - s_i; 2) (1 - f(u_j; 3)) / (1 + sum_j f(s_j - s_i; 4)) ]

over positives i and predictions j != i, with the quality u = 0 of negatives. f is piecewise linear (Eq. 7), and
differences are clipped to [-1, 1] and mapped to [0, 1] (Section 4.1).

Where f has a kink, one convention: a value on a knot has the slope of the segment right of it. A difference of
exactly 1, or a quality of exactly 1, therefore has no gradient, a difference of exactly -1 has the first segment's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from . import _ap_loss_reference as reference
from .loader import ready

# these three are constants of csrc/ap_loss/ap_loss.h, too
MOST_KNOTS = 33
FARTHEST = 1e12
SHORT_BINS = 65536


class Curves:
    """The five functions f of Eq. 6, in its order; each a sequence of points (x, y) from (0, 0) to (1, 1).

    x increases strictly, y does not decrease; at most 33 points a function, numbers may differ. Raises ValueError
    naming the function and the point that break this.
    """

    def __init__(self, points: Sequence[Sequence[Sequence[float]]]) -> None:
        if len(points) != 5:
            raise ValueError(f"the loss has 5 functions, got {len(points)}")
        for number, curve in enumerate(points, start=1):
            _check_curve(number, [tuple(map(float, point)) for point in curve])
        self.points = tuple(tuple((float(x), float(y)) for x, y in curve) for curve in points)
        # float64, whatever the scores are: differences of nearby knots divide
        self.knots = torch.tensor([point for curve in self.points for point in curve], dtype=torch.float64)
        # knots that both functions have are one threshold; passed on, because the operator's fake kernel cannot count them
        self.steps = len({x for curve in (self.points[1], self.points[3]) for x, _ in curve})

    @classmethod
    def identity(cls) -> Curves:
        """f(x) = x five times: where the paper's search begins."""
        return cls([[(0, 0), (1, 1)]] * 5)

    def __repr__(self) -> str:
        return f"Curves({self.points!r})"


def parameterized_ap_loss(
    scores: Tensor, positives: Tensor, quality: Tensor, curves: Curves, through_denominator: bool = False
) -> Tensor:
    """Eq. 6, a scalar between -1 (perfect) and 1, differentiable by scores and quality.

    scores (N,), logits of all predictions of all classes, floating point; -inf leaves a prediction out.
    positives (P,), int64, their distinct indices in scores. quality (P,), localisation scores of the positives in
    [0, 1], values outside are clipped. through_denominator: let gradient pass through f(.; 4), which the paper
    blocks (Table 7). No positives: 0. The loss is float32 for scores in half precision; sums are always float64.
    Memory: 6 bytes a score, the gradient and 2 kept for it (8 from 65,536 thresholds on).

    Raises TypeError or ValueError for tensors that do not fit, and on the CPU for a NaN, for a positive's score
    that is not within 1e12 of 0 and for indices outside of scores or given twice; on a GPU, where looking would
    stall it, these make the loss NaN.
    """
    _check(scores, positives, quality)
    working = scores.dtype if scores.dtype == torch.float64 else torch.float32
    inputs = scores.to(working).contiguous(), positives.contiguous(), quality.to(working).contiguous()
    if ready(scores.device):
        loss = torch.ops.detsearch.parameterized_ap_loss(
            *inputs, curves.knots, curves.steps, through_denominator
        )[0]
    else:
        loss = reference.ParameterizedApLoss.apply(*inputs, curves.knots, through_denominator)
    # the operators only give NaN; the inputs are searched for the reason here, where time does not matter any more
    if loss.device.type == "cpu" and math.isnan(loss.item()):
        _explain(*inputs)
    return loss


def register() -> None:
    """Shapes and gradient of the compiled operators, once they are loaded."""
    torch.library.register_fake("detsearch::parameterized_ap_loss", _fake)
    torch.library.register_fake("detsearch::parameterized_ap_loss_backward", _fake_backward)
    torch.library.register_autograd("detsearch::parameterized_ap_loss", _backward, setup_context=_keep)


def _fake(
    scores: Tensor, positives: Tensor, quality: Tensor, knots: Tensor, steps: int, through_denominator: bool
) -> tuple[Tensor, ...]:
    number = positives.shape[0]
    dtype = torch.int16 if number * steps < SHORT_BINS else torch.int32
    return (
        scores.new_empty(()),
        torch.empty_like(scores, dtype=dtype),
        scores.new_empty(number * steps + 1),
        scores.new_empty(number),
        scores.new_empty(number),
    )


def _fake_backward(
    positives: Tensor, bins: Tensor, slopes: Tensor, by_score: Tensor, gradient: Tensor
) -> Tensor:
    return slopes.new_empty(bins.shape)


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # or zeros are made for the bins
    ctx.save_for_backward(inputs[1], *output[1:])


def _backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor | None, *others: None) -> tuple:
    if gradient is None:
        return (None,) * 6
    *kept, by_quality = ctx.saved_tensors  # type: ignore[attr-defined]
    by_scores = by_qualities = None
    if ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
        by_scores = torch.ops.detsearch.parameterized_ap_loss_backward(*kept, gradient)
    if ctx.needs_input_grad[2]:  # type: ignore[attr-defined]
        by_qualities = by_quality * gradient
    return by_scores, None, by_qualities, None, None, None


def _check_curve(number: int, curve: list[tuple[float, ...]]) -> None:
    if not 2 <= len(curve) <= MOST_KNOTS or any(len(point) != 2 for point in curve):
        raise ValueError(f"function {number} needs 2 to {MOST_KNOTS} points (x, y), got {curve}")
    if curve[0] != (0.0, 0.0) or curve[-1] != (1.0, 1.0):
        raise ValueError(f"function {number} must lead from (0, 0) to (1, 1), got {curve[0]} to {curve[-1]}")
    for (x0, y0), (x1, y1) in pairwise(curve):
        if not (x0 < x1 and y0 <= y1):
            raise ValueError(
                f"function {number} must have increasing x and no decreasing y, got ({x0}, {y0}) before ({x1}, {y1})"
            )


def _check(scores: Tensor, positives: Tensor, quality: Tensor) -> None:
    if not scores.is_floating_point() or not quality.is_floating_point():
        raise TypeError(f"scores and quality are floating point, got {scores.dtype} and {quality.dtype}")
    if positives.dtype != torch.int64:
        raise TypeError(f"positives are int64 indices into scores, got {positives.dtype}")
    if scores.ndim != 1 or positives.ndim != 1 or quality.shape != positives.shape:
        raise ValueError(
            "scores are (N,), positives and quality (P,), got "
            f"{tuple(scores.shape)}, {tuple(positives.shape)} and {tuple(quality.shape)}"
        )
    if not scores.device == positives.device == quality.device:
        raise ValueError(
            "scores, positives and quality lie on one device, got "
            f"{scores.device}, {positives.device} and {quality.device}"
        )


def _explain(scores: Tensor, positives: Tensor, quality: Tensor) -> None:
    """Raise ValueError for what made the loss NaN."""
    for name, values in (("score", scores), ("quality", quality)):
        wrong = values.isnan().nonzero()
        if len(wrong):
            raise ValueError(
                f"no {name} may be NaN, got {len(wrong)} of {len(values)}, the first at {int(wrong[0])}"
            )
    outside = positives[(positives < 0) | (positives >= len(scores))]
    if len(outside):
        raise ValueError(f"positives index {len(scores)} scores, got {int(outside[0])}")
    index, times = positives.unique(return_counts=True)
    if (times > 1).any():
        raise ValueError(f"positives are distinct, got {int(index[times > 1][0])} {int(times.max())} times")
    far = scores[positives][~(scores[positives].abs() <= FARTHEST)]
    if len(far):
        raise ValueError(f"a positive's score must be within {FARTHEST:g} of 0, got {float(far[0])}")
