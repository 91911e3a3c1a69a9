"""Parameterized AP loss, exactly, without the positives x predictions matrix and without sorting the scores.

Source: Tao et al. 2021, Eq. 6. Written for N predictions of which P are positive:

    L = -1/P sum_i [ f(u_i; 1) - f(u_i; 5) * sum_j f(s_j - s_i; 2) (1 - f(u_j; 3)) / (1 + sum_j f(s_j - s_i; 4)) ]

over positives i and predictions j != i, with the quality u = 0 of negatives. f is piecewise linear (Eq. 7), and
differences are clipped to [-1, 1] and mapped to [0, 1] (Section 4.1).

Where f has a kink, one convention: a value on a knot has the slope of the segment right of it. A difference of
exactly 1, or a quality of exactly 1, therefore has no gradient, a difference of exactly -1 has the first segment's.

Four operators, compiled or in PyTorch, with what several processes must tell each other between them: the positives' own
scores; the bin of every score between the thresholds s_i + knot of all positives, with counts and sums of the bins; loss
and slopes from these; the gradient of every score by its bin. Counts and sums add up over processes, a ranking does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, distributed

from . import _ap_loss_reference as reference
from ._levels import check_levels, packed, working
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
    scores: Tensor | Sequence[Tensor],
    positives: Tensor,
    quality: Tensor,
    curves: Curves,
    through_denominator: bool = False,
    *,
    ignored: Tensor | None = None,
    across: bool = False,
) -> Tensor:
    """Eq. 6, a scalar, differentiable by scores and quality: at least -1, which is perfect, and at most 1 where f(.; 2) is
    nowhere above f(.; 4).

    scores: logits of all predictions of all classes, floating point: (N,), or a sequence of levels where a head wrote them,
    views (B, H, W, S, C) of its maps with S priors a cell, or (B, A, C), read without a copy. -inf leaves one out.
    positives (P,) int64: indices of scores, distinct; of levels (image x A + prior) x C + class, with the A priors of all
    levels in their order. quality (P,), localisation scores of the positives in [0, 1], values outside are clipped.
    ignored (I,) int64: rows, image x A + prior, distinct and without a positive, all of whose classes are left out and get
    the gradient 0; of (N,) scores each is a row. through_denominator: let gradient pass through f(.; 4), which the paper
    blocks (Table 7). No positives: 0. The loss is float32 for scores in half precision; sums are always float64.
    Memory: 6 bytes a score, the gradient and 2 kept for it (8 from 65,536 thresholds on).

    across: rank the scores of all processes together where torch.distributed has begun; then all of them must call this.
    Each gets the loss over all, and its gradient by the scores and qualities that are its own. Sum those gradients over the
    processes, do not average them.

    Raises TypeError or ValueError for tensors that do not fit, and on the CPU for a NaN, for a positive's score
    that is not within 1e12 of 0, for indices outside of scores or given twice and for a positive that is ignored; on a
    GPU, where looking would stall it, these make the loss NaN, but for the last two. The NaN of another process makes
    the loss NaN.
    """
    levels = _levels_of(scores)
    if ignored is None:
        ignored = positives.new_empty(0, dtype=torch.int64)
    _check(levels, positives, quality, ignored)
    device = levels[0].device
    call = _Call(torch.ops.detsearch if ready(device) else reference, curves, through_denominator, across)
    levels = [packed(working(level)) for level in levels]
    loss: Tensor = _Loss.apply(call, positives.contiguous(), quality, ignored.contiguous(), *levels)
    # only now: a process that ended before the exchange would leave the others waiting
    if device.type == "cpu":
        _check_values(loss.item(), levels, positives, quality, ignored)
    return loss


@dataclass(frozen=True)
class _Call:
    """operators: compiled or the reference; the rest as in `parameterized_ap_loss`."""

    operators: Any
    curves: Curves
    through_denominator: bool
    across: bool


class _Loss(torch.autograd.Function):
    """The four operators, joined for autograd and over processes."""

    @staticmethod
    def forward(
        ctx: Any, call: _Call, positives: Tensor, quality: Tensor, ignored: Tensor, *levels: Tensor
    ) -> Tensor:
        knots, steps, run = call.curves.knots, call.curves.steps, call.operators
        own, place = run.ap_loss_own(levels, positives)
        together = call.across and distributed.is_available() and distributed.is_initialized()
        known, begin = torch.stack([own, quality.double()]), 0
        if together:
            known, begin = _of_all_processes(known)
        bins, at, owner, totals = run.ap_loss_bins(levels, known[0], ignored, knots, steps)
        if together:
            distributed.all_reduce(totals)
        loss, slopes, by_score, by_quality = run.ap_loss_answer(
            totals, at, owner, *known, knots, steps, call.through_denominator
        )
        mine = slice(begin, begin + len(own))
        ctx.save_for_backward(place, slopes, by_score[mine], by_quality[mine], *bins)
        ctx.operators, ctx.quality_dtype = run, quality.dtype
        # not the levels themselves: nothing else may need their memory any more
        ctx.dtype, ctx.layouts = levels[0].dtype, [(level.shape, level.stride()) for level in levels]
        return loss.to(levels[0].dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        place, slopes, by_score, by_quality, *bins = ctx.saved_tensors
        by_levels: list[Tensor | None] = [None] * len(bins)
        if any(ctx.needs_input_grad[4:]):
            # multiplied once a bin, not once a score
            scaled = (slopes * factor).to(ctx.dtype), place, (by_score * factor).to(ctx.dtype)
            flat = ctx.operators.ap_loss_gradient(bins, *scaled)
            by_levels = [x.as_strided(*layout) for x, layout in zip(flat, ctx.layouts, strict=True)]
        by_qualities = (by_quality * factor).to(ctx.quality_dtype)
        return None, None, by_qualities, None, *by_levels


def _of_all_processes(mine: Tensor) -> tuple[Tensor, int]:
    """The columns (2, P) of all processes in their order, and where one's own begin."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    number = torch.tensor([mine.shape[1]], device=mine.device)
    numbers = [torch.empty_like(number) for _ in range(world)]
    distributed.all_gather(numbers, number)
    counts = torch.cat(numbers).tolist()
    padded = mine.new_zeros(2, max(counts))  # tensors of one size are gathered
    padded[:, : mine.shape[1]] = mine
    parts = [torch.empty_like(padded) for _ in range(world)]
    distributed.all_gather(parts, padded)
    known = [part[:, :count] for part, count in zip(parts, counts, strict=True)]
    return torch.cat(known, 1), sum(counts[:rank])


def register() -> None:
    """Tell torch the shapes of the compiled operators; called once their library is loaded."""
    torch.library.register_fake("detsearch::ap_loss_own", _fake_own)
    torch.library.register_fake("detsearch::ap_loss_bins", _fake_bins)
    torch.library.register_fake("detsearch::ap_loss_answer", _fake_answer)
    torch.library.register_fake("detsearch::ap_loss_gradient", _fake_gradient)


def _fake_own(levels: Sequence[Tensor], positives: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(positives, dtype=torch.float64), torch.empty_like(positives)


def _fake_bins(
    levels: Sequence[Tensor], own: Tensor, ignored: Tensor, knots: Tensor, steps: int
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    count = own.shape[0] * steps
    dtype = torch.int16 if count < SHORT_BINS else torch.int32
    bins = [own.new_empty(level.numel(), dtype=dtype) for level in levels]
    return bins, own.new_empty(count), own.new_empty(count, dtype=torch.int32), own.new_empty(2, count + 1)


def _fake_answer(
    totals: Tensor, at: Tensor, owner: Tensor, own: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return own.new_empty(()), own.new_empty(at.shape[0] + 1), torch.empty_like(own), torch.empty_like(own)


def _fake_gradient(bins: Sequence[Tensor], slopes: Tensor, place: Tensor, by_score: Tensor) -> list[Tensor]:
    return [slopes.new_empty(level.shape) for level in bins]


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


def _levels_of(scores: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """The levels; scores (N,) are one of N priors of one class."""
    if not isinstance(scores, Tensor):
        return list(scores)
    if scores.ndim != 1:
        raise ValueError(f"scores are (N,) or a sequence of levels, got {tuple(scores.shape)}")
    return [scores.view(1, -1, 1)]


def _check(levels: list[Tensor], positives: Tensor, quality: Tensor, ignored: Tensor) -> None:
    check_levels("scores", levels)
    if not quality.is_floating_point():
        raise TypeError(f"quality is floating point, got {quality.dtype}")
    for name, index in (("positives", positives), ("ignored", ignored)):
        if index.dtype != torch.int64:
            raise TypeError(f"{name} are int64 indices, got {index.dtype}")
    if positives.ndim != 1 or quality.shape != positives.shape or ignored.ndim != 1:
        raise ValueError(
            "positives and quality are (P,), ignored (I,), got "
            f"{tuple(positives.shape)}, {tuple(quality.shape)} and {tuple(ignored.shape)}"
        )
    # a dictionary keeps the order
    devices = dict.fromkeys(tensor.device for tensor in (*levels, positives, quality, ignored))
    if len(devices) > 1:
        raise ValueError(
            f"scores, positives, quality and ignored lie on one device, got {', '.join(map(str, devices))}"
        )


def _check_values(
    loss: float, levels: list[Tensor], positives: Tensor, quality: Tensor, ignored: Tensor
) -> None:
    """Raise ValueError for a positive that is ignored, and for what made the loss NaN."""
    if len(ignored):
        rows = positives // max(levels[0].shape[-1], 1)
        both = rows[torch.isin(rows, ignored)]
        if len(both):
            raise ValueError(f"a positive is not ignored, got row {int(both[0])} for both")
    # the operators only give NaN; the inputs are searched for the reason here, where time does not matter any more
    if math.isnan(loss):
        _explain(levels, positives, quality, ignored)


def _explain(levels: list[Tensor], positives: Tensor, quality: Tensor, ignored: Tensor) -> None:
    """Raise ValueError for what made the loss NaN; nothing where another process has the reason."""
    scores = torch.cat([level.flatten(1, -2) for level in levels], 1).flatten()
    for name, values in (("score", scores), ("quality", quality)):
        wrong = values.isnan().nonzero()
        if len(wrong):
            raise ValueError(
                f"no {name} may be NaN, got {len(wrong)} of {len(values)}, the first at {int(wrong[0])}"
            )
    rows = levels[0].shape[0] * sum(math.prod(level.shape[1:-1]) for level in levels)
    for name, index, number, of in (
        ("positives", positives, len(scores), "scores"),
        ("ignored", ignored, rows, "rows"),
    ):
        outside = index[(index < 0) | (index >= number)]
        if len(outside):
            raise ValueError(f"{name} index {number} {of}, got {int(outside[0])}")
    index, times = positives.unique(return_counts=True)
    if (times > 1).any():
        raise ValueError(f"positives are distinct, got {int(index[times > 1][0])} {int(times.max())} times")
    far = scores[positives][~(scores[positives].abs() <= FARTHEST)]
    if len(far):
        raise ValueError(f"a positive's score must be within {FARTHEST:g} of 0, got {float(far[0])}")
