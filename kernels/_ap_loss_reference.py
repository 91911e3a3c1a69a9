"""The parameterized AP loss in plain PyTorch: what runs where there is no compiler, and what the kernels must equal.

The last four functions are the operators; `ap_loss.py` says in which order they run. They work as csrc/ap_loss/ap_loss.cpp
does: scores fall into the bins between the thresholds s_i + knot, suffix sums over bins give the sums of every positive,
and a score's gradient is looked up by its bin. Scores are read a chunk at a time, so that temporaries stay in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FARTHEST = 1e12
CHUNK = {
    "cpu": 1 << 14,
    "cuda": 1 << 24,
}  # scores at a time: on a CPU they stay in the cache, a GPU wants many at once


@dataclass(frozen=True)
class Curve:
    """f of Eq. 7: knots x (K,), values y (K,), float64."""

    x: Tensor
    y: Tensor

    def knots_passed(self, at: Tensor) -> Tensor:
        """Number of knots at or below each value."""
        return torch.bucketize(at, self.x, right=True)

    def slope(self, at: Tensor) -> Tensor:
        """Derivative, of the segment right of a knot; 0 below 0 and from 1 on."""
        inner = self.y.diff() / self.x.diff()
        return torch.cat([inner.new_zeros(1), inner, inner.new_zeros(1)])[self.knots_passed(at)]

    def value(self, at: Tensor) -> Tensor:
        """f."""
        left = (self.knots_passed(at) - 1).clamp(min=0)
        return (self.y[left] + (at - self.x[left]) * self.slope(at)).clamp(max=1)


def curves_of(knots: Tensor) -> list[Curve]:
    """knots (K, 2): five curves one after the other, each from x = 0 to x = 1."""
    ends = (knots[:, 0] == 1).nonzero()[:, 0] + 1
    parts = knots.tensor_split(ends.cpu()[:-1])
    return [Curve(*part.T.contiguous()) for part in parts]


@dataclass(frozen=True)
class MergedKnots:
    """Knots of f(.; 2) and f(.; 4) over a difference of scores, merged, so that one pass serves both.

    offset (K,); above, rank (K,): both slopes right of each.
    """

    offset: Tensor
    above: Tensor
    rank: Tensor

    @staticmethod
    def of(above: Curve, rank: Curve) -> MergedKnots:
        x = torch.cat([above.x, rank.x]).unique()
        # x in [0, 1] is a difference in [-1, 1], so a slope over the difference is half of that over x
        return MergedKnots(2 * x - 1, above.slope(x) / 2, rank.slope(x) / 2)


class Bins:
    """Finds how many edges lie at or below a score, through a uniform grid with an edge or none in most cells."""

    def __init__(self, edges: Tensor) -> None:
        self.edges = edges
        # a GPU searches for all scores at once and is not helped by a table
        self.grid = edges.device.type == "cpu" and len(edges) > 0
        if not self.grid:
            return
        self.cells = 1 << min(16, max(6, (8 * len(edges)).bit_length()))
        self.low = edges[0]
        # a range of at least 1: equal edges would divide by 0
        self.scale = self.cells / (edges[-1] - edges[0]).clamp(min=1)
        first = torch.searchsorted(self._cell(edges), torch.arange(self.cells + 1, dtype=torch.int32))
        many = first.diff()
        padded = torch.cat([edges, edges.new_full((1,), torch.nan)])
        self.edge = torch.where(many > 0, padded[first[:-1]], torch.nan)  # nothing passes a NaN
        # cells with several edges are marked by a negative number
        self.first = torch.where(many > 1, -1, first[:-1]).to(torch.int32)

    def _cell(self, scores: Tensor) -> Tensor:
        # limited before the conversion: an infinite score has no integer
        x = (scores - self.low).mul_(self.scale).nan_to_num_(0.0)
        return x.clamp_(0, self.cells - 1).to(torch.int32)

    def of(self, scores: Tensor) -> Tensor:
        """scores (n,) -> (n,) int32 in [0, len(edges)]."""
        if not self.grid:
            return torch.bucketize(scores, self.edges, right=True, out_int32=True)
        cell = self._cell(scores)
        bin_of = self.first.index_select(0, cell)
        crowded = (bin_of < 0).nonzero()[:, 0]
        bin_of += scores >= self.edge.index_select(0, cell)
        if len(crowded):
            bin_of[crowded] = torch.bucketize(scores[crowded], self.edges, right=True, out_int32=True)
        return bin_of


def chunks(scores: Tensor) -> Iterator[Tensor]:
    """Scores a chunk at a time."""
    return iter(scores.split(CHUNK.get(scores.device.type, 1 << 24)))


def edges_of(threshold: Tensor, dtype: torch.dtype) -> Tensor:
    """The least number of this dtype not below each threshold."""
    nearest = threshold.to(dtype)
    return torch.where(nearest < threshold, nearest.nextafter(nearest.new_tensor(torch.inf)), nearest)


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
    def of(curves: list[Curve], merged: MergedKnots, suffix_sums: Tensor, u: Tensor, through: bool) -> Rows:
        """suffix_sums (4, P, K): count, excess and both weighted, at every threshold of every positive. u: quality."""
        middle, number = u.new_tensor(0.5), len(u)
        between = -suffix_sums.diff(dim=2)
        rank_slope, rank = (between[:2] * merged.rank[:-1]).sum(2)
        above_slope, above = (between[2:] * merged.above[:-1]).sum(2)
        # the prediction itself is taken out of its sums; what rounding leaves below 0 would turn the sign of a gradient
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


def suffix(count: Tensor, excess: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """At every threshold (B,): scores right of it, and the sum of min(score, highest threshold) - threshold."""
    right = count[1:].flip(0).cumsum(0).flip(0)
    gained = torch.cat([excess[1:-1] + right[1:] * at.diff(), at.new_zeros(1)])
    return right, gained.flip(0).cumsum(0).flip(0)


def slope_changes(slope: Tensor) -> Tensor:
    """By how much the slope grows at each knot."""
    return torch.cat([slope[:1], slope.diff()])


def value_of_bins(change: Tensor) -> Tensor:
    """Value in each bin (B + 1,) from its changes at thresholds (B,)."""
    return torch.cat([change.new_zeros(1), change.cumsum(0)])


def flat(level: Tensor) -> Tensor:
    """All scores of a packed level (n,) in the order of its memory, which no copy is made of."""
    return level.as_strided((level.numel(),), (1,))


def places(levels: Sequence[Tensor], rows: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of every level: its `flat` scores, where in them the first class of each row (R,) is, and whether it is there (R,).

    A row is image x priors of all levels + prior. Where it is not there, the place is any.
    """
    priors, first = sum(math.prod(level.shape[1:-1]) for level in levels), 0
    for level in levels:
        number = math.prod(level.shape[1:-1])
        if level.numel() == 0:
            nowhere = torch.zeros_like(rows)
            yield flat(level), nowhere, nowhere.bool()
            continue
        image, prior = rows // priors, rows % priors - first
        inside = (rows >= 0) & (image < len(level)) & (prior >= 0) & (prior < number)
        at = image * level.stride(0)
        for size, stride in zip(level.shape[-2:0:-1], level.stride()[-2:0:-1], strict=True):
            at = at + prior % size * stride
            prior = prior // size
        yield flat(level), torch.where(inside, at, 0), inside
        first += number


def fill(finder: Bins, scores: Tensor, count: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """The bin of every score (n,), and whether none is NaN; adds to count and sum of the scores in each bin (B + 1,)."""
    kept = torch.empty_like(scores, dtype=torch.int32)
    valid = torch.ones((), dtype=torch.bool, device=scores.device)
    for chunk, bin_of in zip(chunks(scores), chunks(kept), strict=True):
        bin_of.copy_(finder.of(chunk))
        count += torch.bincount(bin_of, minlength=len(count))
        total += torch.bincount(bin_of, weights=chunk.double(), minlength=len(count))
        valid = valid & ~chunk.isnan().any()
    return kept, valid


def ap_loss_own(levels: Sequence[Tensor], positives: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of the positives (P,), float64, and their places in memory, (P,) int64, all levels one after the other.

    A score is NaN and its place -1 where there is none; all are NaN where a positive is given twice.
    """
    own, place = (
        positives.new_full(positives.shape, math.nan, dtype=torch.float64),
        torch.full_like(positives, -1),
    )
    classes, begin = max(levels[0].shape[-1], 1), 0
    for level, (scores, at, inside) in zip(levels, places(levels, positives // classes), strict=True):
        if len(scores):
            at = at + positives % classes * level.stride(-1)
            own = torch.where(inside, scores[at].double(), own)
            place = torch.where(inside, begin + at, place)
        begin += len(scores)
    # no early return: on a GPU a look at the indices would wait for it
    distinct = (positives.sort().values.diff() > 0).all()
    return torch.where(distinct, own, math.nan), place


def ap_loss_bins(
    levels: Sequence[Tensor], own: Tensor, ignored: Tensor, knots: Tensor, steps: int
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """own (P,): scores of all positives; ignored (I,): rows.

    The bin of every score, (n,) int32 a level in the order of its memory; thresholds in ascending order (B,) and their
    owners (B,), positive x steps + step; how many scores are in each bin and their sum, float64 (2, B + 1). These are NaN
    where a score is and where an ignored row does not exist. The lowest bin and the sum of the highest matter to no
    positive and are 0: their scores may be infinite.
    """
    curves = curves_of(knots.to(own.device))
    offset = MergedKnots.of(curves[1], curves[3]).offset
    # thresholds that are NaN could not be sorted; the answer is NaN then
    usable = torch.where(own.abs() <= FARTHEST, own, 0.0)
    at, owner = (usable[:, None] + offset).flatten().sort(stable=True)  # equal ones in the order of owners
    finder = Bins(edges_of(at, levels[0].dtype))
    size = len(at) + 1
    count = torch.zeros(size, dtype=torch.int64, device=own.device)
    total = torch.zeros(size, dtype=torch.float64, device=own.device)
    rows = levels[0].shape[0] * sum(math.prod(level.shape[1:-1]) for level in levels)
    valid = ((ignored >= 0) & (ignored < rows)).all()
    kept = []
    for level, (scores, first, inside) in zip(levels, places(levels, ignored), strict=True):
        found, numbers = fill(finder, scores, count, total)
        classes = torch.arange(level.shape[-1], device=own.device) * level.stride(-1)
        left_out = (first[inside, None] + classes).flatten()
        count -= torch.bincount(found[left_out], minlength=size)
        total -= torch.bincount(found[left_out], weights=scores[left_out].double(), minlength=size)
        found[left_out] = 0  # the lowest bin adds nothing and has no slope
        kept.append(found)
        valid = valid & numbers
    count[0] = total[0] = total[-1] = 0
    totals = torch.where(valid, torch.stack([count.double(), total]), math.nan)
    return kept, at, owner.int(), totals


def ap_loss_answer(
    totals: Tensor,
    at: Tensor,
    owner: Tensor,
    own: Tensor,
    quality: Tensor,
    knots: Tensor,
    steps: int,
    through_denominator: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss (), slopes in every bin (B + 1,), gradients by the positives' scores and qualities (P,), float64.

    totals, at, owner: of `ap_loss_bins`, totals perhaps added over several. own, quality (P,) float64. NaN where one of
    them cannot be used.
    """
    if len(own) == 0:
        nothing = own.clone()
        return torch.where(totals.isnan().any(), math.nan, own.sum()), totals[1] * 0, nothing, nothing.clone()
    curves = curves_of(knots.to(own.device))
    merged = MergedKnots.of(curves[1], curves[3])
    valid = ~totals.isnan().any() & ((own.abs() <= FARTHEST) & ~quality.isnan()).all()
    own = torch.where(valid, own, at.new_zeros(()))
    count, total = totals

    # a bin's excess over its left threshold, and by how much the positives in it weigh less than 1
    left, part = torch.cat([at[:1], at]), curves[2].value(quality)
    of_own = torch.bucketize(own, at, right=True)
    deficit = torch.zeros_like(count).index_add_(0, of_own, part)
    deficit_total = torch.zeros_like(count).index_add_(0, of_own, part * own)
    # total - count * left cancels, and rounding may leave less than nothing
    excess = (total - count * left).clamp(min=0)
    weighted = (total - deficit_total - (count - deficit) * left).clamp(min=0)
    suffix_sums = at.new_empty(4, len(at))
    suffix_sums[:, owner] = torch.stack([*suffix(count, excess, at), *suffix(count - deficit, weighted, at)])
    rows = Rows.of(curves, merged, suffix_sums.view(4, len(own), -1), quality, through_denominator)

    # over all rows: slopes in each bin, and the derivative by a weight at its left threshold
    row, step = owner // len(merged.offset), owner % len(merged.offset)
    above = value_of_bins(rows.by_above[row] * slope_changes(merged.above)[step])
    rank = value_of_bins(rows.by_rank[row] * slope_changes(merged.rank)[step])
    weight_at = torch.cat([at.new_zeros(2), (above[1:-1] * at.diff()).cumsum(0)])
    weight = weight_at[of_own] + above[of_own] * (own - left[of_own])
    weight -= rows.by_above * curves[1].value(own.new_tensor(0.5))
    slopes = above - rank
    slopes[-1] = 0  # above every threshold nothing changes
    by_score = rows.by_score + (1 - part) * above[of_own] - rank[of_own]
    by_quality = rows.by_quality - curves[2].slope(quality) * weight
    loss, slopes, by_score, by_quality = (
        torch.where(valid, x, math.nan) for x in (rows.term.sum(), slopes, by_score, by_quality)
    )
    return loss, slopes, by_score, by_quality


def ap_loss_gradient(bins: Sequence[Tensor], slopes: Tensor, place: Tensor, by_score: Tensor) -> list[Tensor]:
    """Gradient by the scores of every level (n,), in the order of its memory and in the type of slopes (B + 1,).

    place (P,): of the positives, by `ap_loss_own`; by_score (P,): their own gradients.
    """
    results, begin = [], 0
    for kept in bins:
        result = slopes.index_select(0, kept)
        mine = (place >= begin) & (place < begin + len(kept))
        result[place[mine] - begin] = by_score[
            mine
        ]  # after the lookup: it replaces what a positive's bin gave
        results.append(result)
        begin += len(kept)
    return results
