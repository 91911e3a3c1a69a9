"""Sums of steps and ramps over all scores, from sorted ones: what losses of a ranking are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detsearch_cli.structures import BACKGROUND, Assignment, Dense, Targets


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
    """All scores (N,), the indices of positives (P,) and negatives (M,) in them, and image, prior and gt of the positives.

    A positive is the score of a prior's own class; negatives are all others, but of ignored priors.
    """
    image, prior = assignment.positive.nonzero(as_tuple=True)
    gt = assignment.matched[image, prior]
    logits = dense.logits
    at = (image * logits.shape[1] + prior) * logits.shape[2] + targets.labels[gt]
    counted = (assignment.matched >= BACKGROUND)[..., None].expand_as(logits).flatten()
    negative = counted.clone()
    negative[at] = False
    return logits.flatten(), at, negative.nonzero()[:, 0], (image, prior, gt)


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
