"""Sums of steps and ramps over all scores, from bins: what losses of a ranking are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detsearch_cli.structures import IGNORE, Assignment, Dense, Targets


class Negatives:
    """What all negatives together are to each positive, and each negative to all positives, without a matrix of them.

    A negative counts for a positive as clamp((its score - the positive's) / (2 delta) + 1/2, 0, 1); with delta 0 as 1 where
    it is not lower. As a function of a score this is straight between 2 P thresholds, so that each score goes into its bin
    once: O(N log P). In float64, as differences of long sums.

    scores (N,). positive (P,): indices of the positives. left_out (K,): of the scores that are no negatives, positives among
    them.
    """

    def __init__(self, scores: Tensor, positive: Tensor, left_out: Tensor, delta: float) -> None:
        self.scores, self.delta = scores.double(), delta
        self.own = self.scores[positive]
        self.left_out = left_out
        at, self.order = torch.cat([self.own - delta, self.own + delta]).sort()
        self.bins = torch.bucketize(self.scores, at, right=True)

    def sums(self) -> Tensor:
        """Of each positive, over all negatives. (P,)."""
        size = len(self.order) + 1
        apart, values = self.bins[self.left_out], self.scores[self.left_out]
        count = torch.bincount(self.bins, minlength=size) - torch.bincount(apart, minlength=size)
        moment = torch.bincount(self.bins, self.scores, size) - torch.bincount(apart, values, size)
        low, high = (_from_thresholds_on(x, self.order) for x in (count.double(), moment))
        above, within = low[1], low[0] - low[1]
        if self.delta == 0:
            return above
        return above + (high[0] - high[1] - self.own * within) / (2 * self.delta) + within / 2

    def spread(self, weights: Tensor) -> Tensor:
        """Of each negative, the sum over positives of weight (P,) * what it counts for them. (N,), 0 for all others."""
        slope = weights / (2 * self.delta) if self.delta > 0 else torch.zeros_like(weights)
        at_0 = weights / 2 - slope * self.own if self.delta > 0 else weights
        constants = _up_to_bins(torch.cat([at_0, weights - at_0]), self.order)
        slopes = _up_to_bins(torch.cat([slope, -slope]), self.order)
        found = constants[self.bins] + slopes[self.bins] * self.scores
        found[self.left_out] = 0
        return found


def _from_thresholds_on(by_bin: Tensor, order: Tensor) -> Tensor:
    """Sums of the bins (2 P + 1,) from each positive's lower threshold on, and from its upper one. (2, P)."""
    found = torch.empty_like(by_bin[1:])
    found[order] = by_bin.flip(0).cumsum(0).flip(0)[1:]
    return found.view(2, -1)


def _up_to_bins(at_thresholds: Tensor, order: Tensor) -> Tensor:
    """In each bin (2 P + 1,), the sum of what begins (2 P,) at the thresholds at or below it."""
    return torch.nn.functional.pad(at_thresholds[order].cumsum(0), (1, 0))


def ramp_sums(at: Tensor, scores: Tensor, delta: float, weights: Tensor | None = None) -> Tensor:
    """Of each `at`, the sum over scores of weight * clamp((score - at) / (2 delta) + 1/2, 0, 1). (P,), (N,) -> (P,) float64.

    delta 0: of weight where score >= at. O((N + P) log N) by one sort and prefix sums, where the published loops hold a row
    of N numbers for each positive. In float64, as differences of long sums.
    """
    ordered, order = scores.double().sort()
    own = torch.ones_like(ordered) if weights is None else weights.double()[order]
    at = at.double()
    count = torch.nn.functional.pad(own.cumsum(0), (1, 0))
    high = torch.searchsorted(ordered, at + delta)
    above = count[-1] - count[high]
    if delta == 0:
        return above
    moment = torch.nn.functional.pad((own * ordered).cumsum(0), (1, 0))
    low = torch.searchsorted(ordered, at - delta)
    within = count[high] - count[low]
    return above + (moment[high] - moment[low] - at * within) / (2 * delta) + within / 2


def ramps_below(at: Tensor, scores: Tensor, delta: float, weights: Tensor) -> Tensor:
    """Of each `at`, the sum over scores of weight * clamp((at - score) / (2 delta) + 1/2, 0, 1), or where at >= score."""
    return ramp_sums(-at, -scores, delta, weights)


def split_scores(
    dense: Dense, assignment: Assignment, targets: Targets
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """All scores (N,), the indices of positives (P,) and of no negatives (K,), and image, prior and gt of the positives.

    A positive is the score of a prior's own class; negatives are all others, but of ignored priors.
    """
    image, prior = assignment.positive.nonzero(as_tuple=True)
    gt = assignment.matched[image, prior]
    logits = dense.logits
    at = (image * logits.shape[1] + prior) * logits.shape[2] + targets.labels[gt]
    ignored = (assignment.matched == IGNORE).flatten().nonzero() * logits.shape[2]
    of_ignored = ignored + torch.arange(logits.shape[2], device=logits.device)
    return logits.flatten(), at, torch.cat([at, of_ignored.flatten()]), (image, prior, gt)


class GivenGradient(torch.autograd.Function):
    """A value whose gradient by the scores (N,) is given, not derived: an error-driven update (Chen et al. 2019)."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient.to(scores.dtype))
        return value.to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return outer * gradient, None, None
