"""AP Loss: interpolated average precision by error-driven updates, and L1 or GIoU for boxes."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from detsearch_cli.slots.losses._ranking import GivenGradient, Negatives, ramp_sums, split_scores
from detsearch_cli.slots.losses.base import DetectionLoss, box_loss, mean_over_ranks
from detsearch_cli.structures import Assignment, Dense, Targets


class APLoss(DetectionLoss):
    """Source: Chen et al. 2019 (Towards Accurate One-Stage Object Detection with AP-Loss), section 3 and its released code.

    Scores are logits, over all classes of the batch. Each positive moves up by how much precision it lacks, each negative
    moves down by its part in that, after interpolation: precision at a positive is the highest at it or any lower one.
    Exact for delta > 0, too: a difference of scores counts as a ramp from -delta to delta. Micro-batches and the processes
    of a distributed training rank their own images.
    """

    ranks: ClassVar[bool] = True

    delta: float = Field(default=1.0, ge=0, le=1000, description="half the width of the ramp; 0: a step")
    regression: Literal["l1", "giou"] = Field(
        default="l1", description="l1: smooth L1 of encoded offsets; giou: 1 - GIoU"
    )
    regression_weight: float = Field(default=1.0, ge=0, description="of the regression term")

    def __call__(self, dense: Dense, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        scores, positive, left_out, pairs = split_scores(dense, assignment, targets)
        regression = box_loss(dense, pairs, targets, self.regression).sum()
        total = mean_over_ranks(torch.tensor(len(positive), device=scores.device))
        terms = {"regression": self.regression_weight * regression / total}
        if len(positive) == 0:
            return {"classification": scores[:0].sum(), **terms}
        value, gradient = average_precision_error(scores.detach(), positive, left_out, self.delta)
        return {"classification": GivenGradient.apply(scores, value, gradient), **terms}


@torch.no_grad()
def average_precision_error(
    scores: Tensor, positive: Tensor, left_out: Tensor, delta: float
) -> tuple[Tensor, Tensor]:
    """1 minus the interpolated average precision, and the update of every score, as its gradient. (N,) -> (), (N,)."""
    if not bool(scores.isfinite().all()):
        return scores.new_full((), torch.nan), torch.full_like(scores, torch.nan, dtype=torch.float64)
    negatives = Negatives(scores, positive, left_out, delta)
    own = negatives.own
    itself = 1.0 if delta == 0 else 0.5  # what a positive counts for in the sum over positives
    among = 1 + ramp_sums(own, own, delta) - itself
    rank = among + negatives.sums()
    precision = among / rank
    order = own.argsort(stable=True)
    highest = torch.empty_like(precision)
    highest[order] = precision[order].cummax(0).values
    # where a lower positive has a higher precision, the negatives above count less
    part = torch.where(highest > precision, (1 - highest) / (1 - precision), 1.0)
    gradient = negatives.spread(part / rank)
    gradient[positive] = -(1 - highest)
    return 1 - highest.mean(), gradient / len(positive)
