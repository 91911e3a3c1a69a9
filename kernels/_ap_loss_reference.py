"""The parameterized AP loss in plain PyTorch: what runs where there is no compiler, and what the kernels must equal.

The same way as csrc/ap_loss.cpp: scores fall into the bins between the thresholds s_i + knot, suffix sums over bins
answer every positive, and a score's gradient is looked up by its bin. Scores pass in pieces, so that temporaries
stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FARTHEST = 1e12
PIECE = {"cpu": 1 << 14, "cuda": 1 << 24}  # scores at a time


@dataclass(frozen=True)
class Curve:
    """f of Eq. 7: knots x (K,), values y (K,), float64."""

    x: Tensor
    y: Tensor

    def passed(self, at: Tensor) -> Tensor:
        """Number of knots at or below each value."""
        return torch.bucketize(at, self.x, right=True)

    def slope(self, at: Tensor) -> Tensor:
        """Derivative, of the segment right of a knot; 0 below 0 and from 1 on."""
        inner = self.y.diff() / self.x.diff()
        return torch.cat([inner.new_zeros(1), inner, inner.new_zeros(1)])[self.passed(at)]

    def value(self, at: Tensor) -> Tensor:
        """f."""
        left = (self.passed(at) - 1).clamp(min=0)
        return (self.y[left] + (at - self.x[left]) * self.slope(at)).clamp(max=1)


def curves_of(knots: Tensor) -> list[Curve]:
    """knots (K, 2): five curves one after the other, each from x = 0 to x = 1."""
    ends = (knots[:, 0] == 1).nonzero()[:, 0] + 1
    parts = knots.tensor_split(ends.cpu()[:-1])
    return [Curve(*part.T.contiguous()) for part in parts]


@dataclass(frozen=True)
class Ladder:
    """Knots of f(.; 2) and f(.; 4) over a difference of scores, merged: offset (K,), both slopes right of it."""

    offset: Tensor
    above: Tensor
    rank: Tensor

    @staticmethod
    def of(above: Curve, rank: Curve) -> Ladder:
        x = torch.cat([above.x, rank.x]).unique()
        return Ladder(2 * x - 1, above.slope(x) / 2, rank.slope(x) / 2)


class Bins:
    """Finds how many edges lie at or below a score, through a uniform grid with an edge or none in most cells."""

    def __init__(self, edges: Tensor) -> None:
        self.edges = edges
        self.grid = edges.device.type == "cpu" and len(edges) > 0
        if not self.grid:
            return
        self.cells = 1 << min(16, max(6, (8 * len(edges)).bit_length()))
        self.low = edges[0]
        self.scale = self.cells / (edges[-1] - edges[0]).clamp(min=1)
        first = torch.searchsorted(self._cell(edges), torch.arange(self.cells + 1, dtype=torch.int32))
        many = first.diff()
        padded = torch.cat([edges, edges.new_full((1,), torch.nan)])
        self.edge = torch.where(many > 0, padded[first[:-1]], torch.nan)  # nothing passes a NaN
        # cells with several edges are marked by a negative number
        self.first = torch.where(many > 1, -1, first[:-1]).to(torch.int32)

    def _cell(self, scores: Tensor) -> Tensor:
        x = (scores - self.low).mul_(self.scale).nan_to_num_(0.0)
        return x.clamp_(0, self.cells - 1).to(torch.int32)

    def of(self, scores: Tensor) -> Tensor:
        """scores (n,) -> (n,) int32 in [0, len(edges)]."""
        if not self.grid:
            return torch.bucketize(scores, self.edges, right=True, out_int32=True)
        cell = self._cell(scores)
        found = self.first.index_select(0, cell)
        hard = (found < 0).nonzero()[:, 0]
        found += scores >= self.edge.index_select(0, cell)
        if len(hard):
            found[hard] = torch.bucketize(scores[hard], self.edges, right=True, out_int32=True)
        return found


def pieces(scores: Tensor) -> Iterator[Tensor]:
    """Scores a piece at a time."""
    return iter(scores.split(PIECE.get(scores.device.type, 1 << 24)))


def edges_of(threshold: Tensor, dtype: torch.dtype) -> Tensor:
    """The least number of this dtype not below each threshold."""
    nearest = threshold.to(dtype)
    return torch.where(nearest < threshold, nearest.nextafter(nearest.new_tensor(torch.inf)), nearest)


def usable(scores: Tensor, positives: Tensor, quality: Tensor) -> Tensor:
    """Whether positives are distinct indices of finite scores and qualities are numbers; a boolean scalar."""
    inside = (positives >= 0) & (positives < len(scores))
    if not len(scores):
        return inside.all()
    own = scores[positives.clamp(0, len(scores) - 1)]
    distinct = (positives.sort().values.diff() > 0).all()
    return (inside & (own.abs() <= FARTHEST) & ~quality.isnan()).all() & distinct


@dataclass(frozen=True)
class Rows:
    """Every positive's term of Eq. 6 (P,) and the loss's derivatives: by its sums, and by its score and quality as
    far as they act in its own row."""

    term: Tensor
    by_above: Tensor
    by_rank: Tensor
    by_score: Tensor
    by_quality: Tensor

    @staticmethod
    def of(curves: list[Curve], ladder: Ladder, prefix: Tensor, u: Tensor, through: bool) -> Rows:
        """prefix (4, P, K): count, excess and both weighted, at every threshold of every positive. u: quality."""
        middle, number = u.new_tensor(0.5), len(u)
        between = -prefix.diff(dim=2)
        rank_slope, rank = (between[:2] * ladder.rank[:-1]).sum(2)
        above_slope, above = (between[2:] * ladder.above[:-1]).sum(2)
        above = (above - (1 - curves[2].value(u)) * curves[1].value(middle)).clamp(min=0)
        rank = 1 + (rank - curves[3].value(middle)).clamp(min=0)
        ratio, scale = above / rank, curves[4].value(u)
        by_above = scale / (number * rank)
        by_rank = by_above * ratio * through
        return Rows(
            -(curves[0].value(u) - ratio * scale) / number,
            by_above,
            by_rank,
            by_rank * rank_slope - by_above * above_slope,
            -(curves[0].slope(u) - ratio * curves[4].slope(u)) / number,
        )


def forward(
    scores: Tensor, positives: Tensor, quality: Tensor, knots: Tensor, through_denominator: bool
) -> tuple[Tensor, ...]:
    """As the compiled operator: loss (), bins (N,), slopes (B + 1,), gradients by the positives' scores, qualities.

    The loss is NaN where an input is not usable.
    """
    if len(positives) == 0:
        return without_positives(scores)
    curves = curves_of(knots.to(scores.device))
    ladder = Ladder.of(curves[1], curves[3])
    sound = usable(scores, positives, quality)
    own = scores[positives.clamp(0, max(0, len(scores) - 1))] if len(scores) else torch.zeros_like(quality)
    own, u = torch.where(sound, own, 0).double(), quality.double()
    at, owner = (own[:, None] + ladder.offset).flatten().sort(stable=True)
    bins = Bins(edges_of(at, scores.dtype))
    kept, count, total, sound = fill(bins, scores, sound)

    # a bin's excess over its left threshold, and what positives weigh less than 1
    left, part = torch.cat([at[:1], at]), curves[2].value(u)
    of_own = bins.of(own.to(scores.dtype)).long()
    less = torch.zeros_like(count).index_add_(0, of_own, part)
    less_total = torch.zeros_like(count).index_add_(0, of_own, part * own)
    excess = (total - count * left).clamp(min=0)
    weighted = (total - less_total - (count - less) * left).clamp(min=0)
    prefix = at.new_empty(4, len(at))
    prefix[:, owner] = torch.stack([*suffix(count, excess, at), *suffix(count - less, weighted, at)])
    rows = Rows.of(curves, ladder, prefix.view(4, len(own), -1), u, through_denominator)

    # over all rows: slopes in each bin, and the derivative by a weight at its left threshold
    row, step = owner // len(ladder.offset), owner % len(ladder.offset)
    above = running(rows.by_above[row] * rise(ladder.above)[step])
    rank = running(rows.by_rank[row] * rise(ladder.rank)[step])
    weight_at = torch.cat([at.new_zeros(2), (above[1:-1] * at.diff()).cumsum(0)])
    weight = weight_at[of_own] + above[of_own] * (own - left[of_own])
    weight -= rows.by_above * curves[1].value(u.new_tensor(0.5))
    slopes = above - rank
    slopes[-1] = 0  # above every threshold nothing changes
    by_score = rows.by_score + (1 - part) * above[of_own] - rank[of_own]
    by_quality = rows.by_quality - curves[2].slope(u) * weight
    results = (rows.term.sum(), slopes, by_score, by_quality)
    loss, *others = [torch.where(sound, x, torch.nan).to(scores.dtype) for x in results]
    return loss, kept, *others


def without_positives(scores: Tensor) -> tuple[Tensor, ...]:
    """What `forward` returns then: 0, or NaN where a score is NaN, and no gradients."""
    loss = torch.where(scores.isnan().any(), torch.nan, 0.0).to(scores.dtype)
    bins = torch.zeros_like(scores, dtype=torch.int32)
    return loss, bins, scores.new_zeros(1), scores.new_empty(0), scores.new_empty(0)


def backward(positives: Tensor, bins: Tensor, slopes: Tensor, by_score: Tensor, gradient: Tensor) -> Tensor:
    """Gradient by the scores (N,)."""
    result = (slopes * gradient).index_select(0, bins)
    result[positives] = by_score * gradient
    return result


def fill(bins: Bins, scores: Tensor, sound: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The bin of every score (N,), count and sum of the scores in each (B + 1,), and whether none is NaN.

    The lowest and highest bins' sums matter to no positive and stay 0: their scores may be infinite.
    """
    size = len(bins.edges) + 1
    kept = torch.empty_like(scores, dtype=torch.int32)
    count = torch.zeros(size, dtype=torch.int64, device=scores.device)
    total = torch.zeros(size, dtype=torch.float64, device=scores.device)
    for piece, found in zip(pieces(scores), pieces(kept), strict=True):
        found.copy_(bins.of(piece))
        count += torch.bincount(found, minlength=size)
        total += torch.bincount(found, weights=piece.double(), minlength=size)
        sound = sound & ~piece.isnan().any()
    total[0] = total[-1] = 0
    return kept, count.double(), total, sound


def suffix(count: Tensor, excess: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """At every threshold (B,): scores right of it, and the sum of min(score, highest threshold) - threshold."""
    right = count[1:].flip(0).cumsum(0).flip(0)
    gained = torch.cat([excess[1:-1] + right[1:] * at.diff(), at.new_zeros(1)])
    return right, gained.flip(0).cumsum(0).flip(0)


def rise(slope: Tensor) -> Tensor:
    """By how much the slope grows at each knot."""
    return torch.cat([slope[:1], slope.diff()])


def running(change: Tensor) -> Tensor:
    """Value in each bin (B + 1,) from its changes at thresholds (B,)."""
    return torch.cat([change.new_zeros(1), change.cumsum(0)])


class ParameterizedApLoss(torch.autograd.Function):
    """`forward` and `backward` joined for autograd."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        loss, bins, slopes, by_score, by_quality = forward(*inputs)
        ctx.save_for_backward(inputs[1], bins, slopes, by_score, by_quality)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        positives, bins, slopes, by_score, by_quality = ctx.saved_tensors
        by_scores = backward(positives, bins, slopes, by_score, gradient)
        return by_scores, None, by_quality * gradient, None, None
